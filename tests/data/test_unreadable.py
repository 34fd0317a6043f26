from __future__ import annotations

import os
from pathlib import Path

import torch

from mst.data.reader import Chunk
from mst.data.sources import ImageIndex
from mst.data.unreadable import UnreadableFiles


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
