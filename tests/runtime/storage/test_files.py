"""Whatever the disk refuses is one line, and the old file stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mst.errors import RunFailure, UsageError
from mst.runtime.storage.files import aside_of, check_folder, is_aside, write_atomic, write_together


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


def test_threads_write_one_file_beside_each_other(tmp_path: Path) -> None:
    path, contents = tmp_path / "note.json", [str(number) * 2000 for number in range(8)]
    ready = threading.Barrier(len(contents))

    def write(content: str) -> None:
        ready.wait()
        for _ in range(20):
            write_atomic(path, content)

    with ThreadPoolExecutor(len(contents)) as threads:
        for done in [threads.submit(write, content) for content in contents]:
            done.result()
    assert path.read_text() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_ended_thread_left_goes_and_what_one_writes_stays(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(aside_of, tmp_path / "note").result()
        other.write_text("half")
        write_atomic(tmp_path / "note", "whole")
        assert other.exists()
        assert is_aside(other.name)
    older = other.with_name(other.name.rpartition("-")[0] + ".tmp")  # of a version that named no thread
    older.write_text("half")
    write_atomic(tmp_path / "note", "whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "note"]


class Kill(BaseException):
    """Ends a process at a place."""


def killed_at(monkeypatch: pytest.MonkeyPatch, change: int) -> None:
    """Let the process end before the n-th file gets its name or goes."""
    left = [change]
    for method in ("replace", "unlink"):
        real = getattr(Path, method)

        def counted(path: Path, *words: Any, real: Any = real, **options: Any) -> Any:
            if left[0] <= 0:
                raise Kill
            left[0] -= 1
            return real(path, *words, **options)

        monkeypatch.setattr(Path, method, counted)


@pytest.mark.parametrize("change", range(4))
def test_of_files_that_belong_together_no_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    list_, values = tmp_path / "a.txt", tmp_path / "a.npy"
    write_together([(list_, "old"), (values, b"old")])
    with monkeypatch.context() as patched:
        killed_at(patched, change)
        with suppress(Kill):
            write_together([(list_, "new"), (values, b"new")])
    found = list_.read_text(), values.read_text() if values.exists() else None
    assert found == [("old", "old"), ("old", None), ("new", None), ("new", "new")][change]
    write_together([(list_, "newer"), (values, b"newer")])
    assert [list_.read_text(), values.read_text()] == ["newer", "newer"]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_disk_refuses_leaves_both_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_ = [(tmp_path / "a", "old"), (tmp_path / "b", "old")]
    write_together(files_)
    flushed: list[int] = []

    def full(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailure, match=r"cannot write .*b: No space left"):
        write_together([(tmp_path / "a", "new"), (tmp_path / "b", "new")])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
