"""What a classification of labelled images comes to: numbers with standard errors, and where it goes wrong.

Accuracy alone says little where there are few classes or one is much larger: then balanced accuracy, each class's
recall, the area under the ROC curve, the confusion matrix and the worst errors stand beside it.
Letters: n images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mst.evaluate.common.metrics import accuracy, confusion_matrix
from mst.evaluate.common.uncertainty import auroc, balanced_accuracy, recalls
from mst.runtime.answers import Answers
from mst.runtime.noise import accuracy_se

FEW_CLASSES, UNBALANCED = 10, 1.5
"""So many classes, or a largest class so many times the smallest, ask for more than accuracy."""
TOP5_ABOVE = 10
"""Top-5 is reported for more classes than this: of ten, half would be among five."""
LARGEST_MATRIX = 50
"""A confusion matrix of more classes is kept as a file only, not in the row."""
WORST = 24
"""Errors that are listed and drawn."""


@dataclass(frozen=True)
class Outcome:
    """A classifier's answers.

    Attributes:
        probabilities: [n, K], float64, rows add up to 1, comparable between images.
        labels: true classes [n], int64.
        ranks: how many classes rank before the true one [n] (`rank_of_label`).
        names: of the images [n].
        positions: of the images in their set [n].
        classes: names of the K classes.
    """

    probabilities: Tensor
    labels: Tensor
    ranks: Tensor
    names: Sequence[str]
    positions: Sequence[int]
    classes: Sequence[str]

    @property
    def predictions(self) -> Tensor:
        """The likeliest class of each image [n]; of equal ones the lower number, as in `rank_of_label`."""
        return self.probabilities.argmax(1)

    @property
    def confusion(self) -> Tensor:
        """Counts [K, K], row = truth, column = prediction."""
        return confusion_matrix(self.predictions, self.labels, len(self.classes), ignore_index=None)

    @property
    def detailed(self) -> bool:
        """Whether there are few classes, or unbalanced ones, so that accuracy alone says little."""
        counts = torch.bincount(self.labels)
        counts = counts[counts > 0]
        return len(self.classes) <= FEW_CLASSES or int(counts.max()) > UNBALANCED * int(counts.min())

    def tell(self, watch: Watch | None) -> None:
        """Call `watch` with the answers, where there is one."""
        if watch is not None:
            watch(self)

    def metrics(self) -> dict[str, float]:
        """Return `top1`, `top5` (more than ten classes), `balanced_accuracy` and `auroc` (see `detailed`), with `_se`.

        In percent.
        """
        found = accuracies(self.ranks, len(self.classes))
        if not self.detailed:
            return found
        found["balanced_accuracy"], found["balanced_accuracy_se"] = balanced_accuracy(self.confusion)
        area = auroc(self.probabilities, self.labels)
        if area is not None:
            found["auroc"], found["auroc_se"] = area
        return {name: round(value, 6) for name, value in found.items()}

    def extra(self) -> dict[str, Any]:
        """Return what a row keeps besides: which images are right, and where it goes wrong (see `detailed`)."""
        found: dict[str, Any] = {"right": Answers.of((self.ranks == 0).tolist(), self.names).row()}
        if self.detailed:
            found |= {"recalls": self.by_class(), "errors": self.worst()}
            if len(self.classes) <= LARGEST_MATRIX:
                found["confusion"] = self.confusion.tolist()
        return found

    def by_class(self) -> list[dict[str, Any]]:
        """Return name, images, recall, its standard error and precision of each class, percent; None where unknown."""
        confusion = self.confusion
        counts, named = confusion.sum(1).tolist(), confusion.sum(0).tolist()
        rows = []
        for number, (name, recall) in enumerate(zip(self.classes, recalls(confusion).tolist(), strict=True)):
            known = not math.isnan(recall)
            rows.append(
                {
                    "name": name,
                    "images": counts[number],
                    "recall": 100 * recall if known else None,
                    "recall_se": accuracy_se(100 * recall, counts[number]) if known else None,
                    "precision": 100 * int(confusion[number, number]) / named[number] if named[number] else None,
                }
            )
        return rows

    def wrong(self, most: int = WORST) -> list[int]:
        """Return the places of errors in [n], the surest answer first, at most so many."""
        sure = self.probabilities.max(1).values
        places = (self.predictions != self.labels).nonzero().flatten()
        return places[sure[places].argsort(descending=True, stable=True)][:most].tolist()

    def worst(self, most: int = WORST) -> list[dict[str, Any]]:
        """Return the errors that were made with most certainty: image, its class, the answer, both probabilities."""
        return [
            {
                "image": self.names[place],
                "class": self.classes[int(self.labels[place])],
                "predicted": self.classes[int(self.predictions[place])],
                "probability": round(float(self.probabilities[place].max()), 4),
                "probability_of_class": round(float(self.probabilities[place, int(self.labels[place])]), 4),
            }
            for place in self.wrong(most)
        ]


Watch = Callable[[Outcome], None]
"""Called with the answers that a result's headline numbers come from."""


def accuracies(ranks: Tensor, num_classes: int, suffix: str = "") -> dict[str, float]:
    """Return `top1`, and `top5` for more than ten classes, each with its standard error `_se`; in percent."""
    found = {}
    for top in (1, 5) if num_classes > TOP5_ABOVE else (1,):
        value = accuracy(ranks, top)
        found[f"top{top}{suffix}"] = value
        found[f"top{top}{suffix}_se"] = round(accuracy_se(value, len(ranks)), 6)
    return found


def shares(votes: Tensor) -> Tensor:
    """Return the votes [n, K] as shares that add up to 1; a class without votes (-inf) has none."""
    votes = votes.masked_fill(votes == -torch.inf, 0).double()
    return votes / votes.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
