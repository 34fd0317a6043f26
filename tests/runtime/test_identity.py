"""The identity of data: what it notices, what it does not, and what it costs."""

import json
import os
import time
from pathlib import Path

from mst.runtime.identity import DataIdentity, difference, identify, relative_names, sample_positions, together


def folder(root: Path, files: dict[str, bytes]) -> DataIdentity:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    paths = [os.fsencode(root / name) for name in sorted(files)]
    return identify(str(root), relative_names(paths), count=len(paths), files=paths)


FILES = {f"{kind}/{number}.png": bytes([number]) * 100 for kind in "ab" for number in range(8)}


def test_a_copy_is_the_same_data(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", FILES), folder(tmp_path / "two/deep", FILES)
    assert one.digest == two.digest
    assert difference(one, two) == ""
    assert one.name != two.name


def test_what_changed_is_said(tmp_path: Path) -> None:
    before = folder(tmp_path / "0", FILES)
    more = folder(tmp_path / "1", {**FILES, "a/9.png": b"new"})
    renamed = folder(tmp_path / "2", {name.replace("7", "8"): content for name, content in FILES.items()})
    same_size = folder(tmp_path / "3", {**FILES, "a/3.png": b"x" * 100})
    larger = folder(tmp_path / "4", {**FILES, "a/3.png": b"x" * 101})
    assert difference(before, more) == "17 images, not 16"
    assert difference(before, renamed) == "other file names"
    assert difference(before, same_size) == "other files under the same names"
    assert difference(before, larger) == "other files under the same names"


def test_annotations_count_to_the_last_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"1" * 200_000 + b"2" + b"1" * 200_000)
    before = identify("a", [b"x"], count=1, annotations=[file, b"labels"])
    file.write_bytes(b"1" * 200_000 + b"3" + b"1" * 200_000)
    assert difference(before, identify("a", [b"x"], count=1, annotations=[file, b"labels"])) == (
        "other annotations or labels"
    )
    assert before.digest != identify("a", [b"x"], count=1, annotations=[file, b"other"]).digest


def test_a_training_and_a_validation_set_are_not_exchanged() -> None:
    one, two = (identify("x", [name], count=1) for name in (b"1", b"2"))
    assert together("both", one, two).digest != together("both", two, one).digest
    assert together("both", one, two).count == 2


def test_the_record_survives_json_and_others_are_none() -> None:
    identity = identify("photos", [b"1"], count=1, annotations=[b"x"])
    assert DataIdentity.from_row(json.loads(json.dumps(identity.row()))) == identity
    for damaged in (None, [], "x", {}, {**identity.row(), "count": "1"}, {**identity.row(), "parts": 3}):
        assert DataIdentity.from_row(damaged) is None


def test_files_that_cannot_be_read_hold_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    files = [tmp_path / "pipe.png", tmp_path / "gone.png", tmp_path]
    identity = identify("x", [b"pipe.png", b"gone.png", b"."], count=3, files=files)
    assert identity.digest == identify("x", [b"pipe.png", b"gone.png", b"."], count=3, files=files).digest


def test_the_sample_is_even_and_a_million_names_are_cheap() -> None:
    assert sample_positions(10, 5) == [0, 2, 4, 6, 8]
    assert sample_positions(3) == [0, 1, 2]
    assert sample_positions(0) == []
    paths = [b"/data/images/n%04d/picture_%07d.jpg" % (n // 1000, n) for n in range(1_000_000)]
    started = time.perf_counter()
    assert relative_names(paths)[-1] == b"n0999/picture_0999999.jpg"
    identify("x", relative_names(paths), count=len(paths))
    assert time.perf_counter() - started < 10  # 0.6 s on one core of 2024
