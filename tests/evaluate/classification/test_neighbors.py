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
from mst.evaluate.classification import neighbors
from mst.evaluate.classification.neighbors import candidates_pay, from_candidates, nearest_neighbors, query_rows, unit

ROOT = Path(__file__).resolve().parents[2]
ANALOGUE = """
import resource, sys
import numpy as np, torch
from mst.evaluate.common.features import Features
from mst.evaluate.classification.knn import knn_accuracy
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


@settings(deadline=None, max_examples=80)
@given(
    m=st.integers(2, 400),
    dim=st.sampled_from([4, 16, 64]),
    k=st.integers(1, 30),
    spare=st.integers(1, 200),
    tile=st.sampled_from([1, 33, 160, 500]),
    seed=st.integers(0, 10_000),
)
def test_candidates_equal_sorting_everything(  # noqa: PLR0917
    m: int, dim: int, k: int, spare: int, tile: int, seed: int
) -> None:
    """Between corners of a cube all products are exact and many are tied; few spare candidates are too few."""
    draw = torch.Generator().manual_seed(seed)
    train, queries = torch.randn(m, dim, generator=draw).sign(), torch.randn(5, dim, generator=draw).sign()
    k = min(k, m)
    values, index = from_candidates(train, unit(queries), k, kept=k + spare, tile=tile)
    expected, order = sorted_out(train, queries, k)
    assert torch.equal(values, expected)
    assert torch.equal(index, order)


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(50, 1500),
    dim=st.sampled_from([3, 31, 192]),
    k=st.integers(1, 40),
    spare=st.integers(1, 600),
    apart=st.sampled_from([1e-3, 0.03, 0.2, 3.0]),
    tile=st.sampled_from([64, 333, 2000]),
    seed=st.integers(0, 10_000),
)
def test_candidates_miss_nothing_however_close(  # noqa: PLR0917
    m: int, dim: int, k: int, spare: int, apart: float, tile: int, seed: int
) -> None:
    """Similarities that bfloat16 cannot tell apart, and every sample twice: values and order are those of float32."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(dim, generator=draw)
    train = (centre + apart * torch.randn(m, dim, generator=draw)).repeat(2, 1)
    queries = centre + apart * torch.randn(6, dim, generator=draw)
    values, index = from_candidates(train, unit(queries), k, kept=k + spare, tile=tile)
    expected, _ = sorted_out(train.double(), queries.double(), k)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    found = F.normalize(train.double(), dim=1)[index] @ F.normalize(queries.double(), dim=1)[:, :, None]
    np.testing.assert_allclose(found.squeeze(2), values, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in index.tolist())
    for row, numbers in zip(values.tolist(), index.tolist(), strict=True):
        of_sample = dict(zip(numbers, row, strict=True))
        assert numbers == sorted(numbers, key=lambda i: (-of_sample[i], i))
        assert all(of_sample.get((i + m) % (2 * m), row[-1]) == value for i, value in of_sample.items())


STEP = 2.0**-11
"""Distance of bfloat16 numbers from 1/16 to 1/8."""
SIGNS = torch.tensor([1.75 / 16, -1.75 / 16]).repeat(32)


def filled(rows: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Return rows of length 1: six more numbers, almost exact in bfloat16, between zeros that meet others' numbers."""
    rest, more = 1 - rows.double().square().sum(1), []
    for _ in range(6):
        more.append((rest.sqrt() * (1 - 2.0**-8)).bfloat16().double())
        rest = rest - more[-1].square()
    return torch.cat([rows, F.pad(torch.stack(more, 1), (before, after)).float()], 1)


def rounded_samples(up: float, steps: int, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples that lose `up` steps per number, all one way each, and an exact query."""
    near, far = SIGNS + up * STEP, SIGNS - up * STEP
    near[:steps] -= STEP
    rows = F.pad(torch.stack([far] * 40 + [near] * 20), (0, 1), value=offset)
    query = torch.full((1, 65), 1 / 8 if offset == 0.0 else 1 / 16)
    query[0, 64] = 0.0 if offset == 0.0 else 0.75
    return filled(rows, 0, 6), filled(query, 6, 0)


def rounded_query() -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact samples along and against what a query loses."""
    query = SIGNS + 0.49 * STEP
    query[:31] -= STEP
    rows = torch.full((60, 64), 1 / 8)
    rows[:40] *= -1
    return filled(rows, 0, 6), filled(query[None], 6, 0)


@pytest.mark.parametrize(
    ("train", "query"),
    [rounded_samples(0.49, 62, 0.0), rounded_query()]
    + [rounded_samples(0.1, 12, 0.25 + n / 512) for n in range(64)],  # some products are rounded apart as well
)
def test_candidates_survive_the_worst_rounding(train: torch.Tensor, query: torch.Tensor) -> None:
    """The last 20 samples are the nearest, but look further away by almost all of the error that is allowed for."""
    truth = query.double() @ train.double().T
    assert bool(truth[0, :40].amax() < truth[0, 40:].amin())
    rounded = (query.bfloat16() @ train.bfloat16().T).float()
    assert bool(rounded[0, :40].amin() >= rounded[0, 40:].amax())
    _, index = from_candidates(train, unit(query), 20, kept=61, tile=1000)
    assert index.tolist() == [list(range(40, 60))]


def clusters(count: int, noise: float, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, 128, generator=torch.Generator().manual_seed(0))
    return centres[torch.randint(20, (count,), generator=draw)] + noise * torch.randn(count, 128, generator=draw)


def test_candidates_are_taken_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_BF16", True)
    train, queries = clusters(9000, 1.0, 1), clusters(200, 1.0, 2)
    assert candidates_pay(train, unit(queries), 1, 1000)
    assert not candidates_pay(train, unit(queries), 5, 1000)  # too few samples for so many candidates
    assert not candidates_pay(train, unit(queries[:0]), 1, 1000)
    assert not candidates_pay(train[:, :64], unit(queries[:, :64]), 1, 1000)
    alike = torch.ones(128) + 0.1 * train
    assert not candidates_pay(alike, unit(alike[:200]), 1, 1000)
    expected, order = sorted_out(train.double(), queries.double(), 1)
    monkeypatch.setattr(neighbors, "from_all", None)  # no query needs it
    values, index = nearest_neighbors(train, queries, 1)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert torch.equal(index, order)


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
    assert query_rows(200) == 4096
    assert 1 <= query_rows(1_281_167) < 16
    assert query_rows(10**9) == 1


def test_memory_does_not_grow_with_the_product_of_the_sizes(tmp_path: Path) -> None:
    """400 x 60,000 similarities with indices are 290 MB, four such copies with every neighbour kept."""
    file = tmp_path / "train.npy"
    np.save(file, np.random.default_rng(0).standard_normal((60_000, 64), dtype=np.float32))
    small = f"import mst.evaluate.classification.neighbors as N; N.BUDGET = 2**22\n{ANALOGUE}"
    code = [sys.executable, "-c", small, str(file)]
    done = subprocess.run(
        code, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150  # MB
