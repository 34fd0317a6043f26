"""What the tasks of `mst evaluate` share: the options every one has, and how a result is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from rich.table import Table

from mst.parallel.launch import wanted_here
from mst.parallel.local import run_here
from mst.paths import PathText, SourceText
from mst.runtime.noise import with_error
from mst.runtime.storage.results import Result
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import RecipeOption, parse_words

BESIDE = ("_se", "_spread")
"""Endings of numbers that are shown beside the metric before them."""
SHOWN_CLASSES = 10
COMPARED = ("knn", "linear", "logistic", "patch_segmentation", "segmentation")
"""Tasks that say whether training helped."""
IMAGE_COUNTS = {"train_images": "training", "val_images": "validation"}
"""Keys of a result's extra, and what they count."""


@dataclass(frozen=True)
class Common(RecipeOption):
    """The backbone and the data.

    Attributes:
        backbone: a run folder, a backbone file, `timm:NAME`, or `NAME=FILE` (a timm name and a file of weights);
            `random:` before it means the same network with fresh weights.
        data: the labelled folder, a table (.csv, .tsv) of paths and labels, or shards: a folder, a pattern, hf:NAME, an
            address.
        out: folder whose results.jsonl gets the row; none = the run folder of the backbone, if it has one.
        device: auto, cpu, cuda or cuda:N.
        seed: of every random draw in the evaluation, and of the weights after `random:`.
        processes: on this machine, which share the work; auto = one a GPU. torchrun and srun start their own.
        json: one JSON object on stdout instead of a table.
    """

    backbone: SourceText
    data: SourceText
    out: PathText | None = None
    device: str = "auto"
    seed: int = 0
    processes: int | Literal["auto"] = 1
    json: bool = False


def run_task(task: str, arguments: type[Common], evaluate: Callable[..., Result], argv: Sequence[str]) -> int:
    """Run one task of `mst evaluate`; return the exit status.

    Args:
        task: the word after `mst evaluate`.
        arguments: what may be given: the same names as the keywords of `evaluate`.
        evaluate: the task's function of the Python API.
        argv: the words after the task.
    """
    a = parse_words(arguments, argv, prog=f"mst evaluate {task}")
    if a is None:
        return 0
    if (processes := wanted_here(a.processes, flag="--processes")) > 1:
        return run_here(["evaluate", task, *argv], processes)
    given = {own.name: getattr(a, own.name) for own in fields(a) if own.name not in {"json", "recipe", "processes"}}
    return show(evaluate(**given), json=a.json)


def show(result: Result, *, json: bool) -> int:
    """Print a result as a table, or as one JSON object; return the exit status."""
    if json:
        emit_json(result.row())
        return 0
    table = Table(f"{result.task}, {result.data}", result.backbone, "", box=None, pad_edge=False)
    for name, value in result.metrics.items():
        if not name.endswith(BESIDE):
            table.add_row(name, f"{with_error(value, result.metrics.get(f'{name}_se'))} %", _draws(result, name))
    emit(table)
    if result.task == "detection":
        emit("± of AP, AP50 and AP75: bootstrap over images; of sizes and recalls it is not measured")
    if result.extra.get("recalls"):
        emit(_recalls(result))
    if result.extra.get("per_class"):
        classes = Table("class", "IoU %", "accuracy %", box=None, pad_edge=False)
        for row in result.extra["per_class"]:
            classes.add_row(row["name"], *(_percent(row[key]) for key in ("iou", "accuracy")))
        emit(classes)
    first = "first draw: " if "draws" in result.extra else ""
    if "lr" in result.extra:
        emit(f"{first}learning rate {result.extra['lr']:g} of {_list(result.protocol['lrs'])}")
    if "penalty" in result.extra:
        steps = result.protocol["iterations"]
        more = f", stopped after {steps} steps, before its tolerance: --iterations {4 * steps} goes on"
        solved = "" if result.extra["converged"] else more
        emit(f"{first}penalty {result.extra['penalty']:g} of {_list(result.protocol['penalties'])}{solved}")
    parts = [(key, word) for key, word in IMAGE_COUNTS.items() if key in result.extra]
    counts = f"{' and '.join(f'{result.extra[key]} {word}' for key, word in parts)} images"
    left_out = len(result.extra.get("unreadable", []))
    emit(f"{counts}{f', {left_out} left out as unreadable' if left_out else ''}")
    for part, kinds in _left_out(result.extra.get("left_out", {})):
        emit(f"{part}annotations: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    if (verdict := result.extra.get("verdict")) is not None:
        emit(f"does it help? {verdict['sentence']}")
    elif result.task in COMPARED and not result.backbone.startswith("random:"):
        emit("does it help? not compared: --compare measures untrained weights and what needs no network")
    return 0


def _draws(result: Result, name: str) -> str:
    """Return how much the draws of `--seeds` differ, or ""."""
    spread = result.metrics.get(f"{name}_spread")
    return "" if spread is None else f"spread of {result.protocol.get('seeds')} draws {spread:.2f}"


def _recalls(result: Result) -> Table:
    """Return a table of the classes: images, recall with standard error, precision; the worst first, ten at most."""
    known = [row for row in result.extra["recalls"] if row["recall"] is not None]
    title = "class" if len(known) <= SHOWN_CLASSES else f"worst {SHOWN_CLASSES} of {len(known)} classes"
    if "draws" in result.extra:
        title += " (first draw)"
    table = Table(title, "images", "recall %", "precision %", box=None, pad_edge=False)
    for row in sorted(known, key=lambda row: row["recall"])[:SHOWN_CLASSES]:
        recall = with_error(row["recall"], row["recall_se"])
        precision = "-" if row["precision"] is None else f"{row['precision']:.1f}"
        table.add_row(row["name"], str(row["images"]), recall, precision)
    return table


def _left_out(counts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Yield parts of a data set and the records that do not count in them, by kind."""
    parts = {f"{part} ": kinds for part, kinds in counts.items() if isinstance(kinds, Mapping)}
    yield from ((part, kinds) for part, kinds in (parts or {"": counts}).items() if kinds)


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"
