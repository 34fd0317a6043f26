"""Labels in tables, as people and their programs write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mst.data.labelled import LabelledFolder, LabelOptions
from mst.errors import DataError, MstError, UsageError


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


NAMES = ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.csv", b"path,label\na/1.jpg,cat\na/2.jpg,cat\nb/3.jpg,dog\nb/4.jpg,dog\n"),
        ("t.csv", b"a/1.jpg,cat\r\na/2.jpg,cat\r\nb/3.jpg,dog\r\nb/4.jpg,dog"),
        ("t.csv", b"\xef\xbb\xbfa/1.jpg;cat\n\na/2.jpg; cat\nb/3.jpg;dog\nb/4.jpg;dog\n;\n"),
        ("t.csv", "Image Path;Class\na/1.jpg;cat\na/2.jpg;cat\nb/3.jpg;dog\nb/4.jpg;dog\n".encode("utf-16")),
        ("t.tsv", b"label\tfile\ncat\ta/1.jpg\ncat\ta/2.jpg\ndog\tb/3.jpg\ndog\tb/4.jpg\n"),
        ("t.csv", b'"a/1.jpg","cat"\n"a/2.jpg","cat"\n"b/3.jpg","dog"\n"b/4.jpg","dog"\n'),
        ("t.csv", b"a/1.jpg   cat\na/2.jpg     cat\nb/3.jpg dog\nb/4.jpg   dog\n"),
        ("t.csv", b"id,label\na/1,cat\na/2,cat\nb/3,dog\nb/4,dog\n"),
        ("t.csv", b"photo_file,what\na/1.jpg,cat\na/2.jpg,cat\nb/3.jpg,dog\nb/4.jpg,dog\n"),
        ("t.csv", b"name,label\na\\1.jpg,cat\na\\2.jpg,cat\nb\\3.jpg,dog\nb\\4.jpg,dog\n"),
        ("t.csv", b"name,label\nC:\\x\\a\\1.jpg,cat\nC:\\x\\a\\2.jpg,cat\nC:\\x\\b\\3.jpg,dog\nC:\\x\\b\\4.jpg,dog\n"),
        ("t.csv", b"name,label\n/of/x/a/1.jpg,cat\n/of/x/a/2.jpg,cat\n/of/x/b/3.jpg,dog\n/of/x/b/4.jpg,dog\n"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_one_table_in_many_forms(tmp_path: Path, file: str, content: bytes, beside: bool) -> None:
    root = images(tmp_path / "images", *NAMES)
    table = (root if beside else tmp_path) / file
    table.write_bytes(content)
    found = LabelledFolder(table) if beside else LabelledFolder(root, labels=LabelOptions(str(table)))
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == found.val.labels.tolist() == [0, 1]
    both = {Path(part.paths.name(place)) for part in (found.train, found.val) for place in range(2)}
    assert both == {root / name for name in NAMES}


def test_a_column_splits_and_others_are_named(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    table = tmp_path / "t.csv"
    rows = ["a/1.jpg,x,cat,Training", "b/3.jpg,y,dog,train", "a/2.jpg,x,cat,validation", "b/4.jpg,y,dog,TEST"]
    table.write_text("image,who,what,set\n" + "\n".join(rows))
    with pytest.raises(DataError, match="does not tell which column holds the labels: name it with --label-column"):
        LabelledFolder(table)
    found = LabelledFolder(table, labels=LabelOptions(label_column="what"))
    assert (found.split.part, found.split.how) == ("val", "column")
    assert [found.val.paths.name(0), found.val.labels.tolist()] == [str(tmp_path / "a/2.jpg"), [0]]
    found = LabelledFolder(table, labels=LabelOptions(label_column="3", split="test"))
    assert [found.val.paths.name(0), found.val.labels.tolist()] == [str(tmp_path / "b/4.jpg"), [1]]


def test_numbers_are_in_order_and_repeats_and_gaps_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path, *(f"{number}.jpg" for number in range(30)))
    rows = [f"{number}.jpg,{10 if number % 2 else 9}" for number in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows, rows[0], "gone.jpg,9", "1.jpg,"]))
    found = LabelledFolder(tmp_path / "t.csv")
    assert found.classes == ("9", "10")
    assert len(found.train.paths) + len(found.val.paths) == 30
    told = capsys.readouterr().err
    assert "1 of 33 rows without a label, the first in line 34" in told
    assert "1 of 33 rows that repeat another, the first in line 32" in told
    assert "1 listed file that does not exist" in told
    with pytest.raises(DataError, match=r"gone\.jpg"):
        LabelledFolder(tmp_path / "t.csv", strict=True)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", DataError, "t.csv is empty"),
        ("path,label\n", DataError, "has a header and no rows"),
        ("a/1.jpg\na/2.jpg\n", DataError, "has one column"),
        ("a/1.jpg,\na/2.jpg,\n", DataError, "no row has a label in column 2"),
        ("path,label\n,cat\n", DataError, "line 2: no path"),
        ("a/1.jpg,cat\na/1.jpg,dog\n", DataError, "has two labels: cat in line 1, dog in line 2"),
        ("path,label,split\na/1.jpg,cat,train\na/1.jpg,cat,val\n", DataError, "has two parts: train in line 2"),
        ("a/1.jpg,cat\nx.jpg,dog\n", DataError, "1 of 2 listed files do not exist, at most 5% may.*x.jpg.*--data"),
        ("path,label,split\na/1.jpg,cat,3\n", DataError, "line 2: split '3': must be one of train, training"),
        ("path,label,split\na/1.jpg,cat,val\n", DataError, "no row's split is train"),
        (
            "path,label,split\na/1.jpg,cat,train\nb/3.jpg,dog,val\n",
            DataError,
            "class of val has no training image: d",
        ),
        ("a/1.jpg,cat\na/2.jpg,cat\nb/3.jpg,dog\n", DataError, r"1 of 2 classes cannot be split.*dog \(1 image\)"),
        ('"a/1.jpg,cat\n' * 3, DataError, "line 1: .*is a quote not closed?"),
        ("a\0b", UsageError, "is no text"),
    ],
)
def test_bad_tables_get_one_clear_line(tmp_path: Path, content: str, error: type[MstError], message: str) -> None:
    images(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(error, match=message) as caught:
        LabelledFolder(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text("a/1.jpg,cat\na/2.jpg,cat\n")
    table = tmp_path / "t.csv"
    for root, labels, message in (  # what, how, what is said
        (tmp_path, LabelOptions(label_column="x"), "--label-column belongs to a table"),
        (table, LabelOptions(label_column="x"), "--label-column x: .* has no such column: it has 1, 2"),
        (table, LabelOptions(str(table)), "two tables"),
        (tmp_path, LabelOptions(str(tmp_path / "no.csv")), "does not exist"),
        (tmp_path, LabelOptions(split="test"), "--split test: .* has no images for testing"),
    ):
        with pytest.raises(UsageError, match=message):
            LabelledFolder(root, labels=labels)
    for wrong in ({"val_share": 0.0}, {"split_seed": -1}, {"split": "train"}):
        with pytest.raises(UsageError, match="--"):
            LabelOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "path,label\na/1.jpg,0,33\na/2.jpg,0,67\n",
            "line 2: 3 cells, and 2 in line 1: put cells that contain a comma",
        ),
        ("path,label\na/1.jpg,big\na/2.jpg,small, wild\n", "line 3: 3 cells, and 2 in line 1"),
        ("a/1.jpg big cat\na/2.jpg dog\n", "line 1|has the columns|3 cells"),
        ("old,new,label\na/1.jpg,b/3.jpg,x\na/2.jpg,b/4.jpg,y\n", "which of them holds the images: name it with"),
        ("path,label,split\na/1.jpg,x,siteA\na/2.jpg,y,siteB\n", "line 2: split 'siteA': must be one of"),
    ],
)
def test_what_cannot_be_known_is_refused(tmp_path: Path, content: str, said: str) -> None:
    images(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        LabelledFolder(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("mask,image,label", "m/{1}.png,{0},{2}"),
        ("original_filename,path,label", "old-{1}.jpg,{0},{2}"),
        ("filename,x,y,kind", "{0},1{1},2{1},{2}"),
        ("file,dataset,label", "{0},site{1},{2}"),
        ("file,label,note", "{0},{2},"),
        ("file,label", "{0},{2},,"),
    ],
)
def test_the_columns_that_are_meant(tmp_path: Path, head: str, rows: str) -> None:
    images(tmp_path, *NAMES)
    images(tmp_path, *(f"m/{number}.png" for number in range(4)))
    lines = [rows.format(name, number, "cat" if name[0] == "a" else "dog") for number, name in enumerate(NAMES)]
    (tmp_path / "t.csv").write_text("\n".join([head, *lines]))
    label = "kind" if "kind" in head else None
    found = LabelledFolder(tmp_path / "t.csv", labels=LabelOptions(label_column=label))
    assert found.classes == ("cat", "dog")
    both = {Path(part.paths.name(place)) for part in (found.train, found.val) for place in range(2)}
    assert both == {tmp_path / name for name in NAMES}
    assert found.split.how == "automatic"


def test_a_fold_of_parts_is_a_split(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    rows = ["a/1.jpg,cat,train", "b/3.jpg,dog,train", "a/2.jpg,cat,val", "b/4.jpg,dog,val"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,fold", *rows]))
    assert LabelledFolder(tmp_path / "t.csv").split.how == "column"


def test_no_number_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path, *NAMES, "c/5.jpg", "c/6.jpg")
    rows = [f"{name},{place // 2 + 9}" for place, name in enumerate(NAMES)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows, "c/5.jpg,nan", "c/6.jpg,NaN"]))
    assert LabelledFolder(tmp_path / "t.csv").classes == ("9", "10")
    assert "left out 2 of 6 rows without a label" in capsys.readouterr().err


def test_bare_names_are_found_below_where_only_one_file_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text("path;label\n1.jpg;cat\n2.jpg;cat\n3.jpg;dog\n4.jpg;dog\n")
    found = LabelledFolder(tmp_path / "t.csv")
    both = {Path(part.paths.name(place)) for part in (found.train, found.val) for place in range(2)}
    assert both == {tmp_path / name for name in NAMES}
    said = capsys.readouterr().err
    assert "names without a folder are found below" in said
    assert "2 classes by t.csv, column label: cat, dog" in said
    images(tmp_path, "c/1.jpg")
    with pytest.raises(DataError, match=r"1 of 4 listed files do not exist, at most 5% may: .* is 1\.jpg"):
        LabelledFolder(tmp_path / "t.csv")


def test_two_columns_of_labels_are_asked_about_where_they_differ(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    rows = ["a/1.jpg,0,cat,3", "a/2.jpg,0,cat,4", "b/3.jpg,1,dog,3", "b/4.jpg,1,dog,4"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,class,note", *rows]))
    assert LabelledFolder(tmp_path / "t.csv").classes == ("0", "1")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,other,class", *rows]))
    with pytest.raises(DataError, match="has two columns of labels, label and class: name one with --label-column"):
        LabelledFolder(tmp_path / "t.csv")
    assert LabelledFolder(tmp_path / "t.csv", labels=LabelOptions(label_column="class")).classes == ("3", "4")


LABELLED = [f"{name},{'cat' if name[0] == 'a' else 'dog'}" for name in NAMES]


@pytest.mark.parametrize("first", ["# made by a tool", "# a, b, c", "sep=,"])
def test_first_lines_that_are_no_rows(first: str, tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text("\n".join([first, "path,label", *LABELLED]))
    assert LabelledFolder(tmp_path / "t.csv").classes == ("cat", "dog")


def test_a_word_that_is_no_part_beside_parts_is_refused(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    rows = [f"{row},{'train' if place % 2 else 'eval'}" for place, row in enumerate(LABELLED)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,set", *rows]))
    with pytest.raises(DataError, match="set 'eval': must be one of train"):
        LabelledFolder(tmp_path / "t.csv")


def test_columns_of_labels_are_compared_over_all_rows_that_have_both(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(100)]
    images(tmp_path, *names)
    for head, last, refused in (
        ("class", lambda number: number // 85, True),
        ("category", lambda _: "", False),
        ("category", lambda _: "animal", False),
        ("class_name", lambda number: "" if number == 80 else f"c{number // 70}", False),
    ):
        rows = [f"{name},{number // 70},{last(number)}" for number, name in enumerate(names)]
        (tmp_path / "t.csv").write_text("\n".join([f"path,label,{head}", *rows]))
        if refused:
            with pytest.raises(DataError, match="has two columns of labels, label and class"):
                LabelledFolder(tmp_path / "t.csv")
        else:
            assert LabelledFolder(tmp_path / "t.csv").classes == ("0", "1")


def test_y_beside_paths_called_x_is_the_label(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    rows = [f"{place},{row}" for place, row in enumerate(LABELLED)]
    (tmp_path / "t.csv").write_text("\n".join([",x,y", *rows]))
    assert LabelledFolder(tmp_path / "t.csv").classes == ("cat", "dog")


def test_a_missing_image_is_not_looked_for_among_masks(tmp_path: Path) -> None:
    names = [f"{number:03d}.png" for number in range(40)]
    images(tmp_path, *names[1:], *(f"masks/{name}" for name in names))
    rows = [f"{name},{number % 2}" for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    found = LabelledFolder(tmp_path / "t.csv")
    assert len(found.train.paths) + len(found.val.paths) == 39
    assert not any("masks" in found.train.paths.name(place) for place in range(len(found.train.paths)))


def test_folders_are_not_searched_for_paths_with_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "walk", lambda _: pytest.fail("searched"))
    images(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text("path,label\nx/1.jpg,cat\nx/2.jpg,dog\n")
    with pytest.raises(DataError, match="2 of 2 listed files do not exist"):
        LabelledFolder(tmp_path / "t.csv")
