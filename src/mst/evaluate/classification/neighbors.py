"""Exact nearest neighbours by cosine similarity, tile by tile, without sorting similarities that are too small.

Before a tile is searched, a bound is known that a similarity must reach to matter: the smallest of the k best so far.
For the first tile it is the k-th largest of the maxima of small blocks, since at least k similarities are as large.
Only blocks whose maximum reaches the bound are read.

Where the CPU multiplies bfloat16 quickly, products in bfloat16 choose candidates: all training samples that may be
neighbours within a proven error. Only the candidates are compared in float32.

Equal similarities are ordered by training index, however the tiles are cut: a similarity and its index are packed into
one integer, the key, and keys are compared.
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
"""Similarities that share one maximum. Block c of b has the columns c, c + b, c + 2 b, ...: so the maxima of all blocks
are computed along rows of memory, which is fast."""
TILE = 8192
"""Training samples compared at a time."""
PRODUCT = 2**22
"""Similarities computed at a time: 16 MB. The allocator keeps memory of this size; larger is fetched anew each time."""
BUDGET = 2**27
"""Numbers that the queries of one search may hold in memory together."""
GATHERED = 2**20
"""Numbers of the candidates that are compared in float32 at a time: 4 MB."""
INDICES = 2**32
"""Most training samples: a key has 32 bits for the index."""
LOWEST = torch.iinfo(torch.int64).min
"""A key below all others: no neighbour."""
_BF16 = ONEDNN_BF16 and cpu_has_bfloat16()
"""Whether this CPU multiplies bfloat16 itself, at twice the speed of float32."""


def query_rows(k: int, tile: int = TILE) -> int:
    """Return how many queries to search at once so that memory stays bounded for any k."""
    return max(1, min(4096, BUDGET // (tile + 8 * k)))


def nearest_neighbors(train: Tensor, queries: Tensor, k: int, *, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Return similarities [n, k] in descending order and the training indices [n, k] they belong to.

    Args:
        train: [m, D], vectors of any length, on any device; may be mapped from a file.
        queries: [n, D]; the products run on their device. Give `query_rows(k)` of them at a time to bound the memory.
        k: neighbours; where there are fewer training samples, all of them.
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
    """Return what `nearest_neighbors` returns for unit queries [n, D], from float32 products of all pairs."""
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
    """Return whether `from_candidates` is likely to be faster, judged by a few queries and every eighth sample."""
    kept, few = kept_for(k), 8
    cpu = train.device.type == queries.device.type == "cpu"
    if not (_BF16 and cpu and train.shape[1] >= 128 and len(train) >= 128 * kept and len(queries)):
        return False
    some = queries[:: max(1, len(queries) // 64)]
    found = candidates(train[::few], some, -(-k // few), kept=kept // few, tile=tile)
    return float(torch.cat([counts < kept // few for _, counts in found]).float().mean()) >= 0.9


def from_candidates(train: Tensor, queries: Tensor, k: int, *, kept: int, tile: int) -> tuple[Tensor, Tensor]:
    """Return what `nearest_neighbors` returns for unit queries [n, D], with float32 products of candidates only.

    A query with `kept` candidates or more may have lost some: it is compared with all training samples.
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
    """Return similarities and training indices [n, k] of queries [n, D], found among their candidates.

    Args:
        train: [m, D].
        queries: [n, D], of length 1.
        index: training indices of the candidates [n, c].
        counts: how many of each row are candidates [n].
        k: neighbours.
        kept: rows with as many candidates or more are left unfilled.
    """
    values, order = queries.new_empty(len(queries), k), queries.new_empty(len(queries), k, dtype=torch.int64)
    rows = (counts < kept).nonzero().squeeze(1)
    together = max(1, GATHERED // (queries.shape[1] * index.shape[1]))
    for some in torch.split(rows, together) if len(rows) else ():
        keys = _keys(train, queries[some], index[some], counts[some])
        values[some], order[some] = _decoded(keys.topk(k, dim=1).values)
    return values, order


def _keys(train: Tensor, queries: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Return the keys [n, c] of queries [n, D] and, of each row of `index` [n, >=c], the first `counts` [n] samples."""
    width = int(counts.max())
    near = index[:, :width].clamp(max=len(train) - 1)  # [n,c]
    samples = F.normalize(train.index_select(0, near.flatten()).float(), dim=1)  # [n*c,D]; train[near] is slow
    similarity = samples.view(*near.shape, -1).mul_(queries[:, None]).sum(2)  # [n,c]
    beyond = torch.arange(width) >= counts[:, None]
    return _encoded(similarity, near).masked_fill_(beyond, LOWEST)


def candidates(train: Tensor, queries: Tensor, k: int, *, kept: int, tile: int) -> list[tuple[Tensor, Tensor]]:
    """Return, for each group of queries, training indices [B, c] and how many [B] of a row may be among its neighbours.

    The indices are ordered by bfloat16 similarity, largest first. If that number is below `kept` (k < `kept`), the k
    neighbours are certain to be among so many first indices of the row.

    The error: for unit rows q and s with roundings q' and s', the products q s and q' s' differ by at most
    |q - q'| |s| + |q'| |s - s'|, which is computed. Rounding the result adds at most 2^-8 of it. Adding up D products
    in float32, once here and once for the similarity itself, adds less than (D + 8) 2^-22.
    """
    narrow, lost = _narrowed(queries)
    lengths = narrow.float().norm(dim=1)
    furthest = 0.0
    parts = torch.split(narrow, max(1, 2 * PRODUCT // tile))  # twice as many: a bfloat16 has half the bytes
    best = [Best(len(part), k, part.device, kept) for part in parts]
    for start, samples in _samples(train, tile, queries.device):
        short, missing = _narrowed(samples)
        furthest = max(furthest, float(missing.amax()))
        error = lost + furthest * lengths + (queries.shape[1] + 8) * 2.0**-22  # [n]
        errors = torch.split(error, len(parts[0]))
        _each(queries.device, partial(_compare, samples=short, start=start), parts, best, errors)
    return _each(queries.device, Best.within_error, best)


def _compare(queries: Tensor, found: Best, error: Tensor | None = None, *, samples: Tensor, start: int) -> None:
    """Take the samples [T, D], whose first training index is `start`, into the best of queries [n, D].

    `error` [n] bounds how far their products are off.
    """
    found.error = error
    found.add(products(queries, samples), start)


def _each(device: torch.device, function: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """Return list(map(function, *arguments)), side by side on a CPU."""
    return side_by_side(function, *arguments) if device.type == "cpu" else list(map(function, *arguments))


def _narrowed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [n, D] in bfloat16, and the length [n] of the difference that the rounding made to each."""
    narrow = rows.bfloat16()
    lost = [
        (a - b.float()).norm(dim=1) for a, b in zip(torch.split(rows, 1024), torch.split(narrow, 1024), strict=True)
    ]
    return narrow, torch.cat(lost)


def tiles(train: Tensor, queries: Tensor, tile: int) -> Iterator[tuple[int, Tensor]]:
    """Yield for each tile its first training index and its similarities [n, T] to unit queries [n, D]."""
    for start, samples in _samples(train, tile, queries.device):
        yield start, products(queries, samples)


def _samples(train: Tensor, tile: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(train), tile):
        yield start, unit(train[start : start + tile].to(device))  # [T,D]


def products(queries: Tensor, samples: Tensor) -> Tensor:
    """Return the products [n, T] of rows [n, D] and [T, D] in their own type, summed in float32.

    On a CPU they are computed by oneDNN where torch has it, bfloat16 where oneDNN knows that on this CPU (with AVX2
    alone it does not). In every shape tried it gave equal rows equal products, wherever the rows stood; MKL did not. On
    an AMD EPYC it also takes less time.
    """
    if queries.device.type == "cpu" and (ONEDNN_BF16 if queries.dtype == torch.bfloat16 else ONEDNN):
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
    """The k largest similarities of each row so far; among equal ones, those of lower training index.

    Where the similarities are rounded, `error` [n] bounds how far they are off, besides 2^-8 of the value. Then all
    that may be among the k largest are held, at most `kept` of them.
    """

    def __init__(self, rows: int, k: int, device: torch.device, kept: int | None = None) -> None:
        self.k, self.kept = k, kept or k
        self.error: Tensor | None = None
        self.keys = torch.empty(rows, 0, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, start: int) -> None:
        """Take in the similarities [n, T] to the training samples start, start + 1, ...; tiles come in this order."""
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
        """Return indices [n, c], largest similarity first, and how many [n] of a row may be among its k largest."""
        values, index = self.sorted()
        return index, (values > self._below(values[:, self.k - 1])[:, None]).sum(1)

    def _bound(self) -> Tensor:
        """Return the values [n] that later similarities must exceed to matter."""
        if self.error is None:
            return _decoded(self.keys.amin(1))[0]
        return self._below(_decoded(self.keys.topk(self.k, dim=1, sorted=False).values.amin(1))[0])

    def _first_bound(self, highest: Tensor) -> Tensor:
        """Return the values [n] to exceed in the first tile, from the maxima of its blocks [n, b], b >= k."""
        return self._below(highest.topk(self.k, dim=1, sorted=False).values.amin(1))

    def _enough(self, highest: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Return which blocks to read [n, b], and the bound [n].

        The bound is raised where more blocks exceed it than similarities are kept.
        """
        read = highest > bound[:, None]
        many = (read.sum(1) > self.kept).nonzero().squeeze(1)
        if len(many):
            least = highest[many].topk(self.kept, dim=1, sorted=False).values.amin(1)
            bound[many] = torch.nextafter(least, least.new_tensor(-torch.inf))  # equal maxima are read
            read[many] = highest[many] > bound[many, None]
        return read, bound

    def _below(self, kth: Tensor) -> Tensor:
        """Return the values [n] that similarities must exceed, given the k-th largest so far, `kth` [n].

        Where they are rounded, both sides may be off: `kth` and a value that is d smaller each by at most
        error + (|kth| + d) / 256.
        """
        if self.error is None:
            return torch.nextafter(kth, kth.new_tensor(-torch.inf))
        return kth - (2 * self.error + kth.abs() * 2.0**-7) * (1 + 2.0**-7)

    def _merge(self, keys: Tensor) -> None:
        self.keys = torch.cat([self.keys, keys], 1)
        if self.keys.shape[1] > self.kept:
            self.keys = self.keys.topk(self.kept, dim=1, sorted=False).values


def _reaching(blocks: Tensor, read: Tensor, bound: Tensor, start: int) -> Tensor:
    """Return the keys [n, h] of the similarities that exceed the bound; shorter rows are filled with the lowest key.

    Args:
        blocks: similarities [n, 8, b].
        read: which blocks hold such similarities [n, b].
        bound: [n].
        start: training index of the first column.
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
    """Return int64 keys: larger for larger float32 values, and among equal values for lower indices."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 a 0.0
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)) * INDICES + (INDICES - 1 - index)


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values, float32, and the indices of keys."""
    bits = keys >> 32
    values = (bits ^ (bits >> 31 & 0x7FFFFFFF)).int().view(torch.float32)
    return values, INDICES - 1 - (keys & (INDICES - 1))
