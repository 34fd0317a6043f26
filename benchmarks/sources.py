"""Images a second from each kind of source, beside a folder's: the same JPEGs, decoded, in the order of an epoch.

    python benchmarks/sources.py FOLDER_OF_IMAGES [--images 2000] [--repetitions 3] [--order global|shards]

Copies of the images, as tar, parquet and Arrow files and as an array (of 128 px), are made in a temporary folder.
Prints one row a source: images a second (the best of the repetitions) and its ratio to the folder's.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from mst.data.decoding import read_image
from mst.data.order.epochs import EpochOrder, OrderKind
from mst.data.sources import ImageSource, open_images

A_SHARD = 500
"""Images of a shard."""


def copies(images: ImageSource, place: Path) -> dict[str, ImageSource]:
    """Write the images in each form."""
    data = [bytes(images.read_bytes(number)) for number in range(len(images))]
    for kind in ("folder", "tar", "parquet", "arrow"):
        (place / kind).mkdir()
    for number, content in enumerate(data):
        (place / "folder" / f"{number:06}.jpg").write_bytes(content)
    for first in range(0, len(data), A_SHARD):
        with tarfile.open(place / "tar" / f"{first:06}.tar", "w") as tar:
            for number, content in enumerate(data[first : first + A_SHARD], first):
                info = tarfile.TarInfo(f"{number:06}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        tables(data[first : first + A_SHARD], place, first)
    small = np.stack([np.asarray(_small(content)) for content in data])  # [n, 128, 128, 3]
    np.save(place / "array.npy", small)
    sources = {kind: open_images(place / kind) for kind in ("folder", "tar", "parquet")}
    return {**sources, "hugging face": open_images(f"hf:{place}/arrow"), "array": open_images(place / "array.npy")}


def tables(data: list[bytes], place: Path, first: int) -> None:
    """Write one parquet and one Arrow file, as Hugging Face's data sets have them."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [{"bytes": content, "path": None} for content in data]})
    pyarrow.parquet.write_table(table, place / "parquet" / f"{first:06}.parquet", row_group_size=100)
    target = str(place / "arrow" / f"{first:06}.arrow")
    with pyarrow.OSFile(target, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, 100)


def _small(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB").resize((128, 128))


def rate(images: ImageSource, kind: OrderKind, epoch: int) -> float:
    """Return images a second of one epoch."""
    order = EpochOrder(images, 0, kind=kind).of(epoch)
    started = time.perf_counter()
    for place in range(len(images)):
        read_image(images, int(order[place]))
    return len(images) / (time.perf_counter() - started)


def main() -> None:
    """Measure the sources in turn, so that whatever else the machine does falls on all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--order", choices=["global", "shards"], default="global")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        sources = copies(open_images(asked.folder, limit=asked.images), Path(place))
        kind = cast(OrderKind, asked.order)
        best: dict[str, float] = dict.fromkeys(sources, 0.0)
        for epoch in range(asked.repetitions):
            for name, images in sources.items():
                best[name] = max(best[name], rate(images, kind, epoch))
    print(f"{'source':14} {'images/s':>9} {'folder = 1':>11}  ({asked.order} order)")
    for name, found in best.items():
        print(f"{name:14} {found:9.0f} {found / best['folder']:11.2f}")


if __name__ == "__main__":
    main()
