"""Scores against torchmetrics and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from mst.evaluate.common.metrics import SegmentationScores, accuracy, confusion_matrix, rank_of_label


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5])
def test_topk_equals_torchmetrics(seed: int, k: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores, labels = torch.randn(50, 7, generator=draw), torch.randint(7, (50,), generator=draw)
    expected = multiclass_accuracy(scores, labels, num_classes=7, top_k=k, average="micro")
    assert accuracy(rank_of_label(scores, labels), k) == pytest.approx(100 * expected.item(), rel=1e-6)


def test_equal_scores_place_the_lower_class_first() -> None:
    assert rank_of_label(torch.zeros(4, 4), torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_a_diverged_classifier_is_wrong_not_right() -> None:
    assert rank_of_label(torch.full((3, 4), math.nan), torch.tensor([0, 1, 2])).tolist() == [4, 4, 4]


@pytest.mark.parametrize("seed", range(6))
def test_segmentation_scores_equal_torchmetrics(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    prediction = torch.randint(6, (2, 9, 11), generator=draw)
    target = torch.randint(5, (2, 9, 11), generator=draw)  # class 5 is predicted but never true, class 6 is nowhere
    target[0, :3] = 255
    counts = confusion_matrix(prediction, target, 7, ignore_index=255)
    assert torch.equal(counts, multiclass_confusion_matrix(prediction, target, 7, ignore_index=255))
    scores = SegmentationScores.from_confusion(counts)
    iou = multiclass_jaccard_index(prediction, target, 7, average="none", ignore_index=255)
    torch.testing.assert_close(torch.tensor(scores.iou[:6]), 100 * iou[:6].float())
    macro = multiclass_jaccard_index(prediction, target, 7, average="macro", ignore_index=255)
    assert scores.miou == pytest.approx(100 * macro.item(), rel=1e-5)
    recall = multiclass_accuracy(prediction, target, 7, average="none", ignore_index=255)
    torch.testing.assert_close(torch.tensor(scores.accuracy[:5]), 100 * recall[:5].float())
    micro = multiclass_accuracy(prediction, target, 7, average="micro", ignore_index=255)
    assert scores.aacc == pytest.approx(100 * micro.item(), rel=1e-5)
    assert scores.macc == pytest.approx(100 * recall[:5].mean().item(), rel=1e-5)
    assert math.isnan(scores.iou[6])
    assert math.isnan(scores.accuracy[5])
    assert scores.iou[5] == 0.0


def test_an_ignore_index_inside_the_classes_is_left_out_too() -> None:
    counts = confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), 3, ignore_index=2)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_only_void_pixels_give_no_score() -> None:
    counts = confusion_matrix(torch.zeros(4), torch.full((4,), 9), 2, ignore_index=9)
    assert math.isnan(SegmentationScores.from_confusion(counts).miou)
