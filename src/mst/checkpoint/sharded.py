"""A checkpoint of networks that are divided over processes: a file of each one's parts, beside one of all the rest.

A divided tensor is cut along its first dimension, in the order of the processes, so the whole is its parts one below
the other. The files are what every checkpoint has (`mst.checkpoint.format`): read with `weights_only=True` once their
hashes are right. torch.distributed.checkpoint would keep a pickled index beside them, which reading executes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

REST = "rest"
"""Name of the part that holds all that is not divided, with `DIVIDED` in place of what is."""
DIVIDED = "divided"
SHARD = "shard_{:04d}"
Parts = dict[str, dict[str, Any]]


class Unjoined(ValueError):
    """The files of a checkpoint do not belong together."""


def split(parts: Mapping[str, Any], place: int | None, *, rest: bool) -> Parts:
    """Return what one process writes of a checkpoint's parts, on the CPU and apart from the live tensors.

    Args:
        parts: state dictionaries by name, divided tensors among them (DTensors, cut along the first dimension).
        place: of this process in the order of parts; None if another one has the same parts and writes them.
        rest: whether it also writes what is not divided.
    """
    own: dict[str, Any] = {}

    def taken(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {key: taken(each, f"{path}/{key}") for key, each in value.items()}
        if hasattr(value, "to_local"):
            own[path] = value.to_local().detach().to("cpu", copy=True)
            return DIVIDED
        return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) and rest else value

    others = {name: taken(part, name) for name, part in parts.items()}
    progress = {"progress": others.pop("progress")} if "progress" in others else {}
    found: Parts = {} if place is None else {SHARD.format(place): own}
    return found | {REST: others} | progress if rest else found


def joined(parts: Parts) -> Parts:
    """Return the parts of a checkpoint with whole tensors; parts that are whole as they are.

    Raises:
        Unjoined: a tensor is missing in one of the files.
    """
    if REST not in parts:
        return parts
    shards = [parts[name] for name in sorted(parts) if name.startswith(SHARD[:6])]

    def whole(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {key: whole(each, f"{path}/{key}") for key, each in value.items()}
        if not (isinstance(value, str) and value == DIVIDED):
            return value
        found = [shard.get(path) for shard in shards]
        try:
            return torch.cat(found)  # type: ignore[arg-type]
        except (TypeError, RuntimeError) as error:
            raise Unjoined(f"the parts of {path} do not belong together") from error

    others = {key: part for key, part in parts.items() if key != REST and not key.startswith(SHARD[:6])}
    return {name: whole(part, name) for name, part in parts[REST].items()} | others
