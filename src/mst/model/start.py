"""Trained weights as the start of a backbone: from a run, a file or timm, matched by name, strictly.

What depends on the image is adapted: position embeddings are resampled as timm does it, Swin's bias tables as Swin's
fine-tuning does it (Liu et al. 2021), the first convolution is spread over another number of channels. Everything else
must fit or is refused.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from mst.errors import CheckpointError, UsageError
from mst.model.backbone import Backbone
from mst.model.backbone_file import FILE_NAME, load_backbone
from mst.model.build import family

TIMM = "timm:"
HUB = "huggingface_hub"
"""Logger of the client with which timm fetches weights."""
LEAST_MATCHED = 0.9
"""Share of the backbone's tensors that must be found."""
WRAPPERS = ("teacher", "student", "state_dict", "model")
"""Keys under which checkpoints of other projects keep the weights, the first one found counts."""
PREFIXES = ("module.", "backbone.", "model.")
FIRST_CONVOLUTION = "patch_embed.proj.weight"
BIAS_TABLE = "relative_position_bias_table"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Start:
    """What was taken over.

    Attributes:
        source: where from.
        matched: tensors found, adapted ones included.
        adapted: what was resampled or spread, one phrase each.
        missing: tensors of the backbone that the source has not; they keep their fresh values.
        unexpected: tensors of the source that the backbone has not; they are left out.
    """

    source: str
    matched: int
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        changes = f" ({', '.join(self.adapted)})" if self.adapted else ""
        return (
            f"start from {self.source}: {self.matched} of {self.matched + len(self.missing)} tensors matched{changes}, "
            f"{len(self.missing)} missing{_some(self.missing)}, "
            f"{len(self.unexpected)} unexpected{_some(self.unexpected)}"
        )


def start_from(backbone: Backbone, source: str) -> Start:
    """Load trained weights into `backbone`, in place; the mask token stays fresh.

    Args:
        backbone: on the CPU.
        source: a run folder, a backbone file, a file of weights under timm's names (`.safetensors`, or `.pth` and the
            like, read without running code from it), or `timm:NAME` for what timm fetches.

    Raises:
        CheckpointError: nothing there, weights of another or of a deeper network, or fewer than 90 % of the tensors.
    """
    weights, grid = _read(source)
    expected: Weights = backbone.timm_state_dict()
    fitting = _Fitting(source, backbone.model, grid, [])
    taken = {name: fitting.fit(name, weights[name], expected[name]) for name in expected if name in weights}
    start = Start(
        source,
        len(taken),
        tuple(fitting.adapted),
        tuple(sorted(expected.keys() - taken.keys())),
        tuple(sorted(weights.keys() - taken.keys())),
    )
    if start.matched < LEAST_MATCHED * len(expected) or FIRST_CONVOLUTION not in taken:
        raise CheckpointError(
            f"{start}; at least {LEAST_MATCHED:.0%} are needed: is it a {backbone.spec.name}? Name the right one"
        )
    kinds = {_kind(name) for name in expected}
    deeper = next((name for name in start.unexpected if _kind(name) in kinds), None)
    if deeper is not None:
        raise CheckpointError(
            f"{source} holds a deeper network, {deeper} has no place here: name the network (or the depth) it was made "
            "with"
        )
    backbone.model.load_state_dict({**expected, **taken})
    return start


def spread_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a first convolution [D, C, p, p] for another number of channels [D, channels, p, p].

    More channels repeat the filters in turn, fewer take their mean; either way the filters are scaled so that an image
    whose channels are all alike gives what it gave before.
    """
    old = weight.shape[1]
    if channels < old:
        return weight.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1) * (old / channels)
    source = torch.arange(channels) % old  # [channels]
    repeats = torch.bincount(source, minlength=old)[source]  # [channels]
    return weight[:, source] / repeats.view(1, -1, 1, 1)


def _read(source: str) -> tuple[Weights, tuple[int, int] | None]:
    """Return weights under timm's names, and the (h, w) grid of their position embedding where it is known."""
    if source.startswith(TIMM):
        return _from_timm(source.removeprefix(TIMM)), None
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / FILE_NAME
    if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        backbone = load_backbone(path)
        height, width = backbone.spec.image_size
        return backbone.timm_state_dict(), (height // backbone.patch_size, width // backbone.patch_size)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a run folder, a file of weights or {TIMM}NAME")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except OSError as error:
        raise CheckpointError(f"cannot read weights from {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot read weights from {path}: it is damaged, or no safetensors file") from error
    return _unwrapped(content, path), None


def _load_torch(path: Path) -> Any:
    """Return what `torch.save` wrote, read without running code from it.

    Raises:
        CheckpointError: it is something else, or needs code.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, "cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever bytes that are no weights raise
        raise CheckpointError(
            f"cannot read weights from {path}: it is damaged, or more than tensors (a whole model needs code: save its "
            "state_dict instead)"
        ) from error


def _from_timm(name: str) -> Weights:
    """Return the weights that timm fetches, or has fetched before."""
    if not timm.is_model(name):
        raise CheckpointError(f"{TIMM}{name}: timm has no such model (timm.list_pretrained() lists those with weights)")
    try:
        family(name.partition(".")[0])
    except UsageError as error:
        raise CheckpointError(f"{TIMM}{name}: {error}") from error
    if not timm.models.is_model_pretrained(name):
        raise CheckpointError(f"{TIMM}{name}: timm has no trained weights of it (see timm.list_pretrained())")
    try:
        with torch.random.fork_rng(devices=[]), _quiet(HUB):
            model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the client that fetches them raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{TIMM}{name}: the weights could not be fetched ({reason}): without a network, fetch them elsewhere and "
            "give their file"
        ) from error
    weights: Weights = model.state_dict()
    return weights


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back what a library logs about its retries; its last error is told by the caller."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unwrapped(content: Any, path: Path) -> Weights:
    """Return the tensors of another project's checkpoint without wrappers and prefixes."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if (isinstance(content, Mapping))
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name: give a file of weights")
    weights: Weights = {}
    for name, value in tensors.items():
        plain = name
        while prefix := next((prefix for prefix in PREFIXES if plain.startswith(prefix)), None):
            plain = plain.removeprefix(prefix)
        weights[plain] = value
    return weights


@dataclass(frozen=True)
class _Fitting:
    """Brings tensors of `source` into the shapes of a backbone; what was done is added to `adapted`."""

    source: str
    model: Any
    grid: tuple[int, int] | None
    adapted: list[str]

    def fit(self, name: str, weight: Tensor, expected: Tensor) -> Tensor:
        """Return the tensor in the shape that is expected.

        Raises:
            CheckpointError: the shape cannot follow from another image size or number of channels.
        """
        fitted: Tensor | None = None
        if name == "pos_embed" and weight.ndim == 3 and weight.shape[2] == expected.shape[2]:
            fitted = self._positions(weight, expected)
        elif weight.shape == expected.shape:
            fitted = weight
        elif name == FIRST_CONVOLUTION and weight[:, 0].shape == expected[:, 0].shape:
            self.adapted.append(f"{name} spread from {weight.shape[1]} to {expected.shape[1]} channels")
            fitted = spread_channels(weight, expected.shape[1])
        elif name.endswith(BIAS_TABLE) and weight.shape[1] == expected.shape[1]:
            fitted = self._bias_table(name, weight)
        if fitted is None:
            raise CheckpointError(
                f"{self.source} holds another network: {name} is {list(weight.shape)} there and "
                f"{list(expected.shape)} here; name the network it was made with (by its timm name, patch size, "
                "width, depth and heads)"
            )
        return fitted

    def _positions(self, weight: Tensor, expected: Tensor) -> Tensor | None:
        """Return the position embedding [1, prefix + h*w, D] of the backbone's grid; None if it has no such grid."""
        new = tuple(self.model.patch_embed.grid_size)
        prefix = expected.shape[1] - new[0] * new[1]
        old = self.grid or (math.isqrt(max(weight.shape[1] - prefix, 0)),) * 2
        if old[0] * old[1] != weight.shape[1] - prefix:
            return None
        if old != new:
            self.adapted.append(f"pos_embed resampled {old[0]}x{old[1]} -> {new[0]}x{new[1]}")
        resampled: Tensor = resample_abs_pos_embed(weight, list(new), list(old), num_prefix_tokens=prefix)
        return resampled

    def _bias_table(self, name: str, weight: Tensor) -> Tensor | None:
        """Return Swin's table of a square window [(2m-1)^2, A] for the backbone's window, by bicubic interpolation."""
        side = math.isqrt(len(weight))
        if side**2 != len(weight):
            return None
        window = self.model.get_submodule(name.removesuffix(f".{BIAS_TABLE}")).window_size
        size = [2 * cells - 1 for cells in window]
        table = weight.T.view(1, -1, side, side)  # [1, A, 2m-1, 2m-1]
        if f"{BIAS_TABLE}s resampled" not in self.adapted:
            self.adapted.append(f"{BIAS_TABLE}s resampled")
        return F.interpolate(table, size, mode="bicubic").flatten(2)[0].T  # [(2h-1)(2w-1), A]


def _kind(name: str) -> str:
    """Return a tensor's name without the numbers of its blocks."""
    return re.sub(r"\d+", "#", name)


def _some(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
