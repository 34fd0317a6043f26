"""What `--help` says beside a command's own options: the settings that matter, with the values of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.table import Table

from mst.config.keys import SHORT, flag, setting_fields
from mst.config.load import flatten
from mst.config.schema import RunConfig
from mst.recipes import base_config
from mst.terminal.output import emit

RECIPE_FIRST = {"mst pretrain", "mst plan", "mst bench"}
CHOSEN = {"views", "model", "train", "optimizer"}
"""Sections whose settings are chosen for the images by a recipe that says so."""
FIRST = (
    *("data.train", "data.channels", "monitor.knn_data", "model.backbone", "model.init_from", "views.global_size"),
    *("views.local_size", "train.epochs", "train.batch_size", "train.accumulate", "optimizer.lr", "objective.strategy"),
    *("runtime.device", "runtime.processes", "runtime.seed", "checkpoint.every_steps"),
)
"""Settings that matter to most users, shown first; the rest follows with --help-all."""

_collected: list[type[Any]] | None = None


@contextmanager
def records_of_help() -> Iterator[list[type[Any]]]:
    """Inside, help is not shown: the records whose options it would show are collected."""
    global _collected  # noqa: PLW0603  (it is the process's)
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def taken_note(kind: type[Any]) -> bool:
    """Return whether a record is collected in place of its help."""
    if _collected is None:
        return False
    _collected.append(kind)
    return True


def show_settings(argv: Sequence[str], prog: str) -> None:
    """Write the settings that matter most, with the values of the recipe that the words name, and where the others are.

    Raises:
        ConfigError: they name no recipe.
    """
    if _collected is not None:
        return
    recipe = _recipe_of(argv, prog)
    config = base_config(recipe) if recipe else RunConfig()
    values, fields_, short = flatten(config), setting_fields(), {key: name for name, key in SHORT.items()}
    table = Table("setting", f"in {recipe}" if recipe else "default", "what it is", box=None, pad_edge=False)
    for key in FIRST:
        names = flag(key) + (f", {flag(short[key])}" if key in short else "")
        about = " ".join((fields_[key].description or "").split())
        table.add_row(names, _written_value(config, key, values[key], about), about)
    more = f" {recipe}" if recipe else " RECIPE"
    own = "" if recipe else f"{prog} RECIPE --help shows a recipe's values; "
    emit(table, f"\n{own}{prog}{more} --help-all lists all {len(fields_)} settings")


def _recipe_of(argv: Sequence[str], prog: str) -> str:
    """Return the recipe that words name: the first, or that after --recipe; "" = none."""
    if prog in RECIPE_FIRST:
        return argv[0] if not argv[0].startswith("-") else ""
    return next((argv[place + 1] for place, word in enumerate(argv[:-1]) if word == "--recipe"), "")


def _written_value(config: RunConfig, key: str, value: object, about: str) -> str:
    """Return a value in words; of a recipe that leaves its settings to the images, that it is chosen for them."""
    choice = config.choice
    if choice is not None and not choice.facts and key not in choice.given and key.partition(".")[0] in CHOSEN:
        return "none" if key == "model.init_from" else "chosen"
    if value is None:
        return "derived" if "None" in about else "none"
    return " ".join(map(str, value)) or "-" if isinstance(value, tuple) else str(value)
