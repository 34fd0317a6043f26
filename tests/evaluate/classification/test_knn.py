"""k-NN against its one-query-at-a-time definition, over awkward shapes, ties and chunk sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.fakes import FakeBackbone, colour_sets
from mst.errors import UsageError
from mst.evaluate.classification.knn import KnnProtocol, evaluate_knn, knn_accuracy, knn_predict
from mst.evaluate.common.features import Features, FeatureSettings
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.metrics import accuracy, rank_of_label
from mst.evaluate.common.protocol import ImageTransform, LowShot
from reference.knn import knn_scores, knn_top

QUIET = FeatureSettings(forward_batch=7, workers=2, precision="fp32", progress=False)


@settings(deadline=None, max_examples=40)
@given(
    m=st.integers(1, 30),
    n=st.integers(0, 6),
    dim=st.integers(1, 9),
    classes=st.integers(1, 5),
    k=st.integers(1, 40),
    temperature=st.sampled_from([0.04, 0.07, 1.0]),
    tile=st.integers(1, 31),
    seed=st.integers(0, 10_000),
)
def test_equals_the_definition(  # noqa: PLR0917
    m: int, n: int, dim: int, classes: int, k: int, temperature: float, tile: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    train, queries = torch.randn(m, dim, generator=draw), torch.randn(n, dim, generator=draw)
    labels = torch.randint(classes, (m,), generator=draw)
    if dim == 1:  # cosines of +-1 only: every neighbour is tied, in float32 as in the definition
        train, queries = train.sign(), queries.sign()
    scores = knn_predict(
        train, labels, queries, num_neighbors=k, temperature=temperature, num_classes=classes, tile=tile
    )
    expected = knn_scores(
        train.numpy(), labels.numpy(), queries.numpy(), num_neighbors=k, temperature=temperature, num_classes=classes
    )
    assert scores.shape == (n, classes)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4)
    if n:
        truth = torch.randint(classes, (n,), generator=draw)
        ranks = rank_of_label(scores, truth)
        for top in (1, 2, 5):
            assert accuracy(ranks, top) == pytest.approx(knn_top(scores.numpy(), truth.numpy(), top), abs=1e-5)


def test_a_class_without_a_vote_is_not_among_the_five_best() -> None:
    train, labels = torch.eye(12).repeat_interleave(30, 0), torch.arange(12).repeat_interleave(30)
    queries, truth = torch.eye(12)[[11] * 12], torch.arange(12)
    scores = knn_predict(train, labels, queries, num_neighbors=20, temperature=0.07, num_classes=12)
    ranks = rank_of_label(scores, truth)
    assert accuracy(ranks, 1) == accuracy(ranks, 5) == pytest.approx(100 / 12, abs=1e-5)


def test_one_neighbour_has_one_candidate() -> None:
    draw = torch.Generator().manual_seed(1)
    names, classes = torch.arange(40) % 11, 11
    train, val = (
        Features(torch.randn(40, 4, generator=draw), names, tuple(map(str, range(40))), tuple(range(40)))
        for _ in range(2)
    )
    found = knn_accuracy(
        train, val, neighbors=(1, 3), temperature=0.07, num_classes=classes, device=torch.device("cpu")
    )
    assert found["top1_k1"] == found["top5_k1"] < found["top5_k3"]


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.0126])
def test_small_temperatures_are_the_nearest_neighbour(temperature: float) -> None:
    draw = torch.Generator().manual_seed(2)
    train, queries = torch.randn(30, 3, generator=draw), torch.randn(9, 3, generator=draw)
    labels = torch.arange(30) % 5
    scores = knn_predict(train, labels, queries, num_neighbors=7, temperature=temperature, num_classes=5)
    nearest = knn_predict(train, labels, queries, num_neighbors=1, temperature=1.0, num_classes=5).argmax(1)
    assert not bool(scores.isnan().any() or scores.isposinf().any())
    if temperature < 1e-3:
        assert torch.equal(scores.argmax(1), nearest)


@pytest.mark.parametrize(("k", "temperature", "m"), [(0, 0.07, 3), (1, 0.0, 3), (1, 0.07, 0)])
def test_refuses_what_has_no_meaning(k: int, temperature: float, m: int) -> None:
    with pytest.raises(UsageError):
        knn_predict(
            torch.ones(m, 2),
            torch.zeros(m, dtype=torch.int64),
            torch.ones(1, 2),
            num_neighbors=k,
            temperature=temperature,
            num_classes=1,
        )


def test_evaluate_finds_separable_classes_and_cuts_k(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = FakeBackbone().train()
    result = evaluate_knn(backbone, colour_sets(), ImageTransform((8, 8)), settings=QUIET)
    assert result.metrics["top1"] == result.metrics["top1_k20"] == 100.0
    assert "top5" not in result.metrics  # four classes
    assert result.protocol["neighbors"] == (10, 20, 40)
    assert result.extra["notes"] == ["k is cut to the 40 training images"]
    assert "k is cut to the 40 training images" in capsys.readouterr().err
    assert backbone.training
    assert backbone.drop.training
    assert max(backbone.batches) == 7


def test_low_shot_uses_that_many_labels() -> None:
    protocol = KnnProtocol(neighbors=(1,), headline=1, labels=LowShot(train_per_class=2))
    result = evaluate_knn(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), protocol, settings=QUIET)
    assert result.extra["train_images"] == 8


def test_shuffled_labels_give_chance() -> None:
    data = colour_sets(train=200, val=200)
    labels = data.val.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    mixed = LabelledSets(data.classes, data.train, replace(data.val, labels=labels))
    result = evaluate_knn(FakeBackbone(), mixed, ImageTransform((8, 8)), settings=QUIET)
    assert 10 < result.metrics["top1"] < 40


@pytest.mark.parametrize("arguments", [{"neighbors": ()}, {"neighbors": (0,)}, {"headline": 7}, {"temperature": 0.0}])
def test_protocol_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        KnnProtocol(**arguments)
