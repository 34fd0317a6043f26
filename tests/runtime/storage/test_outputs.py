"""A command replaces the files that it wrote, and no other."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from mst.errors import RunFailure, UsageError
from mst.runtime.storage.outputs import ANY, NOTES, Outputs
from mst.runtime.storage.results import append_jsonl

NAME = "deep/a \udcff.png"


def outputs(folder: Path, command: str = "predict x", earlier: re.Pattern[bytes] | None = None) -> Outputs:
    return Outputs(folder, command, "--out", earlier=earlier)


def test_own_files_are_replaced_again_and_again(tmp_path: Path) -> None:
    for content in (b"one", b"two", b"three"):
        mine = outputs(tmp_path / "new")
        mine.check([NAME])
        mine.write(NAME, content)
        mine.write(NAME, content, flush=False)
        assert (tmp_path / "new" / NAME).read_bytes() == content
    assert sorted(os.listdir(tmp_path / "new")) == [NOTES, "deep"]
    assert len(os.listdir(tmp_path / "new" / "deep")) == 1


@pytest.mark.parametrize("kind", ["file", "empty", "folder", "link", "dead link", "pipe"])
def test_what_is_there_is_refused_before_the_work_and_stays(kind: str, tmp_path: Path) -> None:
    place, other = tmp_path / "a.png", tmp_path / "precious"
    other.write_bytes(b"precious")
    make = {
        "file": lambda: place.write_bytes(b"mine"),
        "empty": place.touch,
        "folder": place.mkdir,
        "link": lambda: place.symlink_to(other),
        "dead link": lambda: place.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(place),
    }
    make[kind]()
    before = place.lstat()
    with pytest.raises(
        UsageError, match=r"--out: .*a\.png is there and was not written by mst predict x: move it away"
    ):
        outputs(tmp_path).check(["b.png", "a.png"])
    with pytest.raises(RunFailure, match="was not written by mst predict x"):
        outputs(tmp_path).write("a.png", b"new")
    assert os.path.samestat(before, place.lstat())
    assert sorted(os.listdir(tmp_path)) == ["a.png", "precious"]
    assert other.read_bytes() == b"precious"


def test_a_file_that_was_changed_since_is_the_users(tmp_path: Path) -> None:
    outputs(tmp_path).write("a.png", b"predicted")
    (tmp_path / "a.png").write_bytes(b"corrected")  # of the same length
    os.utime(tmp_path / "a.png", ns=(1, 1))
    with pytest.raises(UsageError, match="is there and was changed since"):
        outputs(tmp_path).check(["a.png"])


def test_a_copy_of_the_folder_is_still_its_own(tmp_path: Path) -> None:
    outputs(tmp_path / "a").write("a.png", b"predicted")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    os.utime(tmp_path / "b" / "a.png", ns=(1, 1))
    outputs(tmp_path / "b").check(["a.png"])


def test_another_command_wrote_it(tmp_path: Path) -> None:
    outputs(tmp_path).write("a.png", b"x")
    with pytest.raises(UsageError, match="was not written by mst predict y"):
        outputs(tmp_path, "predict y").check(["a.png"])


def test_rows_that_are_appended_leave_a_file_its_own(tmp_path: Path) -> None:
    outputs(tmp_path).write("scores.jsonl", b'{"a": 1}\n', grows=True)
    append_jsonl(tmp_path / "scores.jsonl", {"a": 2})
    outputs(tmp_path).check(["scores.jsonl"])
    (tmp_path / "scores.jsonl").write_bytes(b'{"b": 1}\n{"a": 2}\n')
    with pytest.raises(UsageError, match="was changed since"):
        outputs(tmp_path).check(["scores.jsonl"])


def test_files_of_versions_without_notes(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"# made by mst\n")
    (tmp_path / "b.md").write_bytes(b"# by hand\n")
    outputs(tmp_path, earlier=re.compile(b"by mst")).check(["a.md"])
    with pytest.raises(UsageError, match=r"b\.md is there"):
        outputs(tmp_path, earlier=re.compile(b"by mst")).check(["a.md", "b.md"])
    outputs(tmp_path, earlier=ANY).check(["a.md", "b.md"])


def test_numbered_files(tmp_path: Path) -> None:
    (tmp_path / "0024-cat.png").touch()
    (tmp_path / "0001-cat.jpg").touch()
    outputs(tmp_path).check_numbered(r"(\d{4,})-.*\.png", 24)
    with pytest.raises(UsageError, match=r"0024-cat\.png is there"):
        outputs(tmp_path).check_numbered(r"(\d{4,})-.*\.png", 25)


@pytest.mark.parametrize(
    "notes", [b"\xff\xfe", b"[]\n{}\n", b'{"name": "a.png", "command": "predict x", "size": "9"}\n']
)
def test_damaged_notes_own_nothing(notes: bytes, tmp_path: Path) -> None:
    (tmp_path / NOTES).write_bytes(notes)
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match=r"a\.png is there"):
        outputs(tmp_path).check(["a.png"])


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_a_kill_between_note_and_rename_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs(tmp_path).write("a.png", b"old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    mine = outputs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            mine.write(name, b"newer")
    outputs(tmp_path).check(["a.png", "b.png"])
    assert (tmp_path / "a.png").read_bytes() == b"old"
    (tmp_path / "b.png").write_bytes(b"the user's")
    with pytest.raises(UsageError, match=r"b\.png is there"):
        outputs(tmp_path).check(["a.png", "b.png"])


def test_a_killed_pair_has_no_second_file_and_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs(tmp_path).write_together([("a.txt", b"old"), ("a.npy", b"old")])
    real, renamed = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        renamed.append(target.name)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            outputs(tmp_path).write_together([("a.txt", b"new"), ("a.npy", b"new")])
    assert renamed == ["a.txt", "a.npy"]
    assert sorted(os.listdir(tmp_path)) == [NOTES, "a.txt"]
    again = outputs(tmp_path)
    again.check(["a.txt", "a.npy"])
    again.write_together([("a.txt", b"newer"), ("a.npy", b"newer")])
    assert (tmp_path / "a.npy").read_bytes() == b"newer"
