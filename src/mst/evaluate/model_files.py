"""A trained network on disk: weights in safetensors, and beside them a JSON file with all that rebuilds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mst.errors import CheckpointError, MstError, RunFailure
from mst.runtime.files import write_atomic

Network = TypeVar("Network", bound=nn.Module)
Rest = TypeVar("Rest")

REASON = 200
"""Most characters that a message takes from torch, which lists every tensor."""


@dataclass(frozen=True)
class ModelFiles:
    """The two files of one kind of network.

    Attributes:
        kind: what the network is called; the stem of its files as well.
        command: what writes them, for the messages.
        version: of what the JSON file says; another one is refused.
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
        """Write both files; those that are there are replaced only when the new ones are complete.

        Args:
            folder: made if it is not there.
            network: its weights are written, from any device.
            values: all else that rebuilds it, as JSON types.

        Raises:
            RunFailure: the folder cannot be made, or the disk refused.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise RunFailure(f"cannot make {folder} for the {self.kind}: {reason}; name another folder") from error
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        write_atomic(folder / self.weights, save(weights, metadata={"format": "pt"}))
        write_atomic(folder / self.description, json.dumps({"format": self.version, **values}, indent=2))

    def load(self, folder: Path, build: Callable[[dict[str, Any]], tuple[Network, Rest]]) -> tuple[Network, Rest]:
        """Return the network on the CPU, in evaluation mode, and what else `build` returns.

        Args:
            folder: from `save`.
            build: returns the network with any weights, and more, from the values that were saved.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights do not fit the description.
        """
        for name in (self.description, self.weights):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}: give the --save-model or --out of an `{self.command}`")
        network, rest = self._built(folder / self.description, build)
        path = folder / self.weights
        try:
            network.load_state_dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {path}: {error}; train the {self.kind} or copy it again") from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:REASON]
            raise CheckpointError(
                f"{path} does not fit {self.description} ({reason}): train the {self.kind} or copy it again"
            ) from error
        return network.eval(), rest

    def _built(self, path: Path, build: Callable[[dict[str, Any]], tuple[Network, Rest]]) -> tuple[Network, Rest]:
        """Return what `build` makes of a description.

        Raises:
            CheckpointError: it is none.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != self.version:
                raise CheckpointError(f"format {values['format']}, this version reads {self.version}")
            return build(values)
        except (MstError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"cannot read {path}: {reason}; train the {self.kind} or copy it again") from error
