"""Trained weights as the start of a backbone: from a run, a file or timm, found by search, taken strictly.

What depends on the image is adapted: position embeddings are resampled as timm does it, Swin's bias tables as Swin's
fine-tuning does it (Liu et al. 2021), the first convolution is spread over another number of channels. Everything else
must be there and fit, or the file is refused.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from mst.errors import CheckpointError, UsageError
from mst.model.backbone import Backbone
from mst.model.backbone_file import FILE_NAME, load_backbone
from mst.model.build import family
from mst.model.matching import BIAS_TABLE, EXAMPLES, FIRST_CONVOLUTION, POSITIONS, find_weights, fits
from mst.paths import like_named, user_path
from mst.weights.files import SAFETENSORS, read_weights
from mst.weights.tensors import shape_of, unusable

TIMM = "timm:"
HUB = "huggingface_hub"
"""Logger of the client with which timm fetches weights."""
GOOGLE = ".npz"
"""Weights of Google's ViT."""
MOST_UNPACKED = 20
"""Times its size that such an archive may hold."""
LEAST_MATCHED = 0.5
"""Share of a network's tensors below which the file is said to hold another network."""
CHANGING = re.compile(
    r"(blocks|layers|patch_embed|norm_pre|reg_token|dist_token|attn_pool|pos_embed|absolute_pos_embed)\b.*"
)
"""Tensors that change the features: left out, they would be silently wrong. Heads, decoders and mask tokens do not."""

Weights = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What was taken over.

    Attributes:
        source: where from: the place in the file, and the file.
        matched: tensors found, adapted ones included; all that the backbone has.
        adapted: what was resampled or spread, one phrase each.
        unexpected: tensors there that the backbone has not; they are left out.
        alike: places of other networks in the file that fit as well.
    """

    source: str
    matched: int
    adapted: tuple[str, ...]
    unexpected: tuple[str, ...]
    alike: tuple[str, ...] = ()

    def __str__(self) -> str:
        changes = f" ({', '.join(self.adapted)})" if self.adapted else ""
        groups = _groups(self.unexpected)
        left = f"; not taken: {groups}" if groups else ""
        others = f"; fits as well and is not taken: {', '.join(self.alike)}" if self.alike else ""
        return f"start from {self.source}: {self.matched} of {self.matched} tensors{changes}{left}{others}"


@dataclass(frozen=True)
class _Source:
    """Weights under timm's names, their place, names beside them, the (h, w) of their positions, and like networks."""

    place: str
    weights: Weights
    beside: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    alike: tuple[str, ...] = ()


def start_from(backbone: Backbone, source: str) -> Start:
    """Load trained weights into `backbone`, in place; the mask token stays fresh.

    Args:
        backbone: on the CPU.
        source: a run folder, a backbone file, a file or folder of weights of another project (a training checkpoint as
            well: wrappers, prefixes and other names are found by search, and no code in it is run), or `timm:NAME` for
            what timm fetches.

    Raises:
        CheckpointError: nothing there, no ordinary tensors, NaN, or weights of another network: whatever the backbone
            needs and the source has not, or has in its blocks and the backbone has not.
    """
    try:
        found = _read(source, backbone)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError(f"cannot read weights from {source}: {error.strerror or error}") from error
    expected: dict[str, Tensor] = backbone.timm_state_dict()
    weights = found.weights
    _check_complete(found, expected, backbone.spec.name)
    fitting = _Fitting(found.place, backbone.model, found.grid, [])
    taken = {name: fitting.fit(name, weights[name], expected[name]) for name in expected}
    backbone.model.load_state_dict(taken)
    unexpected = (*sorted(weights.keys() - taken.keys()), *found.beside)
    return Start(found.place, len(taken), tuple(fitting.adapted), unexpected, found.alike)


def _check_complete(found: _Source, expected: dict[str, Tensor], name: str) -> None:
    """Refuse weights of another network.

    Raises:
        CheckpointError: tensors are missing, or would be left out and change the features.
    """
    weights = found.weights
    matched = [key for key in expected if key in weights and fits(key, weights[key], expected[key])]
    missing = [key for key in expected if key not in weights]
    if len(matched) < LEAST_MATCHED * len(expected):
        other = next((key for key in expected if key in weights and key not in matched), None)
        shapes = f"{other} is {shape_of(weights[other])} there, {shape_of(expected[other])} here; " if other else ""
        raise CheckpointError(
            f"{found.place} holds another network: {len(matched)} of {len(expected)} tensors of {name} are there"
            f"{_some(missing)}; {shapes}name the network it was made with (timm name, patch size, width, depth, heads)"
        )
    if missing:
        raise CheckpointError(
            f"{found.place} has {len(matched)} of {len(expected)} tensors of {name}, {len(missing)} are missing"
            f"{_some(missing)}: name the network it was made with, or give complete weights"
        )
    kinds = {_kind(key) for key in expected}
    extra = [
        key for key in weights if key not in expected and CHANGING.fullmatch(key) and not _is_nothing(weights[key])
    ]
    if extra:
        extra.sort()
        what = "a deeper network" if _kind(extra[0]) in kinds else "another network"
        raise CheckpointError(
            f"{found.place} holds {what}: {len(extra)} tensors have no place in {name}{_some(extra)}; name the network "
            "(or the depth) it was made with"
        )


def _is_nothing(value: object) -> bool:
    """Whether a tensor left out changes nothing: a bias of zeros."""
    return isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point() and not value.any()


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


def _read(source: str, backbone: Backbone) -> _Source:
    """Return the weights that a source holds for a backbone."""
    if source.startswith(TIMM):
        return _Source(source, dict(_from_timm(source.removeprefix(TIMM))))
    path = user_path(source)
    if path.is_dir() and (path / FILE_NAME).is_file():
        path = path / FILE_NAME
    if path.suffix == SAFETENSORS and _is_own(path.with_suffix(".json")):
        own = load_backbone(path)
        height, width = own.spec.image_size
        return _Source(source, own.timm_state_dict(), (), (height // own.patch_size, width // own.patch_size))
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist{like_named(path)}: give a run folder, a file of weights or {TIMM}NAME"
        )
    if path.suffix == GOOGLE:
        return _Source(source, _from_google(path, backbone))
    found = find_weights(read_weights(path), backbone.model, path)
    ancestors = found.candidate.prefix.split(".")[:-2]
    beside = tuple(name.removeprefix(".".join((*ancestors, ""))) for name in found.candidate.beside)
    alike = tuple(each.place(path.name) for each in found.alike)
    return _Source(found.candidate.place(source), found.tensors, beside, alike=alike)


def _is_own(description: Path) -> bool:
    """Whether a JSON file beside weights says what `save_backbone` says, rather than a trainer's options."""
    try:
        return b'"spec"' in description.read_bytes()
    except OSError:
        return False


def _from_google(path: Path, backbone: Backbone) -> Weights:
    """Return weights of Google's ViT, which timm reads into a copy of the network."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, size = archive.namelist(), sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise CheckpointError(f"cannot read weights from {path}: it is damaged, or no .npz file") from error
    if size > MOST_UNPACKED * path.stat().st_size:
        raise CheckpointError(f"{path} is {size} bytes when unpacked, over {MOST_UNPACKED} times its size: not weights")
    depth = len({found for name in names for found in re.findall(r"encoderblock_(\d+)/", name)})
    if depth and depth != len(getattr(backbone.model, "blocks", ())):
        raise CheckpointError(f"{path} holds {depth} blocks: name the network (or the depth) it was made with")
    model = copy.deepcopy(backbone.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with path.open("rb") as file:  # timm leaves open what it opens itself
            model.load_pretrained(file)
    except Exception as error:  # what timm's reader raises for other arrays
        reason = (str(error).splitlines() or [""])[0][:150] or type(error).__name__
        raise CheckpointError(f"{path} does not fit {backbone.spec.name}: {reason}") from error
    weights: Weights = model.state_dict()
    untouched = [name for name in weights if torch.equal(weights[name], before[name]) and before[name].any()]
    if untouched:
        raise CheckpointError(f"{path} lacks {len(untouched)} tensors of {backbone.spec.name}{_some(untouched)}")
    return weights


def _from_timm(name: str) -> dict[str, Tensor]:
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
    weights: dict[str, Tensor] = model.state_dict()
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


@dataclass(frozen=True)
class _Fitting:
    """Brings tensors of `source` into the shapes of a backbone; what was done is added to `adapted`."""

    source: str
    model: Any
    grid: tuple[int, int] | None
    adapted: list[str]

    def fit(self, name: str, weight: object, expected: Tensor) -> Tensor:
        """Return the tensor in the shape that is expected.

        Raises:
            CheckpointError: it is no ordinary tensor, holds NaN, or its shape cannot follow from another image size or
                number of channels.
        """
        if (reason := unusable(weight, expected)) is not None:
            raise CheckpointError(f"{self.source}: {name} {reason}")
        assert isinstance(weight, Tensor)
        fitted: Tensor | None = None
        if name == POSITIONS and weight.ndim == 3 and weight.shape[2] == expected.shape[2]:
            fitted = self._positions(weight, expected)
        elif weight.shape == expected.shape:
            fitted = weight
        elif fits(name, weight, expected):
            fitted = self._first_convolution(weight, expected) if name == FIRST_CONVOLUTION else None
            fitted = self._bias_table(name, weight) if name.endswith(BIAS_TABLE) else fitted
        if fitted is None:
            raise CheckpointError(
                f"{self.source} holds another network: {name} is {list(weight.shape)} there and "
                f"{list(expected.shape)} here; name the network it was made with (by its timm name, patch size, "
                "width, depth and heads)"
            )
        return fitted.to(expected.dtype)

    def _first_convolution(self, weight: Tensor, expected: Tensor) -> Tensor:
        """Return a first convolution [D, C, p, p] for the backbone's channels."""
        self.adapted.append(f"{FIRST_CONVOLUTION} spread from {weight.shape[1]} to {expected.shape[1]} channels")
        return spread_channels(weight, expected.shape[1])

    def _positions(self, weight: Tensor, expected: Tensor) -> Tensor | None:
        """Return the position embedding [1, prefix + h*w, D] of the backbone's grid; None if it has no such grid."""
        new = tuple(self.model.patch_embed.grid_size)
        prefix = expected.shape[1] - new[0] * new[1]
        old = self.grid or (math.isqrt(max(weight.shape[1] - prefix, 0)),) * 2
        if old[0] * old[1] != weight.shape[1] - prefix:
            return None
        if old != new:
            self.adapted.append(f"pos_embed resampled {old[0]}x{old[1]} -> {new[0]}x{new[1]}")
        resampled: Tensor = resample_abs_pos_embed(weight.float(), list(new), list(old), num_prefix_tokens=prefix)
        return resampled

    def _bias_table(self, name: str, weight: Tensor) -> Tensor | None:
        """Return Swin's table of a square window [(2m-1)^2, A] for the backbone's window, by bicubic interpolation."""
        side = math.isqrt(len(weight))
        if side**2 != len(weight):
            return None
        window = self.model.get_submodule(name.removesuffix(f".{BIAS_TABLE}")).window_size
        size = [2 * cells - 1 for cells in window]
        table = weight.float().T.reshape(1, -1, side, side)  # [1, A, 2m-1, 2m-1]
        if f"{BIAS_TABLE}s resampled" not in self.adapted:
            self.adapted.append(f"{BIAS_TABLE}s resampled")
        return F.interpolate(table, size, mode="bicubic").flatten(2)[0].T  # [(2h-1)(2w-1), A]


def _kind(name: str) -> str:
    """Return a tensor's name without the numbers of its blocks."""
    return re.sub(r"\d+", "#", name)


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > EXAMPLES else ""
    return f" ({', '.join(names[:EXAMPLES])}{more})" if names else ""


def _groups(names: tuple[str, ...]) -> str:
    """Return `head (4), decoder (12)`: the first parts of names, with counts, most first; at most five."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + 1
    listed = [f"{group} ({count})" for group, count in sorted(counts.items(), key=lambda item: -item[1])]
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
