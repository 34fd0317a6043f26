"""What was remembered of folders gives the index that searching gives, whatever changed in between."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from mst.data.files import folders
from mst.data.files.folders import cache_file, cache_folder, recall
from mst.data.sources import EXTENSIONS, index_images, search


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine folders of images, changed long ago."""
    monkeypatch.setattr(search, "FEWEST", 1)
    root = tmp_path / "set"
    for a in "xyz":
        for b in "123":
            (root / a / b).mkdir(parents=True)
            for name in ("p.jpg", "q.PNG", "notes.txt"):
                (root / a / b / name).touch()
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))
    return root


def paths(root: Path, cache: Path | None) -> list[Path]:
    return list(index_images(root, cache=cache))


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that every folder read from now on is added to."""
    seen: list[Path] = []
    read = folders._read

    def noted(path: bytes, found: os.stat_result, wanted: frozenset[bytes]) -> folders.Folder:
        seen.append(Path(os.fsdecode(path)))
        return read(path, found, wanted)

    monkeypatch.setattr(folders, "_read", noted)
    return seen


def test_a_second_search_reads_no_folder(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = paths(tree, tmp_path / "cache")
    assert len(first) == 18
    seen = reads(monkeypatch)
    assert paths(tree, tmp_path / "cache") == first == paths(tree, None)
    assert len(seen) == 13  # all of them by the search without a cache


def test_only_what_changed_is_read_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths(tree, tmp_path / "cache")
    seen = reads(monkeypatch)
    (tree / "y" / "2" / "new.jpg").touch()
    assert tree / "y" / "2" / "new.jpg" in paths(tree, tmp_path / "cache")
    assert seen == [tree / "y" / "2"]
    assert len(paths(tree, tmp_path / "cache")) == 19
    assert seen == [tree / "y" / "2"] * 2  # it changed a moment ago: it may do so again within the same tick


def test_any_change_gives_what_searching_gives(tree: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    for step in range(40):
        found = [Path(folder) for folder, _, _ in os.walk(tree)]
        folder = draw.choice(found)
        match draw.randrange(5):
            case 0:
                (folder / f"{step}.jpg").touch()
            case 1:
                (folder / f"deep{step}").mkdir()
                (folder / f"deep{step}" / "a.webp").touch()
            case 2 if folder not in (tree, tree / "x"):
                shutil.rmtree(folder)
            case 3:
                (folder / f"link{step}.jpg").symlink_to(tree / "x")
            case 4:
                for image in sorted(folder.glob("*.jpg")):
                    image.rename(image.with_name(f"re{step}{image.name}"))
        if draw.random() < 0.5:
            os.utime(folder if folder.exists() else tree, (1e9 + step, 1e9 + step))
        assert paths(tree, tmp_path / "cache") == paths(tree, None)


def test_no_damage_of_the_file_stops_a_search(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = paths(tree, cache)
    file = cache_file(cache, os.fsencode(tree), EXTENSIONS)
    content = file.read_bytes()
    directory = content.index(b"PK\1\2")
    for at in [*range(directory, directory + 24), *range(0, len(content), len(content) // 40)]:
        for bit in (0, 5, 6):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            recall(file)
    assert paths(tree, cache) == first


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_replaced(tree: Path, tmp_path: Path, damage: bytes | None) -> None:
    cache = tmp_path / "cache"
    first = paths(tree, cache)
    file = cache_file(cache, os.fsencode(tree), EXTENSIONS)
    content = file.read_bytes()
    at = len(content) // 2
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] if damage is None else damage)
    assert recall(file) == {}
    assert paths(tree, cache) == first
    assert len(recall(file)) == 13


def test_a_disk_that_refuses_does_not_matter(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(paths(tree, tmp_path / "file")) == 18


def test_overlapping_sources_count_once(tree: Path, tmp_path: Path) -> None:
    both = [tree / "x", tree]
    for _ in range(2):
        assert len(index_images(both, cache=tmp_path / "cache")) == 18
        assert len(paths(tree, tmp_path / "cache")) == 18


def test_small_folders_are_not_remembered(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FEWEST", 19)
    paths(tree, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mst" / "index"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mst" / "index"


def test_lengths_are_those_of_the_paths(tree: Path, tmp_path: Path) -> None:
    index = index_images([tree, tree / "x" / "1" / "p.jpg"], cache=tmp_path / "cache")
    assert np.diff(index.ends).tolist() == [len(os.fsencode(path)) for path in index]


def test_what_was_passed_over_is_remembered(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "x" / os.fsdecode(b"\xff.heic")).touch()
    os.mkfifo(tree / "x" / "pipe.jpg")
    os.utime(tree / "x", (1e9, 1e9))
    first = index_images(tree, cache=tmp_path / "cache", tell=False)
    seen = reads(monkeypatch)
    again = index_images(tree, cache=tmp_path / "cache", tell=False)
    assert not seen
    assert again.passed == first.passed
    assert {(entry.kind, entry.count) for entry in again.passed.entries} == {("other", 9), ("other", 1), ("special", 1)}


def test_content_is_looked_at_again(tree: Path, tmp_path: Path) -> None:
    (tree / "x" / "late").touch()
    os.utime(tree / "x", (1e9, 1e9))
    assert len(index_images(tree, cache=tmp_path / "cache", by_content=True)) == 18
    (tree / "x" / "late").write_bytes(b"\xff\xd8\xff")  # the folder's time stays
    os.utime(tree / "x", (1e9, 1e9))
    assert len(index_images(tree, cache=tmp_path / "cache", by_content=True)) == 19
