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
        (["file"], DataError, "has no class folders"),
        (["val/a/1.jpg", "b/1.jpg"], UsageError, "has no folder train beside val/"),
        (["train/a/1.jpg", "Validation/a/1.jpg", "val/a/1.jpg"], UsageError, "holds Validation/ and val/: keep one"),
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


def test_what_is_no_class_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path, "train/a/1.jpg", "train/b[x]/2.jpg", "val/a/3.jpg", "train/loose.png", "train/.hid/4.jpg")
    folder(root, "train/@eaDir/t.jpg", "train/__MACOSX/a/1.jpg", "train/labels.csv")
    (root / "train/c").symlink_to("nowhere")
    (root / "val/loop").symlink_to("loop")
    data = LabelledFolder(root)
    assert data.classes == ("a", "b[x]")
    assert {(entry.kind, entry.count) for entry in data.passed.troubles} == {("link", 1), ("loose", 1)}
    told = capsys.readouterr().err
    assert told.count("warning:") == 2
    assert "1 of 2 classes have no image to score (val): b[x]" in told
    for part in ("train/c", "val/loop", "1 image beside the class folders", "train/loose.png"):
        assert part in told
    with pytest.raises(DataError, match="train/c"):
        LabelledFolder(root, strict=True)


def test_an_archive_with_one_more_folder(tmp_path: Path) -> None:
    folder(tmp_path, "flowers/train/a/1.jpg", "flowers/val/a/1.jpg", "__MACOSX/train/a/1.jpg")
    with pytest.raises(UsageError, match=r"has no folder train.*flowers has: give that folder"):
        LabelledFolder(tmp_path)


def test_class_names_of_every_kind(tmp_path: Path) -> None:
    names = ["ü", "u\u0308", "\u202ea", "n\nl", "-rf", "[x]", " sp ", "a.jpg", "y" * 255, "\udcff", "😀"]
    folder(tmp_path, *(f"{part}/{name}/{part}.jpg" for part in ("train", "val") for name in names))
    data = LabelledFolder(tmp_path)
    assert data.classes == tuple(sorted(names))
    assert data.train.labels.tolist() == data.val.labels.tolist() == list(range(11))


@pytest.mark.parametrize("how", ["copy", "link", "folder", "other", "empty"])
def test_validation_images_that_are_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder(tmp_path, "train/a/1.jpg")
    (tmp_path / "train/a/1.jpg").write_bytes(b"" if how == "empty" else b"picture")
    if how == "folder":
        (tmp_path / "val").symlink_to("train")
    else:
        folder(tmp_path, "val/a/x")
        target = tmp_path / "val/a/1.jpg"
        if how == "link":
            target.hardlink_to(tmp_path / "train/a/1.jpg")
        else:
            target.write_bytes({"copy": b"picture", "other": b"another", "empty": b""}[how])
    LabelledFolder(tmp_path)
    told = "1 of the 1 validation images looked at are training images too" in capsys.readouterr().err
    assert told is (how in {"copy", "link", "folder"})


@pytest.mark.parametrize(("name", "message"), [("y" * 300, "File name too long"), ("loop", "Too many levels")])
def test_trouble_of_the_system_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    folder(tmp_path, "set/train/a/1.jpg")
    (tmp_path / "set/val").symlink_to("val")
    for root in (tmp_path / name, tmp_path / "set"):
        with pytest.raises(UsageError, match=f"{message}|Too many levels"):
            LabelledFolder(root)


def test_limits_that_leave_classes_without_images_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        for number in range(6):
            (tmp_path / part / f"c{number}").mkdir(parents=True)
            for image in range(2):
                (tmp_path / part / f"c{number}" / f"{part}{number}{image}.jpg").write_bytes(
                    f"{part}{number}{image}".encode()
                )
    folder = LabelledFolder(tmp_path)
    folder.limited(6, None)
    assert "leaves" not in capsys.readouterr().err
    train, val = folder.limited(3, 4)
    assert (len(train.paths), len(val.paths)) == (3, 4)
    said = capsys.readouterr().err
    assert "the limit of 3 training images leaves 3 of 6 classes without any image to learn from" in said
    assert "the limit of 4 validation images leaves 2 of 6 classes without any image to score" in said
