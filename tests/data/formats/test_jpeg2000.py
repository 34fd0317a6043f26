"""JPEG 2000: depths that Pillow gives right are read, the others refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.pictures import encoded, texture
from mst.data.decoding import UnreadableImage, decode_image
from mst.data.formats.jpeg2000 import depths

imagecodecs = pytest.importorskip("imagecodecs")


def white(bits: int, components: int) -> bytes:
    shape = (16, 16, components) if components > 1 else (16, 16)
    values = np.full(shape, 2**bits - 1, np.uint8 if bits <= 8 else np.uint16)
    done: bytes = imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, codecformat="jp2", reversible=True)
    return done


@pytest.mark.parametrize("components", [1, 3, 4])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 9, 10, 12, 14, 16])
def test_white_is_white_or_refused(bits: int, components: int, tmp_path: Path) -> None:
    try:
        data = white(bits, components)
    except imagecodecs.Jpeg2kError:
        pytest.skip("not written by this encoder")
    (tmp_path / "a.jp2").write_bytes(data)
    assert depths(data) == (bits,) * components
    if bits == 8 or (components == 1 and bits >= 10):
        assert decode_image(tmp_path / "a.jp2").unique().tolist() == [255]
    else:
        with pytest.raises(UnreadableImage, match=f"with {bits} bits, which Pillow decodes wrongly"):
            decode_image(tmp_path / "a.jp2")


def test_damaged_headers_are_pillows_to_judge() -> None:
    assert depths(b"") == ()
    data = encoded(texture(), "JPEG2000")
    assert depths(data) == (8, 8, 8)
    start = data.index(b"\xff\x4f\xff\x51")
    assert all(depths(data[: start + cut]) == () for cut in range(48))
