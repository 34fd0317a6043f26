from __future__ import annotations

from pathlib import Path

import pytest

from mst.data.labelled import LabelledFolder
from mst.errors import DataError, MstError, UsageError


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("val", ["val", "valid", "test"])
def test_classes_paths_and_labels(tmp_path: Path, val: str) -> None:
    folder(tmp_path, "train/b/2.jpg", "train/a/deep/1.jpg", "train/a/0.png", "train/c/3.jpg", f"{val}/c/4.jpg")
    data = LabelledFolder(tmp_path)
    assert data.classes == ("a", "b", "c")
    paths, labels = data.train
    assert [str(path.relative_to(tmp_path / "train")) for path in paths] == [
        "a/0.png",
        "a/deep/1.jpg",
        "b/2.jpg",
        "c/3.jpg",
    ]
    assert labels.tolist() == [0, 0, 1, 2]
    assert [path.name for path in data.val.paths] == ["4.jpg"]
    assert data.val.labels.tolist() == [2]


def test_evenly_takes_from_all_classes(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{part}/{c}/{i}.jpg" for part in ("train", "val") for c in "abc" for i in range(10)))
    few = LabelledFolder(tmp_path).train.evenly(6)
    assert few.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.parent.name for path in few.paths] == list("aabbcc")
    assert len(LabelledFolder(tmp_path).val.evenly(None).paths) == 30


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], UsageError, "does not exist"),
        (["file"], UsageError, "has no folder train"),
        (["train/a/1.jpg"], UsageError, "has no folder val or valid or test"),
        (["train/1.jpg", "val/a/1.jpg"], DataError, "train has no class folders"),
        (["train/a/1.jpg", "val/1.jpg"], DataError, "val has no class folders"),
        (["train/a/1.jpg", "train/b/no.txt", "val/a/1.jpg"], DataError, "train/b holds no images"),
        (["train/a/1.jpg", "val/a/1.jpg", "val/x/1.jpg"], DataError, "val has 1 class that .*train lacks: x"),
        (["train/a/1.jpg", "val/y/1.jpg", "val/x/1.jpg"], DataError, "val has 2 classes that .*train lacks: x, y"),
    ],
)
def test_bad_folders_get_one_clear_line(tmp_path: Path, names: list[str], error: type[MstError], message: str) -> None:
    folder(tmp_path / "root", *names)
    with pytest.raises(error, match=message) as caught:
        LabelledFolder(tmp_path / "root")
    assert "\n" not in str(caught.value)


def test_a_file_is_no_labelled_folder(tmp_path: Path) -> None:
    folder(tmp_path, "file")
    with pytest.raises(UsageError, match="is a file"):
        LabelledFolder(tmp_path / "file")
