"""Which tensors of a file are a network's weights: a search over wrappers, prefixes and namings, by name and shape.

The names of the most common projects are in `mst.weights.naming`; for the rest timm's own converters are asked.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor

from mst.errors import CheckpointError
from mst.weights.candidates import Candidate, candidates, group_count
from mst.weights.naming import NAMINGS
from mst.weights.tensors import shape_of
from mst.weights.unpickling import OddTensor

FIRST_CONVOLUTION = "patch_embed.proj.weight"
BIAS_TABLE = "relative_position_bias_table"
POSITIONS = "pos_embed"
MOST_CANDIDATES = 100
EXAMPLES = 3


@dataclass(frozen=True)
class Found:
    """A network's weights in a file.

    Attributes:
        candidate: where they are.
        tensors: under timm's names.
        matched: how many of the network's tensors are among them, by name and shape.
        alike: places of other networks that fit as well, and were not taken.
    """

    candidate: Candidate
    tensors: dict[str, Any]
    matched: int
    alike: tuple[Candidate, ...] = ()


def find_weights(content: object, model: Any, source: object) -> Found:
    """Return the tensors that fit a timm network best; of equal ones the averaged network's, then the first.

    Args:
        content: what `read_weights` returned.
        model: the timm network; not changed.
        source: for the messages.

    Raises:
        CheckpointError: no group of tensors begins with a first convolution.
    """
    expected: dict[str, Tensor] = model.state_dict()
    best: Found | None = None
    alike: list[Candidate] = []
    for candidate in islice(candidates(content), MOST_CANDIDATES):
        for tensors in _namings(candidate, model):
            matched = sum(fits(name, tensors[name], expected[name]) for name in expected if name in tensors)
            place = matched, -candidate.rank
            if best is None or place > (best.matched, -best.candidate.rank):
                best, alike = Found(candidate, tensors, matched), []
            elif place == (best.matched, -best.candidate.rank) and candidate is not best.candidate:
                alike.append(candidate)
    if best is not None:
        return replace(best, alike=tuple({id(each): each for each in alike}.values()))
    if not group_count(content):
        raise CheckpointError(f"{source} holds no tensors by name: give a file of weights")
    raise CheckpointError(f"{source} holds tensors, but no first convolution of a ViT or Swin: give weights of one")


def fits(name: str, value: object, expected: Tensor) -> bool:
    """Whether a tensor has the shape that is expected, or one that follows from another image size or channels."""
    found, wanted = shape_of(value), list(expected.shape)
    if found == wanted or isinstance(value, OddTensor):
        return True
    if name == FIRST_CONVOLUTION:
        return len(found) == 4 and [found[0], *found[2:]] == [wanted[0], *wanted[2:]]
    if name == POSITIONS:
        return len(found) == len(wanted) == 3 and found[2] == wanted[2]
    return name.endswith(BIAS_TABLE) and len(found) == 2 and found[1] == wanted[1]


def _namings(candidate: Candidate, model: Any) -> Iterator[dict[str, Any]]:
    """Yield a candidate's tensors under timm's names, read in each way that is known."""
    for naming in NAMINGS:
        yield naming(candidate.tensors)
    converter: Callable[..., Mapping[str, Any]] | None
    converter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    first = candidate.tensors.get("conv1.weight", candidate.tensors.get(FIRST_CONVOLUTION))
    if converter is None or shape_of(first)[-2:] != list(model.patch_embed.patch_size):  # it would resample patches
        return
    clip = {f"visual.{name}": value for name, value in candidate.tensors.items()}
    try:
        with redirect_stdout(io.StringIO()):
            yield dict(converter(clip if "conv1.weight" in candidate.tensors else dict(candidate.tensors), model))
    except Exception:  # not weights that it knows: the namings above have been tried
        return
