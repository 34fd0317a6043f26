"""Rows that outlive torn writes, and JSON that every reader takes."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import resource
from pathlib import Path

import pytest

from mst.runtime.storage.record import drop_rows
from mst.runtime.storage.results import Result, append_jsonl, plain_json, read_jsonl
from mst.runtime.storage.tables import csv_lines


def test_a_torn_row_swallows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "results.jsonl"
    append_jsonl(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    append_jsonl(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


DAMAGE = [
    b"\xff\xfe{}",
    b'{"step": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b"[1, 2]",
    b"null",
    b'"text"',
    b"\x00\x00",
    b'{"step": 1}}',
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_rows_are_left_out_and_the_others_stay(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 2}\n{"step": 3}\n')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    drop_rows(path, beyond=2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_only_numbers_that_json_has(tmp_path: Path) -> None:
    row = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (float("-inf"), "x")}}
    assert plain_json(row) == {"a": None, "b": [1.5, None], "c": {"d": [None, "x"]}}
    append_jsonl(tmp_path / "r", row)
    append_jsonl(tmp_path / "r", {"name": os.fsdecode(b"caf\xe9")})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "r").read_text("ascii").splitlines()]
    assert os.fsencode(rows[1]["name"]) == b"caf\xe9"


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_the_file_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.jsonl")
    assert read_jsonl(tmp_path / "results.jsonl") == []
    drop_rows(tmp_path / "results.jsonl", beyond=1)
    with pytest.raises(OSError, match="it is no file"):
        append_jsonl(tmp_path / "results.jsonl", {})


@pytest.mark.parametrize(
    "change",
    [
        *({"task": 3}, {"metrics": {}, "more": 1}, {"metrics": [1]}, {"metrics": {"top1": "x"}}, {"metrics": None}),
        *({"metrics": {"top1": True}}, {"metrics": {"top1": None}}, {"protocol": 1}, {"extra": []}),
        *({"backbone": 3}, {"data": None}, {"metrics": {"top1": 10**400}}, {"extra": {"unreadable": 1}}),
    ],
)
def test_a_damaged_row_is_no_result(change: dict[str, object]) -> None:
    row = Result("finetune", {"top1": 50.0}, {"lr": 0.1}, extra={"val_images": 3}).row()
    assert Result.from_row(row) == Result("finetune", {"top1": 50.0}, {"lr": 0.1}, extra={"val_images": 3})
    assert Result.from_row({**row, **change}) is None
    assert Result.from_row({"task": "finetune"}) is None


def test_a_row_for_which_there_is_no_room_leaves_the_others(tmp_path: Path) -> None:
    """A disk that is full takes a part of a row without an error."""
    path = tmp_path / "results.jsonl"
    append_jsonl(path, {"step": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append_jsonl(path, {"step": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    append_jsonl(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("seed", range(20))
def test_tables_are_read_back_as_they_were(seed: int) -> None:
    draw = random.Random(seed)
    rows = [["".join(draw.choices("ab,;\"\r\n\t '\u00e9", k=draw.randrange(5))) for _ in range(3)] for _ in range(50)]
    rows = [row for row in rows if any(row)]
    assert list(csv.reader(io.StringIO(csv_lines(rows), newline=""), strict=True)) == rows
    assert csv_lines([[None, 3, 0.5]]) == ",3,0.5\n"
