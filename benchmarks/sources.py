"""Images a second from each kind of source, beside a folder's: the same JPEGs, decoded, in the order of an epoch.

    python benchmarks/sources.py FOLDER_OF_IMAGES [--images 2000] [--repetitions 9] [--read] [--order global|shards]

Copies of the images, as tar, parquet and Arrow files and as an array (of 128 px), are made in a temporary folder.
Sources are read in turn, in another order each time, so that whatever else the machine does falls on all of them.
Prints one row a source: images a second (median of the repetitions), and its ratio to the folder of the same repetition
(median, smallest and largest). With --read nothing is decoded: what a source itself costs.
"""

from __future__ import annotations

import argparse
import io
import statistics
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


def rate(images: ImageSource, kind: OrderKind, epoch: int, *, decode: bool) -> float:
    """Return images a second of one epoch, of the time that this thread had."""
    order = EpochOrder(images, 0, kind=kind).of(epoch)
    started = time.thread_time()
    for place in range(len(images)):
        if decode:
            read_image(images, int(order[place]))
        else:
            images.read_bytes(int(order[place]))
    return len(images) / (time.thread_time() - started)


def main() -> None:
    """Measure the sources in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--order", choices=["global", "shards"], default="global")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        sources = copies(open_images(asked.folder, limit=asked.images), Path(place))
        kind = cast(OrderKind, asked.order)
        found: dict[str, list[float]] = {name: [] for name in sources}
        for epoch in range(asked.repetitions):
            names = list(sources)[:: 1 if epoch % 2 else -1]
            for name in names:
                found[name].append(rate(sources[name], kind, epoch, decode=not asked.read))
    print(f"{'source':14} {'images/s':>9} {'folder = 1':>11}  least..most ({asked.order} order)")
    for name, rates in found.items():
        ratios = [one / folder for one, folder in zip(rates, found["folder"], strict=True)]
        middle = statistics.median(ratios)
        print(f"{name:14} {statistics.median(rates):9.0f} {middle:11.3f}  {min(ratios):.3f}..{max(ratios):.3f}")


if __name__ == "__main__":
    main()
