"""Exact nearest neighbours by cosine similarity, in tiles, without sorting what cannot be among them.

Every value that a tile must beat is known before it is searched: the worst neighbour so far, or at first the k-th
largest of the maxima of small blocks, which k different values reach. Only blocks whose maximum reaches it are read.
Equal similarities are ordered by training index, whatever the tiles: value and index are one integer.
Letters: m training samples, n queries, D features, k neighbours, T training samples of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.errors import UsageError

BLOCK = 8
"""Similarities that share one maximum: the columns c, c + b, c + 2 b, ... of b blocks, as adjacent maxima are fast."""
TILE = 8192
"""Training samples compared at a time."""
PRODUCT = 2**22
"""Similarities computed at a time: 16 MB, which the allocator keeps; larger ones are new memory every time."""
BUDGET = 2**27
"""Numbers that the rows of one search may hold together."""
INDICES = 2**32
"""Training samples that a key can tell apart."""
_ONEDNN = bool(
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN's own product of plain tensors is there."""


def query_rows(k: int, tile: int = TILE) -> int:
    """Return how many queries to search at once, so that memory stays bounded whatever k is."""
    return max(1, min(2048, BUDGET // (tile + 8 * k)))


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
    k = min(k, len(train))
    parts = torch.split(unit(queries), max(1, PRODUCT // tile))
    best = [Best(len(part), k, part.device) for part in parts]
    for start, samples in _samples(train, tile, queries.device):
        for part, found in zip(parts, best, strict=True):
            found.add(products(part, samples), start)
    values, index = zip(*(found.sorted() for found in best), strict=True)
    return torch.cat(values), torch.cat(index)


def tiles(train: Tensor, queries: Tensor, tile: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first training index and the similarities [n, T] of each tile; the queries [n, D] have length 1."""
    for start, samples in _samples(train, tile, queries.device):
        yield start, products(queries, samples)


def _samples(train: Tensor, tile: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(train), tile):
        yield start, unit(train[start : start + tile].to(device))  # [T,D]


def products(queries: Tensor, samples: Tensor) -> Tensor:
    """Return the products [n, T] of float32 rows [n, D] and [T, D].

    On a CPU oneDNN computes them, where torch has it: unlike MKL it gave equal rows equal products wherever they stood
    in every shape tried, and on an AMD EPYC it takes less time.
    """
    if _ONEDNN and queries.device.type == "cpu":
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
    """The k largest values of each row so far, earlier ones first among equals."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self.keys = torch.empty(rows, 0, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, start: int) -> None:
        """Take in the similarities [n, T] of the training samples start, start + 1, ..., which follow all before."""
        width = scores.shape[1] // BLOCK * BLOCK
        full = self.keys.shape[1] == self.k
        if not full and width < BLOCK * self.k:
            width = 0
        if width:
            blocks = scores[:, :width].view(len(scores), BLOCK, -1)  # [n,8,b]
            self._merge(_reaching(blocks, _decoded(self.keys.amin(1))[0] if full else None, self.k, start))
        if width < scores.shape[1]:
            columns = torch.arange(start + width, start + scores.shape[1], device=scores.device)
            self._merge(_encoded(scores[:, width:], columns))

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Return values and indices [n, <=k], largest first."""
        return _decoded(self.keys.sort(dim=1, descending=True).values)

    def _merge(self, keys: Tensor) -> None:
        self.keys = torch.cat([self.keys, keys], 1)
        if self.keys.shape[1] > self.k:
            self.keys = self.keys.topk(self.k, dim=1, sorted=False).values


def _reaching(blocks: Tensor, bound: Tensor | None, k: int, start: int) -> Tensor:
    """Return the keys [n, h] of the values that may be among the k largest; the lowest key fills short rows.

    Args:
        blocks: similarities [n, 8, b], b >= k where there is no bound.
        bound: [n], what a value must exceed; None = it must be among the k largest of these.
        k: neighbours.
        start: training index of the first.
    """
    highest = blocks.amax(1)  # [n,b]
    if bound is None:  # the largest number below the k-th maximum
        kth = highest.topk(k, dim=1).values[:, -1]
        bound = torch.nextafter(kth, kth.new_tensor(-torch.inf))
    row, block = (highest > bound[:, None]).nonzero().unbind(1)  # [r]
    values = blocks[row, :, block]  # [r,8]
    hit, inside = (values > bound[row, None]).nonzero().unbind(1)  # [s]
    keys, rows = _encoded(values[hit, inside], start + inside * blocks.shape[2] + block[hit]), row[hit]  # [s]
    count = torch.bincount(rows, minlength=len(blocks))  # [n]
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    padded = keys.new_full((len(blocks), int(count.max()) if len(count) else 0), torch.iinfo(torch.int64).min)
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
