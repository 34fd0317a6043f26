"""JPEGs of a card: which files it gets, and that the CPU has the rest; the operator of a card has a stand-in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mst.config.schema import ViewsConfig
from mst.data.decoding import decode_bytes
from mst.data.formats import card
from mst.data.formats.card import CardDecoder, check_card, plain_size
from mst.data.formats.jpeg import jpeg_orientation, turned
from mst.data.loader import BatchLoader
from mst.data.reader import Places, SampleReader
from mst.data.sources import ImageIndex
from mst.errors import UsageError
from mst.planning.stream import cut_crops
from mst.views.crop import in_floats, resize
from mst.views.multicrop import MultiCrop

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def picture(seed: int, size: tuple[int, int] = (40, 56)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


class StandIn:
    """Decodes as torchvision's operator for CUDA is said to: all of the files, or an error."""

    def __init__(self, refused: bytes = b"") -> None:
        self.calls: list[int] = []
        self.refused = refused

    def __call__(self, files: Sequence[Tensor], mode: int, device: torch.device) -> list[Tensor]:
        self.calls.append(len(files))
        if any(bytes(file.numpy()) == self.refused for file in files):
            raise RuntimeError("nvjpeg: not supported")
        return [torch.ops.image.decode_jpeg(file, mode, False).to(device) for file in files]


@pytest.fixture
def files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(picture(3))
    return {
        "0.jpg": encoded(picture(0)),
        "1.png": encoded(picture(1), "PNG"),
        "2.jpg": encoded(picture(2), exif=exif),
        "3.jpg": whole[: len(whole) // 2],
        "4.jpg": encoded(picture(4).convert("CMYK")),
        "5.jpg": encoded(picture(5).convert("L")),
        "6.jpg": encoded(picture(6), progressive=True),
        "7.jpg": encoded(picture(7), subsampling=2),
    }


def folder(root: Path, files: dict[str, bytes]) -> ImageIndex:
    for name, data in files.items():
        (root / name).write_bytes(data)
    return ImageIndex.of([str(root / name) for name in sorted(files)])


def test_only_plain_and_whole_jpegs_are_the_cards(files: dict[str, bytes]) -> None:
    found = {name: plain_size(data) for name, data in files.items()}
    plain = {"0.jpg", "2.jpg", "5.jpg", "6.jpg", "7.jpg"}
    assert found == {name: (40, 56) if name in plain else None for name in files}
    rgb = bytearray(encoded(picture(0), keep_rgb=True))
    assert plain_size(rgb) is None
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    for transform, size in ((0, None), (1, (40, 56)), (2, None)):
        marked = files["0.jpg"][:2] + adobe + bytes([transform]) + files["0.jpg"][2:]
        assert plain_size(marked) == size
    for cut in range(0, len(files["0.jpg"]), 7):
        assert plain_size(files["0.jpg"][:cut]) is None
    assert plain_size(files["0.jpg"] + b"\0\0") == (40, 56)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_way_up_is_the_cpus(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = bytearray(encoded(picture(orientation), exif=exif, quality=95, subsampling=0))
    assert jpeg_orientation(data) == orientation
    stored = torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), 3, False)
    assert torch.equal(turned(stored, orientation), decode_bytes("it", data))


@pytest.mark.parametrize("at_once", [1, 3 * 40 * 56 * 3, 1 << 27], ids=["one by one", "some", "all"])
def test_a_chunk_is_that_of_the_cpu(
    files: dict[str, bytes], at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops, replacements of unreadable files and counts; one file the card refuses though it looks plain."""
    images, stand_in = folder(tmp_path, files), StandIn(refused=files["6.jpg"])
    monkeypatch.setattr(card, "DECODE", stand_in)
    monkeypatch.setattr(card, "AT_ONCE", at_once)
    multicrop = MultiCrop(ViewsConfig(global_size=16, local_size=8, local_crops=2), channels=3)
    decoder = CardDecoder(CPU, 3)
    readers = [SampleReader(images, partial(cut_crops, multicrop), 3, seed=1, card=each) for each in (None, decoder)]
    for first in (0, 5):
        expected, found = (reader.read(Places(0, first, 6)) for reader in readers)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.read, expected.read)
        assert found.unreadable == expected.unreadable
        for one, other in zip(found.tensors, expected.tensors, strict=True):
            assert torch.equal(one, other)
    assert decoder.on_card > 3
    assert decoder.on_cpu > 0
    assert max(stand_in.calls) > 1 if at_once > 1 else max(stand_in.calls) == 1


@pytest.mark.parametrize("size", [(16, 16), (48, 30), (7, 90)])
def test_resizing_by_way_of_floats_is_within_a_grey_level(size: tuple[int, int]) -> None:
    pixels = torch.from_numpy(np.array(picture(9, (37, 41)))).permute(2, 0, 1)[None].contiguous()
    assert (resize(pixels, size).int() - in_floats(pixels, size).int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": CPU}, "needs a CUDA device, the networks are on cpu: use cpu"),
        ({"channels": 4}, "--data.channels is 4"),
        ({"workers": 3}, "--runtime.workers 3"),
        ({"colour": "loader"}, "--runtime.colour loader"),
    ],
)
def test_where_it_cannot_be(changes: dict[str, object], said: str) -> None:
    settings: dict[str, object] = {"device": CARD, "channels": 3, "workers": -1, "colour": "auto", **changes}
    with pytest.raises(UsageError, match=said):
        check_card(settings.pop("device"), **settings)  # type: ignore[arg-type]


def test_without_the_operator_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "DECODE", None)
    with pytest.raises(UsageError, match="no JPEG decoder for CUDA"):
        check_card(CARD, channels=3, workers=-1, colour="auto")


@pytest.mark.cuda
@needs_card
def test_a_card_decodes_nearly_what_the_cpu_decodes(files: dict[str, bytes], tmp_path: Path) -> None:
    images, decoder = folder(tmp_path, files), CardDecoder(CARD, 3)
    decoder.expect(range(len(files)))
    for position, data in enumerate(files[name] for name in sorted(files)):
        found = decoder.take(images.read_bytes, position)
        if found is not None:
            difference = (found.cpu().int() - decode_bytes("it", bytearray(data)).int()).abs().float()
            assert difference.mean() < 3
    assert decoder.on_card >= 3


def test_the_loader_gives_the_same_batches(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del files["3.jpg"]
    images = folder(tmp_path, files)
    monkeypatch.setattr(card, "DECODE", StandIn())
    transform = partial(cut_crops, MultiCrop(ViewsConfig(global_size=16, local_size=8, local_crops=2), channels=3))
    found = []
    for decoder in (None, CardDecoder(CPU, 3)):
        with BatchLoader(images, transform, batch_size=4, seed=0, total_steps=5, card=decoder) as loader:
            found.append(list(loader))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert all(torch.equal(*tensors) for tensors in zip(one.tensors, other.tensors, strict=True))
    assert decoder is not None
    assert (decoder.on_card + decoder.on_cpu, decoder.on_cpu > 0) == (20, True)
