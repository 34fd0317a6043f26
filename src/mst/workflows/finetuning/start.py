"""What a fine-tuning starts with: labelled images, a network with or without trained weights, all checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm

from mst.config.schema import ModelConfig
from mst.data.decoding import read_image
from mst.data.labelled import LabelledFolder, LabelOptions, find_labels
from mst.data.sources import ImageSource
from mst.data.statistics import channel_statistics, measured_ranges
from mst.data.value_range import BY_TYPE, Scale, ValueRanges, check_range
from mst.errors import DataError, UsageError
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD
from mst.finetune.classifier import FRESH_LAYER_DECAY, TRAINED_LAYER_DECAY, FinetuneProtocol
from mst.model.backbone import Backbone, BackboneSpec, check_image_size
from mst.model.build import backbone_spec, build_backbone
from mst.model.start import start_from
from mst.planning.setup import check_readable, check_sample
from mst.runtime import logging
from mst.runtime.device import Precision
from mst.runtime.limits import check_numbers
from mst.weights.description import numbers, part
from mst.workflows.evaluation.labelled import Limits
from mst.workflows.subject import RANDOM, RANGES, VALUE_RANGE, load_subject

SCRATCH = "scratch:"
"""`scratch:NAME` is timm's network of that name with fresh weights."""
FALLBACK_SIZE = (224, 224)


@dataclass(frozen=True)
class InputOptions:
    """The images.

    Attributes:
        size: height and width of the network's input; None = what the backbone was trained at.
        channels: of the images; None = the backbone's, or 3 for `scratch:`.
        value_range: black and white among values that are not stored in 8 bits; None = as the backbone was trained,
            and measured for types of numbers that it has not seen.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "channels", least=1, most=64)
        check_range(self.value_range)


@dataclass(frozen=True)
class Running:
    """How it is carried out. Only `precision` changes numbers, and only their last digits.

    Attributes:
        evaluate_epochs: epochs between two validations; the last step is always validated.
        checkpoint_every: steps between two checkpoints.
        workers: processes that read and augment images; 0 = a thread, -1 = as many as a GPU needs.
        precision: compute type; weights stay float32.
        max_unreadable_share: stop when a larger share of the images cannot be read.
        tensorboard: write TensorBoard events.
        progress: show a bar, or a line now and then where there is no terminal.
    """

    evaluate_epochs: int = 5
    checkpoint_every: int = 500
    workers: int = -1
    precision: Precision = "auto"
    max_unreadable_share: float = 0.05
    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, "evaluate_epochs", "checkpoint_every", least=1)
        if self.workers < -1:
            raise UsageError(f"--workers {self.workers}: must be at least 0, or -1 for as many as a GPU needs")
        check_numbers(self, "max_unreadable_share", least=0, most=1)


@dataclass(frozen=True)
class FinetuneConfig:
    """A whole fine-tuning, as config.json keeps it.

    Attributes:
        backbone: as it was given.
        data: the labelled folder or table, an absolute path.
        protocol: the training.
        image: size and channels.
        limits: parts of the folder.
        labels: table, columns, part to score and split.
        running: how it is carried out.
        device: auto, cpu, cuda or cuda:N.
        seed: of all draws and fresh weights.
        recipe: name of the recipe whose options were taken, or "".
        ended: epochs, ascending, after which it had ended before it was made longer.
    """

    backbone: str
    data: str
    protocol: FinetuneProtocol = field(default_factory=FinetuneProtocol)
    image: InputOptions = field(default_factory=InputOptions)
    limits: Limits = field(default_factory=Limits)
    running: Running = field(default_factory=Running)
    device: str = "auto"
    seed: int = 0
    recipe: str = ""
    labels: LabelOptions = field(default_factory=LabelOptions)
    ended: tuple[int, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the network starts without trained weights."""
        return self.backbone.startswith((SCRATCH, RANDOM))

    @property
    def layer_decay(self) -> float:
        """The rate of a block over that of the block above it."""
        asked = self.protocol.layer_decay
        return asked if asked is not None else FRESH_LAYER_DECAY if self.fresh else TRAINED_LAYER_DECAY

    @staticmethod
    def from_json(values: dict[str, Any]) -> FinetuneConfig:
        """Rebuild the record.

        Raises:
            UsageError: a key is missing or unknown.
        """
        try:
            plain = dict(values)
            image = dict(plain.pop("image"))
            size, ranges = image.pop("size"), image.pop("value_range", None)
            image["value_range"] = (float(ranges[0]), float(ranges[1])) if ranges else None
            return FinetuneConfig(
                **{
                    **plain,
                    "protocol": FinetuneProtocol(**plain["protocol"]),
                    "image": InputOptions((int(size[0]), int(size[1])) if size else None, **image),
                    "limits": Limits(**plain["limits"]),
                    "running": Running(**plain["running"]),
                    "labels": LabelOptions(**plain.get("labels", {})),
                    "ended": tuple(int(epoch) for epoch in plain.get("ended", ())),
                }
            )
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"config.json is not one of mst finetune ({error}): start anew") from error


@dataclass(frozen=True)
class Network:
    """The network's description and its images' normalisation, as plan.json keeps it.

    Attributes:
        spec: of the backbone, which builds it again.
        mean: of the images, in [0, 1].
        std: of the images.
        sha256: of the weights it starts with; "" for fresh ones.
        ranges: value ranges of the images; None = each image decides (older versions).
    """

    spec: BackboneSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    ranges: ValueRanges | None = None

    @property
    def scale(self) -> Scale:
        """How values of the images become 8 bits."""
        return BY_TYPE if self.ranges is None else self.ranges

    @property
    def image_metadata(self) -> dict[str, Any]:
        """The entries on its images in a backbone's description, as JSON types."""
        ranges = {} if self.ranges is None else {RANGES: self.ranges.to_json()}
        return {"mean": list(self.mean), "std": list(self.std), **ranges}

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {"spec": self.spec.to_json(), **self.image_metadata, "sha256": self.sha256}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Network:
        """Rebuild the record."""
        spec = BackboneSpec.from_json(part(values, "spec"))
        mean, std = (numbers(values, key, count=spec.channels, positive=key == "std") for key in ("mean", "std"))
        ranges = None if values.get(RANGES) is None else ValueRanges.from_json(values[RANGES], VALUE_RANGE)
        return Network(spec, mean, std, str(values["sha256"]), ranges)

    def build(self, config: FinetuneConfig) -> Backbone:
        """Return the network with fresh weights on the CPU."""
        return build_backbone(self.spec, drop_path=config.protocol.drop_path, seed=config.seed)


def labelled_folder(config: FinetuneConfig, network: Network, *, tell: bool = True) -> LabelledFolder:
    """Return the labelled images, or the part of them that was asked for; `tell` = say what is odd about them.

    Raises:
        UsageError: no folder of train/<class>/ and val/<class>/, or nothing to tell apart.
        DataError: no image that can be read, or fewer than one batch.
    """
    channels, scale = network.spec.channels, network.scale
    folder = LabelledFolder(
        config.data, labels=config.labels, channels=channels, strict=config.limits.strict, tell=False
    )
    if len(folder.classes) < 2:
        raise DataError(f"{folder.root} has one class, {folder.classes[0]}: at least two are needed to tell apart")
    folder.train, folder.val = folder.limited(config.limits.train_limit, config.limits.val_limit)
    origin = "--channels" if config.backbone.startswith(SCRATCH) else f"--backbone {config.backbone}"
    for images in (folder.train, folder.val):
        check_sample(images.paths, channels=channels, patch_size=1, origin=origin, scale=scale)
    if len(folder.train.paths) < config.protocol.batch_size:
        count = len(folder.train.paths)
        raise DataError(
            f"--batch-size {config.protocol.batch_size} is larger than the training set ({count}): at most {count}"
        )
    check_readable(
        len(folder.val.paths),
        lambda position: read_image(folder.val.paths, position, channels=channels, scale=scale),
        most=config.running.max_unreadable_share,
        named=f"the validation images of {folder.root}",
        advice=", or raise --max-unreadable-share",
    )
    if tell:
        folder.tell()
    return folder


def described_network(config: FinetuneConfig) -> Network:
    """Return the description of the network that is going to be trained.

    Raises:
        UsageError: no such network, another number of channels, or a size that its patches do not tile.
        CheckpointError: no backbone there.
    """
    if config.backbone.startswith(SCRATCH):
        return _from_scratch(config)
    subject = load_subject(config.backbone, device="cpu", seed=config.seed)
    asked = config.image.channels
    if asked is not None and asked != subject.channels:
        raise UsageError(f"--channels {asked}: {config.backbone} takes images of {subject.channels}: leave it away")
    spec = subject.backbone.spec
    size = config.image.size or spec.image_size
    check_image_size(size, spec.patch_size, "--size")
    mean, std = subject.mean_std
    ranges = subject.known_ranges(config.image.value_range)
    if ranges is not None:
        ranges = measured_ranges(_training_images(config, spec.channels), channels=spec.channels, known=ranges)
    return Network(replace(spec, image_size=size), mean, std, subject.sha256, ranges)


def _training_images(config: FinetuneConfig, channels: int) -> ImageSource:
    return find_labels(config.data, config.labels, channels=channels).parts["train"].paths


def _from_scratch(config: FinetuneConfig) -> Network:
    """Describe timm's network of a name; images of three channels are normalised as ImageNet, others as measured."""
    name = config.backbone.removeprefix(SCRATCH)
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    size = config.image.size or (known.input_size[1:] if known else FALLBACK_SIZE)
    channels = config.image.channels or len(IMAGENET_MEAN)
    spec = backbone_spec(ModelConfig(backbone=name), image_size=(size[0], size[1]), channels=channels)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    images, given = _training_images(config, channels), config.image.value_range
    ranges = ValueRanges(option=VALUE_RANGE) if given is None else ValueRanges.given(given, VALUE_RANGE)
    ranges = measured_ranges(images, channels=channels, known=ranges)
    if channels != len(IMAGENET_MEAN):
        check_sample(images, channels=channels, patch_size=1, origin="--channels", scale=ranges)
        mean, std = channel_statistics(images, channels=channels, scale=ranges)
    return Network(spec, mean, std, "", ranges)


def started_backbone(config: FinetuneConfig, network: Network) -> Backbone:
    """Return the network with the weights that training starts from, on the CPU.

    Raises:
        CheckpointError: the weights do not fit.
    """
    backbone = network.build(config)
    if not config.fresh:
        source = config.backbone
        given = source.partition("=")[2] if not Path(source).exists() else ""
        logging.info(str(start_from(backbone, given or source)))
    return backbone
