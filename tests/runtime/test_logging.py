"""Messages go to stderr, one line each, exactly as given."""

from __future__ import annotations

import io
import os
import sys

import pytest
from rich.table import Table

from mst.runtime import logging
from mst.runtime.progress import TrainingProgress
from mst.terminal.output import emit, emit_json


def test_messages_are_one_plain_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    long = "/data/[bold]set[/bold]/" + "x" * 300
    logging.info(long)
    logging.warn("slow")
    logging.error("bad")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [long, "warning: slow", "error: bad"]


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class [/x]")
    table.add_row("b[red].png :smile:")
    logging.console.print(table)
    emit(table, "[/x] done")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "class [/x]" in text
        assert "b[red].png :smile:" in text
    assert "[/x] done" in out


def test_remarks_to_nobody_are_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    closed = io.StringIO()
    closed.close()
    for stream in (Gone(), closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        logging.warn("nobody hears")
        with TrainingProgress("training", lambda _: "", step=0, total_steps=2) as progress:
            progress.show(1, {})
            progress.show(2, {})


def test_output_shows_what_an_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    emit("caf\u00e9 " + os.fsdecode(b"\xff"))
    emit_json({"a": float("nan"), "name": os.fsdecode(b"\xff")})
    assert raw.getvalue() == b'caf\\xe9 \\udcff\n{\n  "a": null,\n  "name": "\\udcff"\n}\n'
