"""How the student's work on a batch is divided: into shares of the images, and into parts that share nothing.

Letters: B images, b images of a share, G global crops, L local crops, N patch tokens, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mst.model.tokens import Summary
from mst.objective.dino import view_targets
from mst.objective.records import CropSet
from mst.views.record import Views

T = TypeVar("T")


def shared(views: Views, share: slice) -> Views:
    """Return the crops of some images."""
    return Views(views.global_crops[:, share], views.local_crops[:, share], views.indices[share])


def whole(shares: Sequence[Tensor | None], crops: int) -> Tensor | None:
    """Put shares of the images [G*b, ...] together again [G*B, ...]; None if one is None."""
    found = [share.view(crops, -1, *share.shape[1:]) for share in shares if share is not None]
    return torch.cat(found, dim=1).flatten(0, 1) if len(found) == len(shares) else None


def whole_summary(shares: Sequence[Summary], crops: int) -> Summary:
    """Put the teacher's words on shares of the images together again."""
    cls = whole([share.cls for share in shares], crops)  # [G*B,D]
    assert cls is not None
    return Summary(cls, shares[0].grid, whole([share.importance for share in shares], crops))


def student_parts(
    views: Views, mask: Tensor | None, teacher_probs: Tensor, *, together: bool
) -> Iterator[tuple[CropSet, ...]]:
    """Yield what the student sees, in parts that share nothing: all local crops, then each global crop.

    The last part is one that every trained parameter has a share in, the decoder's too: what adds up gradients over
    processes does so then (pytorch #69031: of parameters unused in the last part, it loses the gradients).

    Args:
        views: as in `mst_losses`.
        mask: tokens hidden in the global crops [G*B, N], or None.
        teacher_probs: [G, B, K].
        together: make one part of all, because the head's BatchNorm looks at all crops of the batch, as in DINO.
    """
    of_globals, of_locals = view_targets(teacher_probs)  # [G,B,K], [1,B,K]
    everything = CropSet(views.global_crops, mask, of_globals, 0, True)
    crops = len(views.global_crops)
    local = (CropSet(views.local_crops, None, of_locals, crops, False),) if len(views.local_crops) else ()
    if together:
        yield (everything, *local)
        return
    if local:
        yield local
    masks = [None] * crops if mask is None else mask.chunk(crops)
    for first, (crop, hidden, targets) in enumerate(zip(views.global_crops, masks, of_globals, strict=True)):
        yield (CropSet(crop[None], hidden, targets[None], first, True),)


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item, and whether it is the last one."""
    listed = list(items)
    yield from ((item, number == len(listed)) for number, item in enumerate(listed, start=1))
