"""Calling the command line in this process, and small folders of images for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from data.pictures import write_textures
from mst.cli import main


@dataclass(frozen=True)
class Answer:
    """What a call gave: exit status, stdout, stderr."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr of a refused call."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mst: error: "), self.err
        return lines[0]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Answer:
    """Run `mst WORDS`."""
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return Answer(status, out, err)


def image_folder(folder: Path, count: int = 12, size: int = 40) -> Path:
    """Write pictures at two depths and return the folder."""
    write_textures(folder, count // 2, size=size)
    write_textures(folder / "deep" / "er", count - count // 2, start=count // 2, size=size)
    return folder


def labelled_folder(root: Path, train: tuple[str, ...] = ("cat", "dog"), val: tuple[str, ...] = ("cat",)) -> Path:
    """Write train/<class>/ and val/<class>/ with four pictures each and return the root."""
    for part, classes in (("train", train), ("val", val)):
        (root / part).mkdir(parents=True)
        for number, name in enumerate(classes):
            write_textures(root / part / name, 4, start=10 * number)
    return root
