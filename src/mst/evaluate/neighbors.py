"""Exact nearest neighbours by cosine similarity, in tiles, without sorting what cannot be among them.

Every value that a tile must beat is known before it is searched: the worst neighbour so far, or at first the k-th
largest of the maxima of small blocks, which k different values reach. Only blocks whose maximum reaches it are read.
Equal similarities are ordered by training index, whatever the tiles.
Letters: m training samples, n queries, D features, k neighbours, T training samples of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.errors import UsageError

BLOCK = 16
"""Similarities that share one maximum."""
TILE = 8192
"""Training samples compared at a time."""
BUDGET = 2**27
"""Numbers that the rows of one search may hold together."""


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
    queries = unit(queries)  # [n,D]
    best = Best(len(queries), k, queries.device)
    for start, scores in tiles(train, queries, tile):
        if len(best) < k and scores.shape[1] < BLOCK * k:
            columns = torch.arange(start, start + scores.shape[1], device=scores.device)
            best.add(scores, columns.expand(len(scores), -1))
        else:
            bound = best.worst() if len(best) == k else None
            values, columns = reaching(scores, bound, k)
            best.add(values, columns + start)
    return best.sorted()


def tiles(train: Tensor, queries: Tensor, tile: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first training index and the similarities [n, T] of each tile; the tensor is used again."""
    space = queries.new_empty(len(queries) * min(tile, len(train)))
    for start in range(0, len(train), tile):
        part = unit(train[start : start + tile].to(queries.device))  # [T,D]
        scores = space[: len(queries) * len(part)].view(len(queries), len(part))
        yield start, torch.mm(queries, part.T, out=scores)


def unit(features: Tensor) -> Tensor:
    """Return features [n, D] as float32 of length 1.

    Raises:
        UsageError: some are not finite.
    """
    features = F.normalize(features.float(), dim=1)
    if not bool(features.sum().isfinite()):
        raise UsageError("some features are not finite: the backbone has diverged, or its file is damaged")
    return features


def reaching(scores: Tensor, bound: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Return the values [n, h] that may be among the k largest, and their columns, ascending; -inf fills short rows.

    Args:
        scores: [n, T], T >= 16 k where there is no bound.
        bound: [n], what a value must exceed; None = it must be among the k largest of this tile.
        k: neighbours.
    """
    width = scores.shape[1] // BLOCK * BLOCK
    blocks = scores[:, :width].view(len(scores), -1, BLOCK)  # [n,T/16,16]
    highest = blocks.amax(2)  # [n,T/16]
    if bound is None:  # the largest number below the k-th maximum
        kth = highest.topk(k, dim=1).values[:, -1]
        bound = torch.nextafter(kth, kth.new_tensor(-torch.inf))
    row, block = (highest > bound[:, None]).nonzero().unbind(1)  # [b]
    hit, inside = (blocks[row, block] > bound[row, None]).nonzero().unbind(1)
    rows, columns = row[hit], block[hit] * BLOCK + inside
    tail_row, tail = (scores[:, width:] > bound[:, None]).nonzero().unbind(1)
    if len(tail):
        rows, order = torch.cat([rows, tail_row]).sort(stable=True)
        columns = torch.cat([columns, tail + width])[order]
    return _padded(scores, rows, columns)


def _padded(scores: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return chosen entries (rows ascending) as [n, h] values and columns, filled up with -inf and 0."""
    count = torch.bincount(rows, minlength=len(scores))  # [n]
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    shape = len(scores), int(count.max())
    values = scores.new_full(shape, -torch.inf)
    found = columns.new_zeros(shape)
    values[rows, place], found[rows, place] = scores[rows, columns], columns
    return values, found


class Best:
    """The k largest values of each row so far, earlier ones first among equals."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self.values = torch.empty(rows, 0, device=device)
        self.index = torch.empty(rows, 0, dtype=torch.int64, device=device)
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.width = 0

    def __len__(self) -> int:
        """Return how many values each row has, at most k; what waits is counted."""
        return min(self.k, self.values.shape[1] + self.width)

    def add(self, values: Tensor, index: Tensor) -> None:
        """Take in values [n, h] and their indices, which follow all indices before; -inf is nothing."""
        if not values.shape[1]:
            return
        self.waiting.append((values.clone(), index))
        self.width += values.shape[1]
        if self.width >= self.k:
            self._merge()

    def worst(self) -> Tensor:
        """Return the smallest of the k values [n]."""
        self._merge()
        return self.values[:, -1]

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Return values and indices [n, <=k], largest first."""
        self._merge()
        return self.values, self.index

    def _merge(self) -> None:
        if self.waiting:
            values = torch.cat([self.values, *(part for part, _ in self.waiting)], 1)
            index = torch.cat([self.index, *(part for _, part in self.waiting)], 1)
            self.waiting, self.width = [], 0
            values, order = values.sort(dim=1, descending=True, stable=True)
            self.values, self.index = values[:, : self.k].clone(), index.gather(1, order[:, : self.k])
