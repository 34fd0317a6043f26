"""A trained network on disk: its weights in safetensors, and a JSON file from which it can be built again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save
from torch import nn

from mst.data.value_range import Scale, ValueRanges
from mst.errors import CheckpointError, MstError, RunFailure
from mst.runtime.storage.files import may_write, write_together
from mst.weights.description import BadDescription, read_description, shown
from mst.weights.files import load_exactly

Network = TypeVar("Network", bound=nn.Module)
Rest = TypeVar("Rest")

REASON = 200
"""Characters of a library's message that are shown, at most."""


def kept_ranges(values: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """Return the value ranges of a description as JSON types, or None where it has none.

    Raises:
        ValueError: they are none.
    """
    kept = values.get("value_ranges")
    return None if kept is None else ValueRanges.from_json(kept).to_json()


def ranges_to_keep(scale: Scale) -> dict[str, list[float]] | None:
    """Return the value ranges that a network was trained with, as JSON types."""
    return scale.to_json() if isinstance(scale, ValueRanges) else None


def ranges_in_use(scale: Scale) -> dict[str, Any]:
    """Return what a row says of the value ranges of its data: `value_ranges`, or nothing where all is in 8 bits."""
    used = scale.in_use if isinstance(scale, ValueRanges) else {}
    return {"value_ranges": used} if used else {}


@dataclass(frozen=True)
class ModelFiles:
    """The two files of one kind of network.

    Attributes:
        kind: what the network is called; the stem of its files as well.
        command: what writes them, for the messages.
        version: of the JSON file's format; files of another version are refused.
    """

    kind: str
    command: str
    version: int

    @property
    def weights(self) -> str:
        """Name of the file with the weights."""
        return f"{self.kind}.safetensors"

    @property
    def description(self) -> str:
        """Name of the JSON file."""
        return f"{self.kind}.json"

    def save(self, folder: Path, network: nn.Module, values: Mapping[str, Any]) -> None:
        """Write both files. Each is complete before it replaces the one that is there.

        Args:
            folder: made if it is not there.
            network: its weights are written, from any device.
            values: what is needed to build it again, as JSON types.

        Raises:
            RunFailure: the folder cannot be made, or the disk refused.
        """
        if not may_write():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise RunFailure(f"cannot make {folder} for the {self.kind}: {reason}; name another folder") from error
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        description = json.dumps({"format": self.version, **values}, indent=2)
        content = save(weights, metadata={"format": "pt"})
        write_together([(folder / self.weights, content), (folder / self.description, description)])

    def load(self, folder: Path, build: Callable[[dict[str, Any]], tuple[Network, Rest]]) -> tuple[Network, Rest]:
        """Return the network on the CPU in evaluation mode, and whatever else `build` returns.

        Args:
            folder: from `save`.
            build: takes the saved values; returns the network with arbitrary weights, and more. Called twice.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights do not fit the described network exactly, are
                not finite, or not of a floating type. This is found before the network takes memory.
        """
        for name in (self.description, self.weights):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}: give the --save-model or --out of an `{self.command}`")
        remedy = f"train the {self.kind} or copy it again"
        try:
            values = read_description(folder / self.description)
            if type(version := values.get("format")) is not int or version != self.version:
                raise BadDescription(f"format {shown(version)}, this version reads {self.version}")
        except (BadDescription, OSError) as error:
            raise CheckpointError(f"cannot read {folder / self.description}: {error}; {remedy}") from error

        def built() -> tuple[Network, Rest]:
            try:
                return build(values)
            except (MstError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:REASON]
                raise CheckpointError(f"cannot read {folder / self.description}: {reason}; {remedy}") from error

        network, rest = load_exactly(folder / self.weights, built, itemgetter(0), remedy)
        return network.eval(), rest
