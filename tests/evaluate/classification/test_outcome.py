"""Classifications: metrics of few and unbalanced classes against scikit-learn, what rows keep, repeated draws."""

from __future__ import annotations

import base64
import math
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score, roc_auc_score

from evaluate.fakes import FakeBackbone, colour_sets
from mst.evaluate.classification.draws import draw_seed, repeated
from mst.evaluate.classification.knn import KnnProtocol, evaluate_knn
from mst.evaluate.classification.linear_probe import LinearProtocol, evaluate_linear
from mst.evaluate.classification.logistic import LogisticProtocol, evaluate_logistic
from mst.evaluate.classification.outcome import Outcome
from mst.evaluate.common.feature_store import FeatureMemory
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.metrics import rank_of_label
from mst.evaluate.common.protocol import ImageTransform, LowShot
from mst.runtime.storage.results import Result

QUIET = FeatureSettings(forward_batch=7, workers=2, precision="fp32", progress=False)


def outcome(labels: torch.Tensor, classes: int, seed: int = 0) -> Outcome:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(labels), classes, generator=draw, dtype=torch.float64)
    scores[torch.arange(len(labels)), labels] += 1
    places = range(len(labels))
    ranks = rank_of_label(scores, labels)
    names = [f"/data/val/x/{place}.png" for place in places]
    return Outcome(scores.softmax(1), labels, ranks, names, list(places), [f"c{k}" for k in range(classes)])


@pytest.mark.parametrize("counts", [(90, 10), (50, 30, 20), tuple(range(5, 17))])
def test_few_or_unbalanced_classes_equal_scikit_learn(counts: tuple[int, ...]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    found = outcome(labels, len(counts))
    metrics, guesses = found.metrics(), found.predictions.numpy()
    assert ("top5" in metrics) is (len(counts) > 10)
    assert metrics["top1"] == pytest.approx(100 * np.mean(guesses == labels.numpy()), abs=1e-5)
    assert metrics["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, guesses), abs=1e-5)
    given = found.probabilities[:, 1] if len(counts) == 2 else found.probabilities
    assert metrics["auroc"] == pytest.approx(100 * roc_auc_score(labels, given, multi_class="ovr"), abs=1e-5)
    extra = found.extra()
    recalls = 100 * recall_score(labels, guesses, average=None)
    np.testing.assert_allclose([row["recall"] for row in extra["recalls"]], recalls)
    precisions = 100 * precision_score(labels, guesses, average=None, zero_division=0)
    np.testing.assert_allclose([row["precision"] or 0 for row in extra["recalls"]], precisions)
    assert np.asarray(extra["confusion"]).sum() == len(labels)


def test_many_equal_classes_have_accuracy_alone() -> None:
    found = outcome(torch.arange(12).repeat(4), 12)
    assert set(found.metrics()) == {"top1", "top1_se", "top5", "top5_se"}
    assert set(found.extra()) == {"right"}


def test_worst_errors_come_surest_first_and_name_their_image() -> None:
    found = outcome(torch.tensor([0] * 40 + [1] * 8), 2, seed=3)
    worst = found.worst()
    assert worst
    assert [row["probability"] for row in worst] == sorted((row["probability"] for row in worst), reverse=True)
    for row in worst:
        place = int(row["image"].split("/")[-1].split(".")[0])
        assert row["class"] == f"c{int(found.labels[place])}" != row["predicted"]
        assert row["probability"] + row["probability_of_class"] == pytest.approx(1, abs=2e-4)


def test_a_row_keeps_which_images_are_right() -> None:
    found = outcome(torch.arange(3).repeat(7), 3)
    kept = found.extra()["right"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(kept["bits"]), dtype=np.uint8))[: kept["images"]]
    np.testing.assert_array_equal(bits, (found.ranks == 0).numpy())


@pytest.mark.parametrize("task", ["knn", "linear", "logistic"])
def test_evaluators_agree_with_their_own_answers(task: str) -> None:
    answers: list[Outcome] = []
    common = {"settings": QUIET, "watch": answers.append}
    transform, labels = ImageTransform((8, 8)), LowShot(train_per_class=3)
    data, backbone = colour_sets(), FakeBackbone()
    if task == "knn":
        result = evaluate_knn(backbone, data, transform, KnnProtocol((1, 3), 3, labels=labels), **common)
    elif task == "linear":
        result = evaluate_linear(backbone, data, transform, LinearProtocol(epochs=2, labels=labels), **common)
    else:
        result = evaluate_logistic(backbone, data, transform, LogisticProtocol(iterations=5, labels=labels), **common)
    (found,) = answers
    right = (found.predictions == found.labels).double().mean().item()
    assert result.metrics["top1"] == pytest.approx(100 * right, abs=1e-5)
    for name in ("top1", "balanced_accuracy", "auroc"):
        assert result.metrics[f"{name}_se"] > 0
    assert found.probabilities.sum(1).tolist() == pytest.approx([1] * len(found.labels))


def test_repeated_draws_are_the_single_ones_and_share_features() -> None:
    transform, backbone, data = ImageTransform((8, 8)), FakeBackbone(), colour_sets()
    protocol, memory = KnnProtocol((1,), 1, labels=LowShot(train_per_class=1)), FeatureMemory()

    def once(seed: int, features: FeatureMemory | None = memory) -> Result:
        return evaluate_knn(backbone, data, transform, protocol, settings=QUIET, features=features, seed=seed)

    found = repeated(once, 4, 3)
    singles = [once(draw_seed(4, number), None) for number in range(3)]
    assert [row["metrics"] for row in found.extra["draws"]] == [single.metrics for single in singles]
    assert singles[0].seed == 4
    assert len({single.seed for single in singles}) == 3
    values = [single.metrics["top1"] for single in singles]
    assert found.metrics["top1"] == pytest.approx(statistics.fmean(values))
    assert found.metrics["top1_spread"] == pytest.approx(statistics.stdev(values), abs=1e-5)
    images = statistics.fmean(single.metrics["top1_se"] ** 2 for single in singles)
    expected = math.sqrt(images + statistics.variance(values) / 3)
    assert found.metrics["top1_se"] == pytest.approx(expected, abs=1e-5)
    assert found.protocol["seeds"] == 3
