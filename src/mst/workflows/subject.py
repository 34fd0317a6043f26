"""The backbone of an evaluation: from a file, a run folder, another project, memory; or a network untrained."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save

from mst.config.schema import ModelConfig
from mst.data.labelled import Split
from mst.data.sources import ImageSource
from mst.data.statistics import measured_scale
from mst.data.value_range import BY_TYPE, Range, Scale, ValueRanges, check_range
from mst.errors import CheckpointError, UsageError
from mst.evaluate.common.model_files import ranges_in_use
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from mst.export.reading import is_exported, load_exported
from mst.model.backbone import Backbone, check_image_size
from mst.model.backbone_file import load_backbone
from mst.model.build import backbone_spec, build_backbone, untrained_like
from mst.model.start import TIMM, start_from
from mst.paths import user_path, user_place, user_source
from mst.report.reading import FINETUNE, is_number, result_rows, steps_of
from mst.runtime.device import select_device
from mst.runtime.identity import DataIdentity
from mst.runtime.logging import info, warn
from mst.runtime.names import shown
from mst.runtime.seeding import check_seed
from mst.runtime.storage.files import check_folder
from mst.runtime.storage.outputs import ANY, Outputs
from mst.runtime.storage.results import Result, append_jsonl
from mst.runtime.storage.rundir import RunDir

VALUE_RANGE = "--value-range"
RANGES = "value_ranges"
"""Key of a backbone's metadata: which stored values of its images are black and white (`mst.data.value_range`)."""
RANDOM = "random:"
"""`random:PATH` is the network of PATH with fresh weights: the number to compare with."""


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes the backbone's input.

    Attributes:
        size: height and width of the input; None = what the backbone was trained at.
        resize_ratio: the image is first resized so that it covers `size` times this number, then its centre is cut.
        whole_if_exact: an image that already has that size is used whole, neither enlarged nor cut.
        value_range: black and white among values that are not stored in 8 bits; None = as the backbone was trained,
            and measured for types of numbers that it has not seen.
    """

    size: tuple[int, int] | None = None
    resize_ratio: float = 256 / 224
    whole_if_exact: bool = True
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_range(self.value_range)
        if self.resize_ratio < 1.0:
            raise UsageError(f"--resize-ratio {self.resize_ratio}: must be at least 1")


@dataclass(frozen=True)
class Subject:
    """A backbone on its device, and where its results belong.

    Attributes:
        backbone: in evaluation mode.
        name: the path as it was given, or "in memory".
        sha256: of the weights' file; "" for fresh weights and for a module in memory.
        folder: where its results go: `--out`, else the run folder that it came from; None = nowhere.
    """

    backbone: Backbone
    name: str
    sha256: str
    folder: Path | None

    @property
    def fresh(self) -> bool:
        """Whether its weights are fresh."""
        return self.name.startswith(RANDOM)

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""
        return self.backbone.spec.channels

    @property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of its images, as its file states them; if it does not, ImageNet's for RGB.

        Raises:
            CheckpointError: its file states something else than a number for each channel.
            UsageError: it states nothing, and its images are not RGB.
        """
        metadata = self.backbone.metadata
        if "mean" in metadata and "std" in metadata:
            mean, std = metadata["mean"], metadata["std"]
            if not (_numbers(mean, self.channels) and _numbers(std, self.channels) and min(std) > 0):
                raise CheckpointError(
                    f"{self.name} says mean {mean} and std {std} in its metadata: needed is a number for each of its "
                    f"{self.channels} channels, std above 0"
                )
            return tuple(mean), tuple(std)
        if self.channels != len(IMAGENET_MEAN):
            raise UsageError(f"{self.name} does not say mean and std of its {self.channels} channels in its metadata")
        return IMAGENET_MEAN, IMAGENET_STD

    def known_ranges(self, given: Range | None) -> ValueRanges | None:
        """Return the value ranges of its images: as given, else as its file states them; None = not at all (older).

        Raises:
            CheckpointError: its file states something else than ranges.
        """
        if given is not None:
            return ValueRanges.given(given, VALUE_RANGE)
        try:
            kept = self.backbone.metadata.get(RANGES)
            return None if kept is None else ValueRanges.from_json(kept, VALUE_RANGE)
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {error} in its metadata") from error

    def scale(self, images: ImageSource, given: Range | None = None) -> Scale:
        """Return how values that are not stored in 8 bits become 8 bits.

        Raises:
            CheckpointError: as `known_ranges`.
            DataError: they are stored in another type than the backbone has seen, and no usual range can be seen.
        """
        return measured_scale(images, channels=self.channels, known=self.known_ranges(given))

    def transform(self, options: ImageOptions) -> ImageTransform:
        """Return the evaluation transform.

        Raises:
            UsageError: the size is no multiple of the patch.
        """
        size = options.size or self.backbone.spec.image_size
        check_image_size(size, self.backbone.patch_size, "--size" if options.size else f"{self.name}: image size")
        mean, std = self.mean_std
        return ImageTransform(size, mean, std, options.resize_ratio, options.whole_if_exact)

    def pictures(self, task: str, given: str | Path | None) -> Outputs | None:
        """Return where an evaluation's pictures go: `given`, else a folder beside its results, else nowhere.

        A run folder that cannot be written gets no pictures, with a warning.

        Raises:
            UsageError: no folder can be made where `given` says.
        """
        command = f"evaluate {task.removeprefix('patch_')}"
        if given:
            return Outputs(user_path(given), command, "--pictures")
        if self.folder is None:
            return None
        folder = RunDir(self.folder).pictures_of(task, untrained=self.fresh)
        try:
            return Outputs(folder, command, "--pictures", earlier=ANY)
        except UsageError as error:
            warn(f"{error}; going on without pictures")
            return None

    def keep_split(self, split: Split) -> None:
        """Do what `keep_split` does, beside the results."""
        keep_split(split, self.folder)

    def record(self, result: Result, data: object, identity: DataIdentity, scale: Scale = BY_TYPE) -> Result:
        """Return the result with the names of backbone and data, appended to results.jsonl of its folder.

        Arguments as of `named`.
        """
        return self.keep(self.named(result, data, identity, scale))

    def named(self, result: Result, data: object, identity: DataIdentity, scale: Scale = BY_TYPE) -> Result:
        """Return the result with the names of backbone and data.

        Args:
            result: of the evaluation.
            data: what was given as data: a path, a text such as `scenes:200`, or sets in memory.
            identity: what the data hold.
            scale: how their values become 8 bits; not needed where the result says it already.
        """
        result = replace(result, protocol={**result.protocol, **ranges_in_use(scale)})
        return replace(result, backbone=self.name, backbone_sha256=self.sha256, **described_data(data, identity))

    def keep(self, named: Result) -> Result:
        """Append a row to results.jsonl of the backbone's folder; return it."""
        if self.folder is not None:
            results = RunDir(self.folder).results
            try:
                append_jsonl(results, named.row())
            except OSError as error:
                warn(f"cannot write {results}: {error.strerror}; the result is only shown")
        return named


def prediction_scale(images: ImageSource, channels: int, kept: object, given: Range | None) -> Scale:
    """Return how values of images become 8 bits for a trained network that keeps its own value ranges.

    Args:
        images: to predict on.
        channels: C.
        kept: `value_ranges` of its description; None = of an older version.
        given: `--value-range`.

    Raises:
        UsageError: no range.
        DataError: they are stored in a type of numbers that is not known, and no usual range can be seen.
    """
    check_range(given)
    known = None if kept is None else ValueRanges.from_json(kept, VALUE_RANGE)
    known = known if given is None else ValueRanges.given(given, VALUE_RANGE)
    return measured_scale(images, channels=channels, known=known)


def described_data(data: object, identity: DataIdentity) -> dict[str, Any]:
    """Return a row's entries on its data: the last part of the path, and the identity with the whole path."""
    place = user_place(data) if isinstance(data, str | Path) else None
    path = "in memory" if place is None else os.path.realpath(place) if os.path.exists(place) else str(data)
    return {"data": Path(path).name or path, "data_identity": replace(identity, name=path).row()}


def _numbers(values: object, count: int) -> bool:
    """Whether a JSON value is a list of so many finite numbers."""
    return isinstance(values, list | tuple) and len(values) == count and all(map(is_number, values))


def load_subject(
    backbone: str | Path | Backbone, *, out: str | Path | None = None, device: str = "auto", seed: int = 0
) -> Subject:
    """Return the backbone that a text, path or module stands for, on its device.

    Args:
        backbone: a backbone file, a run folder, `timm:NAME`, `NAME=FILE` (a network by its timm name with a file of
            weights, such as DINO's or DeiT's), `random:` before any of them, or a module in memory (which stays on its
            own device).
        out: folder for its results; None = its run folder, if it comes from one.
        device: auto, cpu, cuda or cuda:N.
        seed: of the weights after `random:`.

    Raises:
        CheckpointError: no backbone there, or a damaged one.
        UsageError: nothing can be written to `out`, or the seed is negative.
    """
    check_seed(seed)
    target = user_path(out) if out else None
    if target:
        check_folder(target, "--out")
    if isinstance(backbone, Backbone):
        return Subject(backbone, "in memory", "", target)
    name = user_source(backbone)
    fresh = name.startswith(RANDOM)
    source = name.removeprefix(RANDOM)
    if not source:
        raise CheckpointError(f"--backbone '{name}' names no network: give a run folder or a backbone file")
    place = select_device(device, flag="--device")
    network, sha256, run = _own(source) if _foreign_name(source) is None else _foreign(source, trained=not fresh)
    folder = target or run
    if not fresh:
        if run is not None:
            _tell_unfinished(run)
        return Subject(network.to(place), name, sha256, folder)
    return Subject(untrained_like(network, seed=seed).to(place), name, "", folder)


def _tell_unfinished(run: Path) -> None:
    """Warn of weights that a run has not come to its end with."""
    place = RunDir(run)
    done, total = steps_of(place)
    finished = any(row.get("task") == FINETUNE for row in result_rows(place.results))
    if done is not None and total is not None and done < total and not finished:
        warn(f"{shown(run)} is unfinished: step {done} of {total}: its weights are those of an earlier moment")


def absolute_source(backbone: str | Path) -> str:
    """Return a `backbone` of `load_subject` as text, with an absolute path in it."""
    name = user_source(backbone)
    fresh = RANDOM if name.startswith(RANDOM) else ""
    source = name.removeprefix(fresh)
    if source.startswith(TIMM):
        return name
    prefix = "" if _foreign_name(source) is None else f"{_foreign_name(source)}="
    return f"{fresh}{prefix}{user_path(source.removeprefix(prefix)).absolute()}"


def _own(source: str) -> tuple[Backbone, str, Path | None]:
    """Return a backbone of this package with its file's hash and its run folder."""
    path = user_path(source)
    if is_exported(path):
        network, file = load_exported(path)
        return network, hashlib.sha256(file.read_bytes()).hexdigest(), None
    network = load_backbone(path)
    file = RunDir(path).backbone if path.is_dir() else path
    return network, hashlib.sha256(file.read_bytes()).hexdigest(), file.parent if RunDir(file.parent).exists() else None


def _foreign_name(source: str) -> str | None:
    """Return the timm name in `timm:NAME` or `NAME=FILE`; None for anything else."""
    if source.startswith(TIMM):
        return source.removeprefix(TIMM)
    name, given, _ = source.partition("=")
    return name if given and timm.is_model(name) else None


def _foreign(source: str, *, trained: bool) -> tuple[Backbone, str, None]:
    """Return a network by its timm name with weights of another project, at the size that timm states for it."""
    name = str(_foreign_name(source))
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag after a known name
        known = None
    if known is None:
        raise CheckpointError(f"{source}: timm has no model of this name (timm.list_models() lists them)")
    if source.endswith("="):
        raise CheckpointError(f"{source}: name a file of weights after the =")
    size = known.input_size[1], known.input_size[2]
    network = build_backbone(backbone_spec(ModelConfig(backbone=name), image_size=size, channels=3)).eval()
    own_values = source.startswith(TIMM)
    mean, std = (known.mean, known.std) if own_values else (IMAGENET_MEAN, IMAGENET_STD)
    network.metadata = {"mean": list(mean), "std": list(std), RANGES: {}}
    if not trained:
        return network, "", None
    info(str(start_from(network, source if own_values else source.partition("=")[2])))
    return network, hashlib.sha256(save(network.timm_state_dict())).hexdigest(), None


def keep_split(split: Split, folder: Path | None) -> None:
    """Write an automatic split into the folder of results, as a table that `--labels` takes.

    Raises:
        UsageError: a file of its name is there that was not written by an evaluation.
    """
    if not split.automatic:
        return
    if folder is None:
        info("the split is not written down: --out DIR keeps it beside the result")
        return
    outputs = Outputs(folder, "evaluate", "--out")
    if not (folder / split.file).exists():
        outputs.write(split.file, split.table)
        info(f"the split is in {folder / split.file}{split.use}")
