"""Whatever the disk refuses is one line, and the old file stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mst.errors import RunFailure, UsageError
from mst.runtime.storage.files import check_folder, is_aside, write_atomic


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


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    code = (
        "import os, sys; from pathlib import Path; from mst.runtime.storage import files\n"
        "os.fsync = lambda _: os._exit(9)\n"
        "files.write_atomic(Path(sys.argv[1]), b'half')"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 9
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert is_aside(left[0].name)
    other = tmp_path / ".other.12345678-1.tmp"  # of another machine, perhaps at work
    other.write_text("x")
    write_atomic(path, b"whole")
    assert sorted(tmp_path.iterdir()) == [other, path]
