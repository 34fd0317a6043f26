"""What an evaluation works on: a backbone from a file, a run folder, memory, or the same network untrained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from mst.errors import UsageError
from mst.evaluate.protocol import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from mst.model.backbone import Backbone
from mst.model.backbone_file import load_backbone
from mst.model.build import build_backbone
from mst.runtime.device import select_device
from mst.runtime.logging import warn
from mst.runtime.results import Result, append_jsonl
from mst.runtime.rundir import RunDir

RANDOM = "random:"
"""`random:PATH` is the network of PATH with fresh weights: the number to compare with."""


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes the backbone's input.

    Attributes:
        size: height and width of the input; None = what the backbone was trained at.
        resize_ratio: the image is first resized to cover size times this (256/224), then its centre is cut.
        whole_if_exact: an image that already has that size is used whole, neither enlarged nor cut.
    """

    size: tuple[int, int] | None = None
    resize_ratio: float = 256 / 224
    whole_if_exact: bool = True

    def __post_init__(self) -> None:
        if self.resize_ratio < 1.0:
            raise UsageError(f"--resize-ratio {self.resize_ratio}: must be at least 1")


@dataclass(frozen=True)
class Subject:
    """A backbone on its device, and where its results belong.

    Attributes:
        backbone: in evaluation mode.
        name: the path as it was given, or "in memory".
        sha256: of the weights' file; "" for fresh weights and for a module in memory.
        folder: the run folder it came from, or None.
    """

    backbone: Backbone
    name: str
    sha256: str
    folder: Path | None

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""
        return self.backbone.spec.channels

    @property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Normalisation of its images: what its file says; ImageNet's for RGB where it says nothing."""
        metadata = self.backbone.metadata
        if "mean" in metadata and "std" in metadata:
            return tuple(metadata["mean"]), tuple(metadata["std"])
        if self.channels != len(IMAGENET_MEAN):
            raise UsageError(f"{self.name} does not say mean and std of its {self.channels} channels in its metadata")
        return IMAGENET_MEAN, IMAGENET_STD

    def transform(self, options: ImageOptions) -> ImageTransform:
        """Return the evaluation transform.

        Raises:
            UsageError: the size is no multiple of the patch.
        """
        size, patch = options.size or self.backbone.spec.image_size, self.backbone.patch_size
        if min(size) < patch or size[0] % patch or size[1] % patch:
            raise UsageError(f"--size {size[0]} {size[1]}: both must be multiples of the patch size {patch}")
        mean, std = self.mean_std
        return ImageTransform(size, mean, std, options.resize_ratio, options.whole_if_exact)

    def record(self, result: Result, out: str | Path | None) -> Result:
        """Return the result with the backbone's name and hash, appended to results.jsonl of `out` or the run folder."""
        named = replace(result, backbone=self.name, backbone_sha256=self.sha256)
        folder = Path(out) if out else self.folder
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"--out {folder} is a file: name a folder")
            try:
                append_jsonl(RunDir(folder).results, named.row())
            except OSError as error:
                warn(f"cannot write {RunDir(folder).results}: {error.strerror}; the result is only shown")
        return named


def load_subject(backbone: str | Path | Backbone, *, device: str = "auto", seed: int = 0) -> Subject:
    """Return the backbone that is meant, on its device.

    Args:
        backbone: a backbone file, a run folder, `random:` before either of them, or a module in memory (which stays
            on its own device).
        device: auto, cpu, cuda or cuda:N.
        seed: of the weights after `random:`.

    Raises:
        CheckpointError: no backbone there, or a damaged one.
    """
    if isinstance(backbone, Backbone):
        return Subject(backbone, "in memory", "", None)
    name = str(backbone)
    fresh = name.startswith(RANDOM)
    path = Path(name.removeprefix(RANDOM)).expanduser()
    place = select_device(device, flag="--device")
    network = load_backbone(path)
    file = RunDir(path).backbone if path.is_dir() else path
    folder = file.parent if RunDir(file.parent).exists() else None
    if not fresh:
        return Subject(network.to(place), name, hashlib.sha256(file.read_bytes()).hexdigest(), folder)
    untrained = build_backbone(network.spec, seed=seed, init=network.metadata.get("init", "trunc_normal")).eval()
    untrained.metadata = network.metadata
    return Subject(untrained.to(place), name, "", folder)
