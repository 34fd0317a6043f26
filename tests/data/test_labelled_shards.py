"""Labelled sets in shards: the same images and classes as from class folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources.test_columns import NAMES, write
from data.sources.test_tar import pack, png
from mst.data.labelled import LabelledFolder, LabelOptions
from mst.errors import DataError, UsageError

TRAIN, VAL = [(0, "dog"), (1, "cat"), (2, "dog"), (3, "owl")], [(4, "owl"), (5, "cat")]
NUMBERS = {"cat": 0, "dog": 1, "owl": 2}


def folders(root: Path) -> Path:
    for part, rows in (("train", TRAIN), ("val", VAL)):
        for number, name in rows:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            (root / part / name / f"{number}.png").write_bytes(png(number))
    return root


def tars(root: Path) -> Path:
    root.mkdir()
    for file, rows in (("train-0", TRAIN[:2]), ("train-1", TRAIN[2:]), ("validation-0", VAL)):
        parts = {}
        for number, name in rows:
            parts |= {f"{number}.cls": name.encode(), f"{number}.png": png(number)}
        pack(root / f"{file}.tar", parts)
    return root


def parquets(root: Path) -> Path:
    for file, rows in (("train-0", TRAIN), ("testing-0", VAL)):
        images = [{"bytes": png(number), "path": None} for number, _ in rows]
        write(root / f"{file}.parquet", NAMES, image=images, label=[NUMBERS[name] for _, name in rows])
    return root


def hugging_face(root: Path) -> str:
    return f"hf:{parquets(root)}"


@pytest.mark.parametrize("make", [tars, parquets, hugging_face])
def test_the_same_as_class_folders(make: Callable[[Path], Path | str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    expected, found = LabelledFolder(folders(tmp_path / "x")), LabelledFolder(make(tmp_path / "y"))
    assert found.classes == expected.classes == ("cat", "dog", "owl")
    for one, other in ((found.train, expected.train), (found.val, expected.val)):
        assert one.labels.tolist() == other.labels.tolist()
        for place in range(len(one.paths)):
            assert one.paths.read_bytes(place) == other.paths.read_bytes(place)


def test_shards_without_a_split_are_split(tmp_path: Path) -> None:
    rows = {}
    for number in range(20):
        rows |= {f"{number}.json": b'{"label": %d}' % (number % 2), f"{number}.png": png(number)}
    pack(tmp_path / "all.tar", rows)
    found = LabelledFolder(tmp_path)
    assert (found.split.automatic, len(found.train.paths), len(found.val.paths)) == (True, 16, 4)
    assert found.classes == ("0", "1")


def test_what_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", {"0.png": png(0)})
    with pytest.raises(DataError, match=r"the images of train have no classes: a member cls, label or json"):
        LabelledFolder(tmp_path)
    pack(tmp_path / "train-0.tar", {"0.png": png(0), "0.cls": b"1"})
    pack(tmp_path / "val-0.tar", {"0.png": png(0), "0.cls": b"2"})
    with pytest.raises(DataError, match="val has 1 classes that train lacks: 2"):
        LabelledFolder(tmp_path)
    pack(tmp_path / "validation-0.tar", {"0.png": png(0), "0.cls": b"1"})
    with pytest.raises(UsageError, match="has two parts for val: keep one of them"):
        LabelledFolder(tmp_path)
    for name in ("train-0", "validation-0"):
        (tmp_path / f"{name}.tar").unlink()
    with pytest.raises(UsageError, match="has no split train: its splits are val"):
        LabelledFolder(tmp_path, labels=LabelOptions(split="val"))
    with pytest.raises(UsageError, match="names one split"):
        LabelledFolder(f"hf:{tmp_path}:train")
