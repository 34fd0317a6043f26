"""The automatic split: by class, the same everywhere, copies on one side, written down."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst.data.labelled import LabelledFolder, LabelOptions
from mst.data.labels.copies import copies_of
from mst.data.labels.overlap import shared_images, tell_parts
from mst.data.sources import index_images
from mst.data.sources.arrays import MemoryImages
from mst.errors import DataError, UsageError
from mst.runtime.seeding import derive_seed


def classes(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(f"{name}{number}".encode())
    return root


def names(found: LabelledFolder) -> tuple[set[str], set[str]]:
    train, val = (
        {str(Path(part.paths.name(place)).relative_to(found.root)) for place in range(len(part.paths))}
        for part in (found.train, found.val)
    )
    return train, val


def test_by_class_seeded_and_the_same_in_another_place(tmp_path: Path) -> None:
    root = classes(tmp_path / "one", a=40, b=10, c=2)
    train, val = names(first := LabelledFolder(root))
    assert np.bincount(first.val.labels.numpy()).tolist() == [8, 2, 1]
    assert not train & val
    assert len(train | val) == 52
    # The definition: of each class, the images with the smallest hashes.
    for name, count in (("a", 40), ("b", 10)):
        ranked = sorted(range(count), key=lambda i: derive_seed(0, "split", f"{name}/{i}.jpg".encode().hex()))
        assert {f"{name}/{i}.jpg" for i in ranked[: count // 5]} == {one for one in val if one.startswith(name)}
    shutil.copytree(root, tmp_path / "far" / "two")
    assert names(LabelledFolder(tmp_path / "far" / "two")) == (train, val)
    assert names(LabelledFolder(root, labels=LabelOptions(split_seed=1)))[1] != val
    assert len(names(LabelledFolder(root, labels=LabelOptions(val_share=0.5)))[1]) == 26


def test_the_split_that_is_written_down_gives_the_same(tmp_path: Path) -> None:
    first = LabelledFolder(classes(tmp_path / "set", a=9, b=9))
    table = tmp_path / first.split.file
    table.write_bytes(first.split.table)
    again = LabelledFolder(tmp_path / "set", labels=LabelOptions(str(table)))
    assert names(again) == names(first)
    assert again.split.how == "column"
    assert first.split.file == f"split-{hashlib.sha256(table.read_bytes()).hexdigest()[:8]}.csv"


def test_copies_are_on_one_side(tmp_path: Path) -> None:
    root = classes(tmp_path, a=20, b=20)
    for number in range(20):
        shutil.copy(root / "a" / f"{number}.jpg", root / "a" / f"copy of {number}.jpg")
    found = LabelledFolder(root)
    assert found.split.copies == 20
    sides = [{Path(name).read_bytes() for name in map(str, (root / one for one in side))} for side in names(found)]
    assert not sides[0] & sides[1]


@given(st.lists(st.sampled_from([1, 2, 5000]).flatmap(lambda n: st.sampled_from([b"x" * n, b"x" * (n - 1) + b"y"]))))
def test_copies_by_definition(contents: list[bytes]) -> None:
    images = MemoryImages.of([np.frombuffer(content, np.uint8) for content in contents])
    assert copies_of(images).tolist() == [contents.index(content) for content in contents]


@pytest.mark.parametrize(("a", "message"), [(1, r"a \(1 image\)"), (2, r"a \(2 images, all the same\)")])
def test_a_class_that_cannot_be_split(tmp_path: Path, a: int, message: str) -> None:
    root = classes(tmp_path, a=a, b=5)
    for path in (root / "a").iterdir():
        path.write_bytes(b"same")
    with pytest.raises(DataError, match=f"1 of 2 classes cannot be split.*{message}"):
        LabelledFolder(root)


def test_names_of_parts(tmp_path: Path) -> None:
    classes(tmp_path / "Training", a=5, b=5)
    found = LabelledFolder(tmp_path)
    assert (found.split.how, len(found.val.paths)) == ("automatic", 2)
    classes(tmp_path / "Testing", a=3, b=3)
    found = LabelledFolder(tmp_path)  # as ever: test where there is nothing else
    assert (found.split.part, found.split.how, len(found.val.paths)) == ("test", "folders", 6)
    found = LabelledFolder(tmp_path, labels=LabelOptions(split="val"))
    assert (found.split.part, found.split.how, len(found.val.paths)) == ("val", "automatic", 2)
    classes(tmp_path / "validation", a=4, b=4)
    for asked, count in ((None, 8), ("val", 8), ("test", 6)):
        assert len(LabelledFolder(tmp_path, labels=LabelOptions(split=asked)).val.paths) == count  # type: ignore[arg-type]
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match="holds val/ and validation/: keep one"):
        LabelledFolder(tmp_path)


def test_images_on_both_sides_are_found_by_path_and_by_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path / "train", a=9)
    classes(tmp_path / "val", a=3, b=2)
    train, val = index_images(tmp_path / "train"), index_images(tmp_path / "val")
    shared = shared_images(train, val)
    assert (shared.looked, shared.found) == (5, 3)
    assert shared.first.endswith("val/a/0.jpg")
    assert shared_images(index_images(tmp_path), val).found == 5
    assert shared_images(train, index_images(tmp_path / "val" / "b")).found == 0
    tell_parts([str(tmp_path), str(tmp_path / "train"), str(tmp_path / "no")])
    told = capsys.readouterr().err
    assert told.count("warning") == 1
    assert "holds val/ beside train/, and their images are trained on as well" in told
