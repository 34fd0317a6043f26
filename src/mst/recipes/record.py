"""What a recipe is: a complete configuration and the promise that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

from mst.config.load import override
from mst.config.schema import RunConfig

DINO_CHANGES: dict[str, object] = {"objective.strategy": "none", "objective.restoration_weight": 0.0}
"""What turns MST into DINO: nothing is hidden, nothing is restored."""


@dataclass(frozen=True)
class Recipe:
    """One named run.

    Attributes:
        name: the word on the command line.
        summary: one line for the list.
        paper_row: the number of the paper that it aims at, or "none".
        command: the command that runs it.
        hardware: what it was run on, or what it is meant for.
        time: how long that takes, or "not measured yet".
        expected: the number it gives, or "not measured yet".
        note: what else a user should know.
        config: every setting.
    """

    name: str
    summary: str
    paper_row: str
    command: str
    hardware: str
    time: str
    expected: str
    note: str
    config: RunConfig


def named(config: RunConfig, name: str) -> RunConfig:
    """Return the configuration that says which recipe it came from."""
    return config.model_copy(update={"recipe": name})


def without_mst(config: RunConfig) -> RunConfig:
    """Return the DINO twin: the same run with strategy `none` and no restoration."""
    return override(config, DINO_CHANGES)
