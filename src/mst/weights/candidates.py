"""Where in a checkpoint the weights of a network may lie: every group of named tensors, and every prefix in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mst.weights.unpickling import OddTensor, StandIn

DEEPEST = 6
MOST_GROUPS, LISTED = 1000, 10
STEM = re.compile(r"(.*?)(?:embeddings\.patch_embeddings(?:\.projection)?|patch_embed\.proj(?:ection)?|conv1)\.weight")
"""Matches the first convolution of each family; what stands before it is the prefix that a training script added."""
AVERAGED = {"ema", "teacher", "target", "averaged", "swa"}
BESIDE = {"student", "momentum", "online"}
"""Words in keys that tell the two networks of a training apart; papers evaluate the averaged one."""


@dataclass(frozen=True)
class Candidate:
    """Tensors of one network, as a file names them.

    Attributes:
        wrapper: keys that lead to the group, joined by dots; "" for the file itself.
        prefix: what is cut off the names.
        tensors: by the names that remain; `OddTensor` in the place of a tensor that is not dense.
        beside: names in the group without that prefix.
    """

    wrapper: str
    prefix: str
    tensors: dict[str, Any]
    beside: tuple[str, ...]

    @property
    def rank(self) -> int:
        """0 for an averaged network, 2 for the network that it averages, 1 for any other; the lowest is taken."""
        words = set(re.split(r"[^a-z]+", f"{self.wrapper}.{self.prefix}".lower()))
        return 0 if words & AVERAGED else 2 if words & BESIDE else 1

    def place(self, source: object) -> str:
        """Return where the tensors are in `source`, in words."""
        prefix = f" (prefix {self.prefix})" if self.prefix else ""
        return f"{self.wrapper}{prefix} of {source}" if self.wrapper else f"{source}{prefix}"


def candidates(content: object) -> Iterator[Candidate]:
    """Yield every group of tensors in what `read_weights` returned, once for each prefix of a first convolution."""
    for wrapper, group in _groups(content):
        prefixes = {match.group(1) for name in group if (match := STEM.fullmatch(name))}
        for prefix in sorted(prefixes, key=lambda text: (len(text), text)):
            inside = {name.removeprefix(prefix): value for name, value in group.items() if name.startswith(prefix)}
            beside = tuple(sorted(name for name in group if not name.startswith(prefix)))
            yield Candidate(wrapper, prefix, inside, beside)


def group_count(content: object) -> int:
    """Return how many groups of tensors there are."""
    return sum(1 for _ in _groups(content))


def _groups(content: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the tensors by name of each mapping that holds any, outermost first; each object once."""
    seen: set[int] = set()
    waiting: list[tuple[str, object, int]] = [("", content, 0)]
    while waiting and len(seen) < MOST_GROUPS:
        path, value, depth = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        items = _items(value)
        group = {name: item for name, item in items.items() if isinstance(item, Tensor | OddTensor)}
        if group:
            yield path, group
        if depth < DEEPEST:
            waiting += [
                (f"{path}.{name}".lstrip("."), item, depth + 1)
                for name, item in items.items()
                if isinstance(item, Mapping | list | tuple) and not isinstance(item, OddTensor)
            ]


def _items(value: object) -> dict[str, Any]:
    """Return the named values of a mapping or a pickled network; of a list, its first items by number."""
    if isinstance(value, list | tuple):
        return {str(number): item for number, item in enumerate(value[:LISTED]) if isinstance(item, Mapping)}
    if isinstance(value, StandIn) and isinstance(value.state, Mapping):
        state = value.state
        return _of_network(value, "", 0) if "_modules" in state else _by_name(state)
    return _by_name(value)


def _by_name(values: object) -> dict[str, Any]:
    return (
        {name: value for name, value in values.items() if isinstance(name, str)} if isinstance(values, Mapping) else {}
    )


def _of_network(network: object, prefix: str, depth: int) -> dict[str, Any]:
    """Return the state dictionary of a pickled `nn.Module`, from its attributes: its class was not imported."""
    state = network.state if isinstance(network, StandIn) else None
    if not isinstance(state, Mapping) or depth > 4 * DEEPEST:
        return {}
    found: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers"):
        found |= {f"{prefix}{name}": value for name, value in _by_name(state.get(kind)).items()}
    for name, module in _by_name(state.get("_modules")).items():
        found |= _of_network(module, f"{prefix}{name}.", depth + 1)
        if len(found) > 100 * MOST_GROUPS:
            break
    return found
