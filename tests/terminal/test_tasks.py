"""The first word of `mst evaluate` and `mst predict`: overview, hand-over, nearest task."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mst.commands import evaluate, predict
from mst.errors import UsageError
from mst.terminal.tasks import run_first_word


@pytest.mark.parametrize(("command", "prog"), [(evaluate, "mst evaluate"), (predict, "mst predict")])
@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_task(
    command: object, prog: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {prog} {'|'.join(command.TASKS)} --")
    assert all(f"{prog} {task} --help" in shown for task in command.TASKS)


def test_the_other_words_reach_the_task() -> None:
    given: list[Sequence[str]] = []

    def task(argv: Sequence[str]) -> int:
        given.append(argv)
        return 7

    assert run_first_word(["one", "--two", "3"], {"one": task}, prog="mst x", noun="task", options="") == 7
    assert given == [["--two", "3"]]


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        (evaluate, "segmentatoin", "unknown evaluation segmentatoin: use knn, .*; did you mean segmentation[?]$"),
        (predict, "detektion", "unknown prediction detektion: use .*detection; did you mean detection[?]$"),
        (predict, "xyz", "unknown prediction xyz: use classification, segmentation, detection$"),
    ],
)
def test_an_unknown_task(command: object, word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command.run([word])
