"""Messages go to stderr, one line each, exactly as given."""

from __future__ import annotations

import pytest

from mst.runtime import logging


def test_messages_are_one_plain_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    long = "/data/[bold]set[/bold]/" + "x" * 300
    logging.info(long)
    logging.warn("slow")
    logging.error("bad")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [long, "warning: slow", "error: bad"]
