"""Accuracy and ranks under the name that scripts import; they live in `mst.evaluate.common.metrics`."""

from mst.evaluate.common.metrics import accuracy, rank_of_label

__all__ = ["accuracy", "rank_of_label"]
