"""The search against sorting everything: same neighbours in the same order, ties and awkward tiles included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.errors import UsageError
from mst.evaluate import neighbors
from mst.evaluate.neighbors import nearest_neighbors, query_rows

ROOT = Path(__file__).resolve().parents[2]
ANALOGUE = """
import resource, sys
import numpy as np, torch
from mst.evaluate.features import Features
from mst.evaluate.knn import knn_accuracy
m, n, d = 60_000, 400, 64
mapped = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
labels = torch.arange(m) % 5
train = Features(mapped, labels, ("",) * m, tuple(range(m)))
val = Features(mapped[:n].clone(), labels[:n], ("",) * n, tuple(range(n)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for k in (200, m):
    knn_accuracy(train, val, neighbors=(k,), temperature=0.07, num_classes=5, device=torch.device("cpu"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


def sorted_out(train: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    similarity = F.normalize(queries, dim=1) @ F.normalize(train, dim=1).T
    values, order = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


@settings(deadline=None, max_examples=80)
@given(
    m=st.integers(1, 400),
    n=st.integers(1, 5),
    k=st.integers(1, 60),
    levels=st.integers(1, 9),
    tile=st.sampled_from([1, 3, 16, 33, 64, 100, 160, 500]),
    seed=st.integers(0, 10_000),
)
def test_equals_sorting_everything(  # noqa: PLR0917
    m: int, n: int, k: int, levels: int, tile: int, seed: int
) -> None:
    """On the four axes of the plane with few lengths almost everything is tied, and exactly so."""
    draw = torch.Generator().manual_seed(seed)
    axes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    train = axes[torch.randint(min(levels, 4), (m,), generator=draw)]
    queries = axes[torch.randint(4, (n,), generator=draw)]
    values, index = nearest_neighbors(train, queries, k, tile=tile)
    expected, order = sorted_out(train, queries, k)
    assert torch.equal(values, expected)
    assert torch.equal(index, order)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(1, 2000), k=st.integers(1, 50), tile=st.integers(1, 900), seed=st.integers(0, 10_000))
def test_equals_sorting_everything_without_ties(m: int, k: int, tile: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    train, queries = torch.randn(m, 7, generator=draw), torch.randn(3, 7, generator=draw)
    values, index = nearest_neighbors(train, queries, k, tile=tile)
    expected, _ = sorted_out(train.double(), queries.double(), k)
    assert index.shape == (3, min(k, m))
    np.testing.assert_allclose(values, expected, atol=1e-6)
    found = F.normalize(train, dim=1)[index] @ F.normalize(queries, dim=1)[:, :, None]
    np.testing.assert_allclose(found.squeeze(2), values, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in index.tolist())


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 64])
def test_repeated_training_samples_are_ordered_by_index_in_every_tiling(tile: int) -> None:
    train = torch.eye(2).repeat(6, 1)  # 12 samples, two distinct directions
    similarity, index = nearest_neighbors(train, torch.tensor([[1.0, 0.0]]), 8, tile=tile)
    assert index.tolist() == [[0, 2, 4, 6, 8, 10, 1, 3]]
    assert similarity.tolist() == [[1.0] * 6 + [0.0] * 2]


@pytest.mark.parametrize("held", [1, 64, 200, 2**22])
def test_groups_of_queries_do_not_change_the_neighbours(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "PRODUCT", held)
    draw = torch.Generator().manual_seed(0)
    train, queries = torch.randn(150, 4, generator=draw).sign(), torch.randn(7, 4, generator=draw).sign()
    values, index = nearest_neighbors(train, queries, 2, tile=64)  # corners of a cube: products of 0, +-1/2, +-1
    expected, order = sorted_out(train, queries, 2)
    assert torch.equal(values, expected)
    assert torch.equal(index, order)


@pytest.mark.parametrize("dim", [7, 63, 192, 384])
def test_copies_of_one_sample_are_ordered_by_index(dim: int) -> None:
    draw = torch.Generator().manual_seed(dim)
    train = torch.randn(1, dim, generator=draw).repeat(1033, 1)
    similarity, index = nearest_neighbors(train, torch.randn(3, dim, generator=draw), 20)
    assert index.tolist() == [list(range(20))] * 3
    assert bool((similarity == similarity[:, :1]).all())


def test_what_is_not_a_number_is_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="not finite"):
            nearest_neighbors(torch.tensor([[1.0, bad]]), torch.ones(1, 2), 1)


def test_the_rows_of_a_search_follow_k() -> None:
    assert query_rows(200) == 2048
    assert 1 <= query_rows(1_281_167) < 16
    assert query_rows(10**9) == 1


def test_memory_does_not_grow_with_the_product_of_the_sizes(tmp_path: Path) -> None:
    """400 x 60,000 similarities with indices are 290 MB, four such copies with every neighbour kept."""
    file = tmp_path / "train.npy"
    np.save(file, np.random.default_rng(0).standard_normal((60_000, 64), dtype=np.float32))
    small = f"import mst.evaluate.neighbors as N; N.BUDGET = 2**22\n{ANALOGUE}"
    code = [sys.executable, "-c", small, str(file)]
    done = subprocess.run(
        code, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150  # MB
