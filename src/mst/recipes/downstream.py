"""What a recipe of a downstream task is: the options of one command, and the promise that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mst.config.keys import flag


@dataclass(frozen=True)
class TaskRecipe:
    """One named setting of `mst evaluate TASK` or `mst finetune`, used with `--recipe NAME`.

    Attributes:
        name: the word on the command line.
        summary: one line for the list.
        paper_row: the published number that it aims at, or "none".
        command: the command that runs it.
        hardware: what it was run on, or what it is meant for.
        time: how long that takes, or "not measured yet".
        expected: the number it gives, or "not measured yet".
        note: what else a user should know.
        task: the words between `mst` and the options: `evaluate segmentation`, `finetune`.
        options: each option without its dashes (`batch-size`) -> its value: text, number, on or off, tuple or None.
    """

    name: str
    summary: str
    paper_row: str
    command: str
    hardware: str
    time: str
    expected: str
    note: str
    task: str
    options: Mapping[str, object]

    def words(self) -> dict[str, list[str]]:
        """Return each option as the words of a command line, the flag first, by its flag."""
        return {flag(name): option_words(name, value) for name, value in self.options.items()}


def option_words(name: str, value: object) -> list[str]:
    """Return an option as it is written: `--size 32 32`, `--frozen`, `--no-frozen`."""
    if isinstance(value, bool):
        return [flag(name if value else f"no-{name}")]
    values = value if isinstance(value, tuple | list) else (value,)
    return [flag(name), *("none" if each is None else str(each) for each in values)]
