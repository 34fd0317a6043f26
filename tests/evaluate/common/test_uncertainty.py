"""Standard errors against their definitions, scikit-learn, and repeated experiments."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mst.evaluate.common.metrics import SegmentationScores, confusion_matrix
from mst.evaluate.common.uncertainty import (
    auroc,
    balanced_accuracy,
    bootstrap_se,
    mean_se,
    paired_se,
    recalls,
    resamples,
    segmentation_se,
)
from mst.runtime.noise import accuracy_se, difference_se, is_clear
from reference import uncertainty as slow


def labelled(seed: int, count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [n, K] with ties, and labels of which every class has at least two."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(classes).repeat(2), torch.randint(classes, (count,), generator=draw).square() % classes]
    )
    scores = torch.randint(6, (len(labels), classes), generator=draw).float()
    scores[torch.arange(len(labels)), labels] += torch.randint(3, (len(labels),), generator=draw)
    return scores.softmax(1), labels


@pytest.mark.parametrize("seed", range(6))
def test_accuracy_se_is_binomial(seed: int) -> None:
    right = torch.rand(57, generator=torch.Generator().manual_seed(seed)) < 0.7
    assert accuracy_se(100 * right.double().mean().item(), 57) == pytest.approx(slow.binomial_se(right.tolist()))


def test_no_number_is_certain() -> None:
    for value in (0.0, 100.0):
        assert accuracy_se(value, 10) == pytest.approx(100 * math.sqrt(11 / 12 / 12 / 10))
    assert accuracy_se(100.0, 1) > 0
    assert auroc(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]), torch.tensor([0, 0, 1]))[1] > 0  # type: ignore[index]
    for classes, each in ((3, 4), (3, 6), (4, 6), (7, 10)):  # some round to a little above 0
        labels = torch.arange(classes).repeat_interleave(each)
        found = auroc(torch.nn.functional.one_hot(labels, classes).float(), labels)
        assert found is not None
        assert found[1] > 5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_balanced_accuracy_and_auroc_equal_their_definitions_and_scikit_learn(seed: int, classes: int) -> None:
    scores, labels = labelled(seed, 60, classes)
    predictions = scores.argmax(1)
    confusion = confusion_matrix(predictions, labels, classes, ignore_index=None)
    assert balanced_accuracy(confusion) == pytest.approx(slow.balanced_accuracy(predictions.tolist(), labels.tolist()))
    assert balanced_accuracy(confusion)[0] == pytest.approx(100 * balanced_accuracy_score(labels, predictions))
    found = auroc(scores, labels)
    assert found is not None
    assert found[0] == pytest.approx(slow.auroc(scores.tolist(), labels.tolist()))
    given = scores[:, 1] if classes == 2 else scores
    assert found[0] == pytest.approx(100 * roc_auc_score(labels, given, multi_class="ovr"))
    if classes == 2:
        assert found[1] == pytest.approx(slow.delong_se(scores[:, 1].tolist(), labels.tolist()))


def test_the_standard_error_of_many_classes_is_the_spread_of_repeated_experiments() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 25 + [2] * 15)

    def experiment() -> tuple[float, float]:
        scores = torch.randn(80, 3, generator=draw)
        scores[torch.arange(80), labels] += 1
        found = auroc(scores.softmax(1), labels)
        assert found is not None
        return found

    areas, errors = torch.tensor([experiment() for _ in range(400)]).T
    assert float(errors.mean()) == pytest.approx(float(areas.std()), rel=0.1)


def test_classes_without_images_are_left_out() -> None:
    scores, labels = labelled(1, 30, 3)
    wide = torch.cat([scores, torch.zeros(len(scores), 1)], 1)
    assert auroc(wide, labels) == auroc(scores, labels)
    assert auroc(scores, torch.zeros(len(scores), dtype=torch.int64)) is None
    confusion = confusion_matrix(scores.argmax(1), labels, 4, ignore_index=None)
    assert math.isnan(recalls(confusion)[3])
    assert balanced_accuracy(confusion) == balanced_accuracy(confusion[:3, :3])


@pytest.mark.parametrize("seed", range(4))
def test_paired_differences_are_surer_than_those_of_other_images(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(200, generator=draw) < 0.8
    second = first ^ (torch.rand(200, generator=draw) < 0.05)
    se = paired_se(first, second)
    assert se == pytest.approx(slow.paired_se(first.tolist(), second.tolist()))
    alone = [accuracy_se(100 * right.double().mean().item(), 200) for right in (first, second)]
    assert se < 0.6 * difference_se(*alone)


def test_the_bootstrap_finds_the_standard_error_of_a_mean_and_repeats_itself() -> None:
    values = torch.rand(150, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def mean(weights: torch.Tensor) -> float:
        return float((weights * values).sum() / weights.sum())

    found = [bootstrap_se(mean, 150, seed=seed, purpose="mean") for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0] == pytest.approx(mean_se(values), rel=0.1)
    assert all(int(weights.sum()) == 9 for weights in resamples(9, seed=0, purpose="any", draws=3))
    assert math.isnan(bootstrap_se(mean, 1, seed=0, purpose="mean"))


def test_two_standard_errors_are_clear() -> None:
    assert is_clear(-2.1, 1.0)
    assert not is_clear(1.9, 1.0)


def test_mean_iou_has_the_spread_of_other_images() -> None:
    draw = torch.Generator().manual_seed(5)
    counts = torch.randint(1, 40, (400, 2, 3), generator=draw)
    counts = torch.cat([counts.amin(1, keepdim=True), counts], 1)  # [n,3,K]: hits are at most the others
    sets = torch.stack([SegmentationScores.from_counts(part.sum(0)).miou * torch.ones(()) for part in counts.split(20)])
    found = segmentation_se(counts[:20], seed=0)
    assert found == segmentation_se(counts[:20], seed=0)
    assert set(found) == {"miou_se", "macc_se", "aacc_se"}
    assert found["miou_se"] == pytest.approx(float(sets.std()), rel=0.5)  # of 20 sets of 20 images
    assert segmentation_se(counts[:1], seed=0) == {}
