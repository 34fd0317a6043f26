"""Retrieval against its definition, one query and one place at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision

from evaluate.fakes import FakeBackbone, colour_sets
from mst.errors import UsageError
from mst.evaluate.classification import retrieval
from mst.evaluate.classification.retrieval import RetrievalProtocol, average_precision, evaluate_retrieval, retrieve
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.protocol import ImageTransform, LowShot

QUIET = FeatureSettings(precision="fp32", progress=False)


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(2, 12),
    classes=st.integers(1, 4),
    same=st.booleans(),
    rows=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_equals_the_definition(m: int, classes: int, same: bool, rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    base, labels = torch.randn(m, 4, generator=draw), torch.randint(classes, (m,), generator=draw)
    queries = base if same else torch.randn(3, 4, generator=draw)
    wanted = labels if same else torch.randint(classes, (3,), generator=draw)
    found = retrieve(base, labels, queries, wanted, same=same, rows=rows)
    precision, first = [], []
    for number, query in enumerate(queries):
        others = [index for index in range(m) if not (same and index == number)]
        others.sort(key=lambda index: -float(F.cosine_similarity(query, base[index], dim=0)))
        hits = [place for place, index in enumerate(others) if labels[index] == wanted[number]]
        if hits:
            precision.append(sum((count + 1) / (place + 1) for count, place in enumerate(hits)) / len(hits))
            first.append(hits[0])
    assert found.alone == len(queries) - len(first)
    assert found.first.tolist() == first
    assert found.precision.tolist() == pytest.approx(precision)


@pytest.mark.parametrize("tile", [1, 7, 20, 100])
def test_tiles_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    base, labels = torch.randn(21, 4, generator=draw), torch.randint(3, (21,), generator=draw)
    whole = retrieve(base, labels, base, labels, same=True)
    monkeypatch.setattr(retrieval, "TILE", tile)
    found = retrieve(base, labels, base, labels, same=True, rows=5)
    assert torch.equal(found.precision, whole.precision)
    assert torch.equal(found.first, whole.first)


def test_average_precision_is_that_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(5, 20, generator=draw) < 0.3
    right[:, 7] = True
    scores = torch.arange(20, 0, -1).float()
    expected = [float(retrieval_average_precision(scores, row)) for row in right]
    assert average_precision(right).tolist() == pytest.approx(expected)


def test_evaluate_in_both_databases() -> None:
    result = evaluate_retrieval(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), settings=QUIET)
    assert result.metrics["recall_at_1"] == 100.0
    assert result.metrics["map"] > 90
    within = RetrievalProtocol(database="val", ranks=(1, 3))
    result = evaluate_retrieval(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), within, settings=QUIET)
    names = {"map", "recall_at_1", "recall_at_3"}
    assert set(result.metrics) == names | {f"{name}_se" for name in names}
    assert (result.extra["train_images"], result.extra["val_images"]) == (0, 16)
    few = RetrievalProtocol(labels=LowShot(train_per_class=2))
    result = evaluate_retrieval(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), few, settings=QUIET)
    assert result.extra["train_images"] == 8


def test_nothing_to_find() -> None:
    sets = colour_sets(val=4)
    with pytest.raises(UsageError, match="use --database train"):
        evaluate_retrieval(FakeBackbone(), sets, ImageTransform((8, 8)), RetrievalProtocol("val"), settings=QUIET)
    with pytest.raises(UsageError, match="at least one image"):
        retrieve(torch.ones(1, 2), torch.zeros(1), torch.ones(1, 2), torch.zeros(1), same=True)
    with pytest.raises(UsageError, match="--ranks"):
        RetrievalProtocol(ranks=(0,))
