from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mst.data.decoding import OtherChannels, UnreadableImage
from mst.data.reader import Chunk
from mst.data.sources import ImageIndex
from mst.data.unreadable import LeftOut, UnreadableFiles, each_readable, tell_left_out
from mst.errors import DataError


def test_a_line_for_each_file_whatever_its_name(tmp_path: Path) -> None:
    names = [b"a\nb", b"a\rb", b"a\tb", b"\xff", b"[red]", " \u202e\u0085 ".encode(), b"end "]
    index = ImageIndex.of(b"/d/" + name for name in names)
    listing = tmp_path / "unreadable.txt"
    for _ in range(2):  # a resumed run lists none of them again
        files = UnreadableFiles(index, limit=1.0, flag="--x", enough=1, listing=listing)
        every = torch.arange(len(names))
        chunk = Chunk((), every, every, [(place, "torn \udcff") for place in range(len(names))])
        files.note(chunk)
        lines = listing.read_bytes().split(b"\n")[:-1]
        assert len(lines) == len(names)
        assert all(line.count(b"\t") == 1 and line.endswith(b"torn \\udcff") for line in lines)
    assert lines[3].startswith(os.fsencode("/d/\udcff"))
    assert lines[0].startswith(b"/d/a\\nb\t")


def test_images_left_out_are_counted_told_and_refused_where_they_are_too_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(index: int) -> int:
        if index in {1, 4}:
            raise UnreadableImage(f"{index}.jpg", "cut short")
        return 10 * index

    left_out = LeftOut(6, 0.4)
    found = list(each_readable(read, range(6), left_out.add, workers=2))
    assert found == [(0, 0), (1, None), (2, 20), (3, 30), (4, None), (5, 50)]
    tell_left_out(left_out.lines, 6, "features")
    assert "features: 2 of 6 images left out, the first: 1.jpg: cut short" in capsys.readouterr().err
    tell_left_out([], 6)
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"^2 of 6 images cannot be read, at most 20% may be left out; the last: 4.jpg"):
        list(each_readable(read, range(6), LeftOut(6, 0.2).add))
    with pytest.raises(DataError, match=r"^none of 2 images can be read, the first: 1.jpg: cut short$"):
        list(each_readable(lambda index: read(1), range(2), LeftOut(2).add))
    with pytest.raises(DataError, match=r"3 channels are asked for by the backbone$"):
        LeftOut(9, 0.0).add(OtherChannels("x", "has 1 channel, 3 channels are asked for"))
    with pytest.raises(ZeroDivisionError):  # a fault is not hidden
        list(each_readable(lambda index: 1 // index, range(3), LeftOut(3).add))
