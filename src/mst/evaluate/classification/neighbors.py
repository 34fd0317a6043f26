"""Exact nearest neighbours by cosine similarity, in tiles, without sorting what cannot be among them.

Every value that a tile must beat is known before it is searched: the worst neighbour so far, or at first the k-th
largest of the maxima of small blocks, which k different values reach. Only blocks whose maximum reaches it are read.
Where bfloat16 products are fast they choose candidates, a proven error apart; only these are compared in float32.
Equal similarities are ordered by training index, whatever the tiles: value and index are one integer.
Letters: m training samples, n queries, D features, k neighbours, T training samples of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.errors import UsageError
from mst.model.lean import ONEDNN, ONEDNN_BF16
from mst.runtime.device import cpu_has_bfloat16
from mst.runtime.threads import side_by_side

T = TypeVar("T")

BLOCK = 8
"""Similarities that share one maximum: the columns c, c + b, c + 2 b, ... of b blocks, as adjacent maxima are fast."""
TILE = 8192
"""Training samples compared at a time."""
PRODUCT = 2**22
"""Similarities computed at a time: 16 MB, which the allocator keeps; larger ones are new memory every time."""
BUDGET = 2**27
"""Numbers that the rows of one search may hold together."""
GATHERED = 2**20
"""Numbers of training samples to compare again at a time: 4 MB."""
INDICES = 2**32
"""Training samples that a key can tell apart."""
LOWEST = torch.iinfo(torch.int64).min
"""The key of nothing."""
_BF16 = ONEDNN_BF16 and cpu_has_bfloat16()
"""Whether this CPU multiplies bfloat16 itself, at twice the speed of float32."""


def query_rows(k: int, tile: int = TILE) -> int:
    """Return how many queries to search at once, so that memory stays bounded whatever k is."""
    return max(1, min(4096, BUDGET // (tile + 8 * k)))


def nearest_neighbors(train: Tensor, queries: Tensor, k: int, *, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Return similarities [n, k] in descending order and the training indices [n, k] they belong to.

    Args:
        train: [m, D], any length, on any device; may be mapped from a file.
        queries: [n, D]; the products run on their device. `query_rows(k)` of them at a time bound the memory.
        k: neighbours; all training samples where there are fewer.
        tile: training samples compared at a time.

    Raises:
        UsageError: no training samples, or features that are not finite.
    """
    if len(train) == 0:
        raise UsageError("k-NN needs at least one training sample")
    k, queries = min(k, len(train)), unit(queries)
    if candidates_pay(train, queries, k, tile):
        return from_candidates(train, queries, k, kept=kept_for(k), tile=2 * tile)
    return from_all(train, queries, k, tile=tile)


def from_all(train: Tensor, queries: Tensor, k: int, *, tile: int) -> tuple[Tensor, Tensor]:
    """Return `nearest_neighbors`' result for queries [n, D] of length 1 from the float32 products of all pairs."""
    parts = torch.split(queries, max(1, PRODUCT // tile))
    best = [Best(len(part), k, part.device) for part in parts]
    for start, samples in _samples(train, tile, queries.device):
        _each(queries.device, partial(_compare, samples=samples, start=start), parts, best)
    values, index = zip(*_each(queries.device, Best.sorted, best), strict=True)
    return torch.cat(values), torch.cat(index)


def kept_for(k: int) -> int:
    """Return how many candidates to keep for k neighbours."""
    return 2 * k + 64


def candidates_pay(train: Tensor, queries: Tensor, k: int, tile: int) -> bool:
    """Return whether `from_candidates` is likely to be faster: tried for a few queries and every eighth sample."""
    kept, few = kept_for(k), 8
    cpu = train.device.type == queries.device.type == "cpu"
    if not (_BF16 and cpu and train.shape[1] >= 128 and len(train) >= 128 * kept and len(queries)):
        return False
    some = queries[:: max(1, len(queries) // 64)]
    found = candidates(train[::few], some, -(-k // few), kept=kept // few, tile=tile)
    return float(torch.cat([counts < kept // few for _, counts in found]).float().mean()) >= 0.9


def from_candidates(train: Tensor, queries: Tensor, k: int, *, kept: int, tile: int) -> tuple[Tensor, Tensor]:
    """Return `nearest_neighbors`' result for queries [n, D] of length 1; float32 products only for the candidates.

    Queries with `kept` candidates or more are compared with all training samples.
    """
    index, counts = zip(*candidates(train, queries, k, kept=kept, tile=tile), strict=True)
    parts = torch.split(queries, len(counts[0]))
    found = _each(queries.device, partial(_compare_again, train, k=k, kept=kept), parts, index, counts)
    values, order = (torch.cat(column) for column in zip(*found, strict=True))
    rest = (torch.cat(counts) >= kept).nonzero().squeeze(1)
    if len(rest):
        values[rest], order[rest] = from_all(train, queries[rest], k, tile=tile)
    return values, order


def _compare_again(
    train: Tensor, queries: Tensor, index: Tensor, counts: Tensor, *, k: int, kept: int
) -> tuple[Tensor, Tensor]:
    """Return similarities and indices [n, k] of queries [n, D] from candidates index [n, c] of each row counts [n].

    Rows of queries with `kept` candidates or more are not filled.
    """
    values, order = queries.new_empty(len(queries), k), queries.new_empty(len(queries), k, dtype=torch.int64)
    rows = (counts < kept).nonzero().squeeze(1)
    together = max(1, GATHERED // (queries.shape[1] * index.shape[1]))
    for some in torch.split(rows, together) if len(rows) else ():
        keys = _keys(train, queries[some], index[some], counts[some])
        values[some], order[some] = _decoded(keys.topk(k, dim=1).values)
    return values, order


def _keys(train: Tensor, queries: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Return the keys [n, c] of queries [n, D] and the training samples index [n, >=c], of each row counts [n]."""
    width = int(counts.max())
    near = index[:, :width].clamp(max=len(train) - 1)  # [n,c]
    samples = F.normalize(train.index_select(0, near.flatten()).float(), dim=1)  # [n*c,D]; train[near] is slow
    similarity = samples.view(*near.shape, -1).mul_(queries[:, None]).sum(2)  # [n,c]
    beyond = torch.arange(width) >= counts[:, None]
    return _encoded(similarity, near).masked_fill_(beyond, LOWEST)


def candidates(train: Tensor, queries: Tensor, k: int, *, kept: int, tile: int) -> list[tuple[Tensor, Tensor]]:
    """Return for groups of queries training indices [B, c] by bfloat16 similarity, and how many [B] may be neighbours.

    The k neighbours, k < `kept`, are among that many first indices, where these are fewer than `kept`.

    A product of rows q and s of length 1 differs from that of their roundings q' and s' by at most
    |q - q'| |s| + |q'| |s - s'|, which is computed; rounding the result adds 2^-8 of it, and adding up D products in
    float32, here and for the similarity itself, less than (D + 8) 2^-22.
    """
    narrow, lost = _narrowed(queries)
    lengths = narrow.float().norm(dim=1)
    furthest = 0.0
    parts = torch.split(narrow, max(1, 2 * PRODUCT // tile))  # of half the bytes
    best = [Best(len(part), k, part.device, kept) for part in parts]
    for start, samples in _samples(train, tile, queries.device):
        short, missing = _narrowed(samples)
        furthest = max(furthest, float(missing.amax()))
        error = lost + furthest * lengths + (queries.shape[1] + 8) * 2.0**-22  # [n]
        errors = torch.split(error, len(parts[0]))
        _each(queries.device, partial(_compare, samples=short, start=start), parts, best, errors)
    return _each(queries.device, Best.within_error, best)


def _compare(queries: Tensor, found: Best, error: Tensor | None = None, *, samples: Tensor, start: int) -> None:
    """Let the best of queries [n, D] take in the samples [T, D] from `start` on, their products off by `error` [n]."""
    found.error = error
    found.add(products(queries, samples), start)


def _each(device: torch.device, function: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """Return list(map(function, *arguments)), side by side on a CPU."""
    return side_by_side(function, *arguments) if device.type == "cpu" else list(map(function, *arguments))


def _narrowed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [n, D] in bfloat16 and the length [n] of what the rounding took from each."""
    narrow = rows.bfloat16()
    lost = [
        (a - b.float()).norm(dim=1) for a, b in zip(torch.split(rows, 1024), torch.split(narrow, 1024), strict=True)
    ]
    return narrow, torch.cat(lost)


def tiles(train: Tensor, queries: Tensor, tile: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first training index and the similarities [n, T] of each tile; the queries [n, D] have length 1."""
    for start, samples in _samples(train, tile, queries.device):
        yield start, products(queries, samples)


def _samples(train: Tensor, tile: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(train), tile):
        yield start, unit(train[start : start + tile].to(device))  # [T,D]


def products(queries: Tensor, samples: Tensor) -> Tensor:
    """Return the products [n, T] of rows [n, D] and [T, D], in their type; they are added up in float32.

    On a CPU oneDNN computes them, where torch has it: unlike MKL it gave equal rows equal products wherever they stood
    in every shape tried, and on an AMD EPYC it takes less time.
    """
    if ONEDNN and queries.device.type == "cpu":
        out: Tensor = torch.ops.mkldnn._linear_pointwise(queries, samples, None, "none", [], "")
        return out
    return queries @ samples.T


def unit(features: Tensor) -> Tensor:
    """Return features [n, D] as float32 of length 1.

    Raises:
        UsageError: some are not finite.
    """
    features = F.normalize(features.float(), dim=1)
    if not bool(features.sum().isfinite()):
        raise UsageError("some features are not finite: the backbone has diverged, or its file is damaged")
    return features


class Best:
    """The k largest values of each row so far, earlier ones first among equals.

    Where values are rounded, `error` [n] besides 2^-8 of the value, all that may be among the k largest, up to `kept`.
    """

    def __init__(self, rows: int, k: int, device: torch.device, kept: int | None = None) -> None:
        self.k, self.kept = k, kept or k
        self.error: Tensor | None = None
        self.keys = torch.empty(rows, 0, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, start: int) -> None:
        """Take in the similarities [n, T] of the training samples start, start + 1, ..., which follow all before."""
        width = scores.shape[1] // BLOCK * BLOCK
        full = self.keys.shape[1] >= self.k
        if not full and width < BLOCK * self.k:
            width = 0
        if width:
            blocks = scores[:, :width].view(len(scores), BLOCK, -1)  # [n,8,b]
            highest = blocks.amax(1).float()  # [n,b]
            bound = self._bound() if full else self._first_bound(highest)
            self._merge(_reaching(blocks, *self._enough(highest, bound), start))
        if width < scores.shape[1]:
            columns = torch.arange(start + width, start + scores.shape[1], device=scores.device)
            self._merge(_encoded(scores[:, width:].float(), columns))

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Return values and indices [n, <=k], largest first."""
        return _decoded(self.keys.sort(dim=1, descending=True).values)

    def within_error(self) -> tuple[Tensor, Tensor]:
        """Return indices [n, c], largest value first, and how many [n] of each row may be among the k largest."""
        values, index = self.sorted()
        return index, (values > self._below(values[:, self.k - 1])[:, None]).sum(1)

    def _bound(self) -> Tensor:
        """Return what later values must exceed, [n]."""
        if self.error is None:
            return _decoded(self.keys.amin(1))[0]
        return self._below(_decoded(self.keys.topk(self.k, dim=1, sorted=False).values.amin(1))[0])

    def _first_bound(self, highest: Tensor) -> Tensor:
        """Return what values must exceed to be among the k largest of blocks with these maxima [n, b], b >= k."""
        return self._below(highest.topk(self.k, dim=1, sorted=False).values.amin(1))

    def _enough(self, highest: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Return which blocks [n, b] to read and their bound [n], raised where more would exceed it than are kept."""
        read = highest > bound[:, None]
        many = (read.sum(1) > self.kept).nonzero().squeeze(1)
        if len(many):
            least = highest[many].topk(self.kept, dim=1, sorted=False).values.amin(1)
            bound[many] = torch.nextafter(least, least.new_tensor(-torch.inf))  # others may be equal: they are read
            read[many] = highest[many] > bound[many, None]
        return read, bound

    def _below(self, kth: Tensor) -> Tensor:
        """Return what values must exceed, [n], where the k-th largest so far is `kth` [n].

        Rounded, both may be off, a value d below it by no more than error + (|kth| + d) / 256.
        """
        if self.error is None:
            return torch.nextafter(kth, kth.new_tensor(-torch.inf))
        return kth - (2 * self.error + kth.abs() * 2.0**-7) * (1 + 2.0**-7)

    def _merge(self, keys: Tensor) -> None:
        self.keys = torch.cat([self.keys, keys], 1)
        if self.keys.shape[1] > self.kept:
            self.keys = self.keys.topk(self.kept, dim=1, sorted=False).values


def _reaching(blocks: Tensor, read: Tensor, bound: Tensor, start: int) -> Tensor:
    """Return the keys [n, h] of the values that exceed the bound; the lowest key fills short rows.

    Args:
        blocks: similarities [n, 8, b].
        read: those with such values [n, b].
        bound: [n].
        start: training index of the first.
    """
    row, block = read.nonzero().unbind(1)  # [r]
    values = blocks[row, :, block].float()  # [r,8]
    hit, inside = (values > bound[row, None]).nonzero().unbind(1)  # [s]
    keys, rows = _encoded(values[hit, inside], start + inside * blocks.shape[2] + block[hit]), row[hit]  # [s]
    count = torch.bincount(rows, minlength=len(blocks))  # [n]
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    padded = keys.new_full((len(blocks), int(count.max()) if len(count) else 0), LOWEST)
    padded[rows, place] = keys
    return padded


def _encoded(values: Tensor, index: Tensor) -> Tensor:
    """Return int64 keys that order as float32 values do, and among equal ones against the index."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0: no negative zero
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)) * INDICES + (INDICES - 1 - index)


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values, float32, and the indices of keys."""
    bits = keys >> 32
    values = (bits ^ (bits >> 31 & 0x7FFFFFFF)).int().view(torch.float32)
    return values, INDICES - 1 - (keys & (INDICES - 1))
