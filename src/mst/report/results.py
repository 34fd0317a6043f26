"""Results side by side: what the untrained and the trained backbone score under the same protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mst.report.datasets import data_key, data_names, drawn_labels
from mst.report.reading import FINETUNE, Row, is_number
from mst.report.rows.uncertainty import SE, SPREAD, error_of, error_of_difference
from mst.report.rows.variants import protocol_key, variants
from mst.runtime.noise import is_clear

JUDGING = ("baseline", "verdict")
"""Tasks of rows that say whether a training helped (`mst.report.verdict`); they compare no two networks."""
TASKS = {
    FINETUNE: "Fine-tuning",
    "knn": "k-NN classification",
    "linear": "Linear probe",
    "logistic": "Logistic regression",
    "retrieval": "Retrieval",
    "patch_segmentation": "Segmentation from patch tokens",
    "segmentation": "Segmentation",
    "detection": "Detection",
    "objectness": "Objects from attention",
    "patch_objectness": "Objects from patch tokens",
}
HEADLINES = {
    FINETUNE: ("top1", "balanced_accuracy"),
    "knn": ("top1",),
    "linear": ("top1",),
    "logistic": ("top1",),
    "retrieval": ("map", "recall_at_1"),
    "patch_segmentation": ("miou", "aacc"),
    "segmentation": ("miou", "aacc"),
    "detection": ("ap_box", "ap_mask"),
    "objectness": ("pointing", "jaccard", "corloc"),
    "patch_objectness": ("jaccard", "corloc"),
}
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC, one class against the rest",
    "map": "mAP",
    "miou": "mean IoU",
    "macc": "mean class accuracy",
    "aacc": "pixel accuracy",
    "ap_box": "box AP",
    "ap_mask": "mask AP",
    "jaccard": "Jaccard",
    "best_jaccard": "Jaccard with the object that fits best",
    "jaccard_everything": "Jaccard of the whole image",
    "jaccard_centre": "Jaccard of a box in the middle",
    "jaccard_colour": "Jaccard of colours alone",
    "pointing": "most attended patch on an object",
    "pointing_centre": "middle of the image on an object",
    "mass_inside": "share of the attention on objects",
    "mass_inside_even": "share of the image that is object",
    "corloc": "CorLoc",
    "corloc_colour": "CorLoc of colours alone",
    "top1_best_on_val": "top-1, learning rate best on validation",
    "top5_best_on_val": "top-5, learning rate best on validation",
    "top1_held_out": "top-1 on the held-out part of train",
}


@dataclass(frozen=True)
class Comparison:
    """One metric of one task.

    Attributes:
        task: its title.
        metric: its title.
        before: of the untrained backbone, percent; None = not measured.
        after: of the trained backbone; None = not measured.
        before_se: standard error of `before`; None = unknown.
        after_se: standard error of `after`.
        change_se: standard error of the difference; smaller than of two separate numbers on the same images.
        headline: whether it is among the task's main numbers.
        images: validation images, where known.
        data: name of the data set, where the results are of several.
        alone: whether the task trains the network, so that there is no untrained one to compare with.
        frozen: whether the backbone stayed as it was.
        labels: how many labels were used and how often they were drawn, where not all of them once.
        variant: settings of the protocol, where there are results of the task under several.
    """

    task: str
    metric: str
    before: float | None
    after: float | None
    headline: bool
    images: int | None
    data: str = ""

    alone: bool = False
    frozen: bool = True
    labels: str = ""
    before_se: float | None = None
    after_se: float | None = None
    change_se: float | None = None
    variant: str = ""

    @property
    def title(self) -> str:
        """The task, the data where they are several, and whether the backbone was trained for it."""
        said = [part for part in (self.data, self.variant, self.labels) if part]
        if not self.frozen and not self.alone:
            said.append("backbone trained for it")
        return self.task + (f" ({', '.join(said)})" if said else "")

    @property
    def change(self) -> float | None:
        """Points gained."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def within_noise(self) -> bool:
        """Whether the difference may be chance: not above two of its standard errors."""
        return self.change is not None and self.change_se is not None and not is_clear(self.change, self.change_se)

    @property
    def direction(self) -> str:
        """`up`, `down`, or `even` within noise, for colours."""
        if self.within_noise or not self.change:
            return "even"
        return "up" if self.change > 0 else "down"


def comparisons(results: Sequence[Row]) -> list[Comparison]:
    """Pair untrained and trained rows of the same task and protocol; of repeated evaluations the last counts."""
    pairs: dict[tuple[str, str], dict[bool, Row]] = {}
    for row in (each for each in results if each.get("task") not in JUDGING):
        if isinstance(row.get("metrics"), Mapping):
            same = [row.get("protocol"), data_key(row), drawn_labels(row)]
            key = (str(row.get("task", "")), json.dumps(same, sort_keys=True))
            pairs.setdefault(key, {})[is_untrained(row)] = row
    names = data_names(row for pair in pairs.values() for row in pair.values())
    of_task: dict[str, list[Row]] = {}
    for (task, _), pair in pairs.items():
        of_task.setdefault(task, []).append(next(iter(pair.values())))
    unlike = {task: variants(rows) for task, rows in of_task.items()}
    return [row for (task, _), pair in pairs.items() for row in _compare(task, pair, names, unlike[task])]


def is_untrained(row: Row) -> bool:
    """Whether a result is that of fresh weights; after a fine-tuning they no longer are."""
    return row.get("task") != FINETUNE and str(row.get("backbone", "")).startswith("random")


def _compare(
    task: str, pair: Mapping[bool, Row], names: Mapping[str, str], unlike: Mapping[str, str]
) -> list[Comparison]:
    before, after = (_metrics(pair.get(untrained)) for untrained in (True, False))
    headlines = HEADLINES.get(task, ())
    extra = next(iter(pair.values())).get("extra")
    images = extra.get("val_images") if isinstance(extra, Mapping) else None
    data = names.get(data_key(next(iter(pair.values()))), "")
    metrics = sorted(dict.fromkeys([*after, *before]), key=lambda name: name not in headlines)
    return [
        Comparison(
            TASKS.get(task, task.replace("_", " ")),
            metric_title(name),
            before.get(name),
            after.get(name),
            name in headlines or not headlines,
            images,
            data if len(names) > 1 else "",
            task == FINETUNE,
            _frozen(task, next(iter(pair.values())).get("protocol")),
            _labels(next(iter(pair.values())).get("protocol")),
            error_of(pair.get(True), name),
            error_of(pair.get(False), name),
            error_of_difference(pair.get(True), pair.get(False), name),
            unlike[protocol_key(next(iter(pair.values())))],
        )
        for name in metrics
        if not name.endswith(SE)
    ]


def _frozen(task: str, protocol: object) -> bool:
    """Whether a task leaves the backbone as it is."""
    settings = protocol if isinstance(protocol, Mapping) else {}
    if task == "detection":
        return settings.get("frozen") is True
    return task != FINETUNE and settings.get("train_backbone") is not True


def _labels(protocol: object) -> str:
    """Return how many labels a protocol uses and how many draws it has, in words; "" for all of them, once."""
    settings = protocol if isinstance(protocol, Mapping) else {}
    labels = settings.get("labels")
    asked = labels if isinstance(labels, Mapping) else {}
    share, each, draws = asked.get("train_share"), asked.get("train_per_class"), settings.get("seeds")
    said = [f"{100 * share:g} % of the labels"] if is_number(share) and share < 1 else []
    said += [f"{each:g} labels a class"] if is_number(each) else []
    return ", ".join([*said, f"{draws:g} draws"] if is_number(draws) else said)


def _metrics(row: Row | None) -> dict[str, Any]:
    return {name: value for name, value in row["metrics"].items() if is_number(value)} if row else {}


def metric_title(name: str) -> str:
    """`top1_k10` -> `top-1, k = 10`; `top1_spread` -> `top-1, spread of the draws`."""
    if name.endswith(SPREAD):
        return f"{metric_title(name.removesuffix(SPREAD))}, spread of the draws"
    base, separator, neighbors = name.rpartition("_k")
    if separator and neighbors.isdigit():
        return f"{METRICS.get(base, base)}, k = {neighbors}"
    return METRICS.get(name, name.replace("_at_", "@").replace("_", " "))
