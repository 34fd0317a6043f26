"""Whatever the disk refuses is one line, and the old file stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mst.errors import RunFailure, UsageError
from mst.runtime.files import check_folder, write_atomic


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


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"--out .*file is a file: name a folder"):
        check_folder(file, "--out")
    with pytest.raises(UsageError, match=r"--out .*file/a/b lies below .*file, which is a file: name a folder"):
        check_folder(file / "a" / "b", "--out")
    check_folder(tmp_path, "--out")
    check_folder(tmp_path / "a" / "b", "--out")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="no permission to write in"):
        check_folder(tmp_path / "a", "--out")
