"""Whatever the disk refuses is one line, and the old file stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mst.errors import RunFailure
from mst.runtime.files import write_atomic


def test_a_refused_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(RunFailure, match="Read-only file system; the previous file is intact"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
