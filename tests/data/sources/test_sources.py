"""Every kind of source gives the same images in the same order; what differs is where their bytes lie."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.pictures import by_sample
from mst.data.decoding import UnreadableImage, read_image
from mst.data.files.kinds import ARRAY
from mst.data.loader import BatchLoader
from mst.data.sources import EXTENSIONS, ImageIndex, ImageSource, even_positions, open_images
from mst.data.sources.arrays import ArrayFile, MemoryImages
from mst.data.sources.mixed import MixedImages
from mst.data.sources.shard import LocalShard
from mst.data.sources.tar import tar_images
from mst.data.statistics import channel_statistics, measured_ranges
from mst.data.survey import inspect_images
from mst.data.value_range import ValueRanges
from mst.errors import DataError, UsageError

COUNT = 11
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 14, 10, 3), dtype=np.uint8)


def files(folder: Path) -> ImageSource:
    """Each image in a file, as .npy, since that keeps every value; the names sort as the numbers do."""
    folder.mkdir()
    for number, pixels in enumerate(PIXELS):
        np.save(folder / f"{number:02}.npy", pixels)
    return ImageIndex.of(sorted(folder.iterdir()))


def array(folder: Path) -> ImageSource:
    folder.mkdir()
    np.save(folder / "x.npy", PIXELS)
    return open_images(folder / "x.npy")


def channels_first(folder: Path) -> ImageSource:
    folder.mkdir()
    np.save(folder / "x.npy", PIXELS.transpose(0, 3, 1, 2).copy())
    return open_images(folder / "x.npy")


def stored(folder: Path) -> ImageSource:
    folder.mkdir()
    np.savez(folder / "x.npz", labels=np.arange(COUNT), images=PIXELS)
    return open_images(folder / "x.npz")


def compressed(folder: Path) -> ImageSource:
    folder.mkdir()
    np.savez_compressed(folder / "x.npz", images=PIXELS, labels=np.arange(COUNT))
    return open_images(folder / "x.npz")


def memory(folder: Path) -> ImageSource:
    return MemoryImages.of(list(torch.from_numpy(PIXELS.copy()).permute(0, 3, 1, 2)))


def mixed(folder: Path) -> ImageSource:
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", PIXELS[number])
    np.save(folder / "b.npy", PIXELS[3:7])
    np.savez(folder / "c.npz", PIXELS[7:])
    return open_images([folder / name for name in ("b.npy", "0.npy", "1.npy", "2.npy", "c.npz")])


def npy(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def tar(folder: Path) -> ImageSource:
    """Two shards of unequal sizes, arrays as members."""
    folder.mkdir()
    for number, places in enumerate((range(4), range(4, COUNT))):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for place in places:
                data = npy(PIXELS[place])
                info = tarfile.TarInfo(f"{place:02}.npy")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    shards = [LocalShard(str(folder / f"{number}.tar")) for number in range(2)]
    return tar_images(shards, EXTENSIONS | {ARRAY}, None)


def parquet(folder: Path) -> ImageSource:
    """Two files of two row groups."""
    pyarrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for number, places in enumerate((range(4), range(4, COUNT))):
        rows = [npy(PIXELS[place]) for place in places]
        written.write_table(pyarrow.table({"image": rows}), folder / f"{number}.parquet", row_group_size=4)
    return open_images(folder)


def arrow(folder: Path) -> ImageSource:
    """As `datasets` saves them."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    table = pyarrow.table({"image": [{"bytes": npy(pixels), "path": None} for pixels in PIXELS]})
    with pyarrow.OSFile(str(folder / "0.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, 4)
    return open_images(f"hf:{folder}")


SOURCES = [files, array, channels_first, stored, compressed, memory, mixed, tar, parquet, arrow]
Make = Callable[[Path], ImageSource]


@pytest.mark.parametrize("make", SOURCES)
def test_images_names_sizes(make: Make, tmp_path: Path) -> None:
    images = make(tmp_path / "x")
    assert len(images) == COUNT
    assert len({images.name(position) for position in range(COUNT)}) == COUNT
    for position, pixels in enumerate(PIXELS):
        assert torch.equal(read_image(images, position), torch.from_numpy(pixels).permute(2, 0, 1))
        data = images.read_bytes(position)
        assert images.size(position) <= len(data)
        first = images.read_bytes(position, 16)
        assert 16 <= len(first) <= len(data)
        assert data.startswith(first[:16])
    for limit in (None, 1, 4, COUNT, 99):
        few = images.evenly(limit)
        chosen = range(COUNT) if limit is None else even_positions(COUNT, limit).tolist()
        assert [few.name(position) for position in range(len(few))] == [images.name(position) for position in chosen]
    reverse = images.only(np.arange(COUNT)[::-1])
    assert torch.equal(read_image(reverse, 0), read_image(images, COUNT - 1))
    with pytest.raises(IndexError):
        reverse.name(COUNT)


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_batches_are_the_same_from_every_source(make: Make, workers: int, tmp_path: Path) -> None:
    @by_sample
    def whole(image: torch.Tensor, draws: torch.Generator) -> tuple[torch.Tensor, ...]:
        return image, torch.rand(2, generator=draws)

    def batches(images: ImageSource) -> list[list[torch.Tensor]]:
        with BatchLoader(images, whole, batch_size=4, seed=3, total_steps=6, workers=workers) as loader:
            return [[*batch.tensors, batch.indices] for batch in loader]

    found, expected = batches(make(tmp_path / "x")), batches(files(tmp_path / "files"))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    statistics = [channel_statistics(source, channels=3) for source in (make(tmp_path / "y"), files(tmp_path / "z"))]
    assert statistics[0] == statistics[1]


@pytest.mark.parametrize("make", SOURCES)
def test_identity_is_of_content_not_of_place(make: Make, tmp_path: Path) -> None:
    one, copy = make(tmp_path / "one"), make(tmp_path / "copy")
    assert one.fingerprint() == copy.fingerprint()
    assert one.fingerprint().count == COUNT
    assert one.fingerprint() != one.only(np.arange(COUNT)[::-1]).fingerprint()
    assert one.fingerprint("name").name == "name"
    PIXELS[5] ^= 1
    try:
        assert make(tmp_path / "other").fingerprint() != one.fingerprint()
    finally:
        PIXELS[5] ^= 1


@pytest.mark.parametrize("make", SOURCES)
def test_sources_travel_to_workers(make: Make, tmp_path: Path) -> None:
    images = make(tmp_path / "x")
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(read_image(again, 7), read_image(images, 7))
    assert {*map(Path, again.files())} == {*images.files()}


def test_an_array_of_deep_values_has_their_range(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS.astype(np.uint16) * 16)
    images = open_images(tmp_path / "x.npy")
    scale = measured_ranges(images, channels=3, known=ValueRanges())
    assert scale.ranges == {"uint16": (0, 4095)}
    expected = (PIXELS[2].astype(np.float64) * 16 / 4095 * 255).round()
    assert np.abs(read_image(images, 2, scale=scale).permute(1, 2, 0).numpy() - expected).max() <= 1


def test_grey_images_without_a_channel(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS[..., 0])
    images = open_images(tmp_path / "x.npy", channels=1)
    assert (len(images), tuple(read_image(images, 4, channels=1).shape)) == (COUNT, (1, 14, 10))
    np.save(tmp_path / "one.npy", PIXELS[0, ..., :1])
    assert isinstance(open_images(tmp_path / "one.npy", channels=1), ImageIndex)


def test_inspect_counts_the_images_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    found = inspect_images(tmp_path / "x.npy")
    assert (found["images"], found["readable"], found["sizes"]) == (COUNT, COUNT, {"14x10": COUNT})
    assert found["mean"] == pytest.approx(list(PIXELS.mean((0, 1, 2)) / 255), abs=1e-4)


def test_an_array_that_is_cut_short_later_is_unreadable_in_part(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    images = open_images(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", os.path.getsize(tmp_path / "x.npy") - 1)
    read_image(images, COUNT - 2)
    with pytest.raises(UnreadableImage, match=r"x.npy\[10\]: the array ends before this image"):
        read_image(images, COUNT - 1)
    os.unlink(tmp_path / "x.npy")
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(images, 0)


def test_an_even_part_of_mixed_sources(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    one = open_images([tmp_path / "x.npy"] * 2, limit=6)
    assert isinstance(one, MixedImages)
    assert [type(part) for part in one.parts] == [ArrayFile, ArrayFile]
    assert [one.name(position)[-4:] for position in range(6)] == ["[0]", "[3]", "[7]", "[0]", "[3]", "[7]"] or len(
        one
    ) == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda path: np.savez(path, a=PIXELS, b=PIXELS), "one array .* is expected, found: a, b$"),
        (lambda path: np.savez(path, labels=np.arange(3)), r"found: none; it holds labels \[3\]$"),
        (np.savez, "found: none; it holds nothing$"),
        (lambda path: np.savez(path, np.asfortranarray(PIXELS)), "Fortran's order"),
        (lambda path: np.savez(path, PIXELS.astype(complex)), "an array of complex128"),
        (lambda path: np.savez(path, np.array([[[[None]]]])), "an array of object"),
        (lambda path: np.savez(path, PIXELS[:0]), "empty or truncated"),
        (lambda path: path.write_bytes(b"no zip"), "no .npy file"),
        (lambda path: path.write_bytes(b""), "no .npy file"),
    ],
)
def test_arrays_that_are_none_of_images(content: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    content(tmp_path / "x.npz")
    with pytest.raises(DataError, match=said) as refused:
        open_images(tmp_path / "x.npz")
    assert "\n" not in str(refused.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.npz does not exist"):
        open_images(tmp_path / "x.npz")
    with pytest.raises(UsageError, match="no images given"):
        open_images([])
    np.savez(tmp_path / "x.npz", PIXELS)
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"x.npz cannot be read as an array of images"):
        open_images(tmp_path / "x.npz")
