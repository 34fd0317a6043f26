"""Fine-tuning and supervised training: where labelled images, a backbone and the downstream loop meet."""

from __future__ import annotations

import json
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from mst.commands.environment import describe_environment
from mst.commands.evaluate import Limits
from mst.commands.finetuning_start import (
    FinetuneConfig,
    InputOptions,
    Network,
    Running,
    described_network,
    labelled_folder,
    started_backbone,
)
from mst.commands.setup import loader_workers
from mst.config.schema import RunConfig
from mst.data.labelled import LabelledFolder
from mst.data.loader import BatchLoader
from mst.errors import UsageError
from mst.evaluate.classification import Scores, score_classifier
from mst.evaluate.features import FeatureSettings
from mst.evaluate.image_sets import ImageSet
from mst.evaluate.protocol import ImageTransform, random_resized_crop
from mst.finetune.augment import RGB, RandAugment, erased, mixed
from mst.finetune.classifier import Classifier, FinetuneProtocol
from mst.finetune.layer_decay import build_optimizer, parameter_groups
from mst.finetune.loop import Outcome, Surroundings, Training, fit
from mst.finetune.schedule import Checkpointing, LoopSettings
from mst.model.backbone_file import save_backbone
from mst.runtime import logging
from mst.runtime.device import select_device, select_precision
from mst.runtime.files import write_atomic
from mst.runtime.lock import only_process_in
from mst.runtime.results import Result, append_jsonl, read_jsonl
from mst.runtime.rundir import RunDir, check_new_run_dir, create_run_dir
from mst.runtime.seeding import derive_seed
from mst.views.normalise import normalise

TASK = "finetune"
SETTINGS_OF_NUMBERS = ("backbone", "protocol", "image", "limits", "seed")


@dataclass(frozen=True)
class Work:
    """A checked fine-tuning.

    Attributes:
        config: what was asked for.
        network: what is trained.
        folder: the labelled images.
        run: where the results go.
    """

    config: FinetuneConfig
    network: Network
    folder: LabelledFolder
    run: RunDir


class LabelledBatch(NamedTuple):
    """Part of a step's batch: images uint8 [B, C, H, W], labels [B], and which step and part it is."""

    images: Tensor
    labels: Tensor
    step: int
    part: int


@dataclass(frozen=True)
class TrainViews:
    """The loader's transform: random crops, mirrored half of the time, and RandAugment.

    Attributes:
        size: (H, W) of the views.
        repeats: R, views of each image.
        augment: None = crops only.
    """

    size: tuple[int, int]
    repeats: int
    augment: RandAugment | None

    def __call__(self, images: Sequence[Tensor], draws: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
        """Return uint8 views [b, R, C, H, W] of uint8 images [C, h, w], drawn from each one's generator."""
        views = [
            torch.stack([self._view(image, draw) for _ in range(self.repeats)])
            for image, draw in zip(images, draws, strict=True)
        ]
        return (torch.stack(views),)

    def _view(self, image: Tensor, draw: torch.Generator) -> Tensor:
        crop = random_resized_crop(image, self.size, draw)
        return crop if self.augment is None else self.augment(crop, int(torch.randint(2**32, (), generator=draw)))


def finetune_backbone(
    backbone: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    protocol: FinetuneProtocol | None = None,
    image: InputOptions | None = None,
    limits: Limits | None = None,
    running: Running | None = None,
    device: str = "auto",
    seed: int = 0,
    recipe: str = "",
    overwrite: bool = False,
) -> Result:
    """Train a backbone and a linear classifier on labelled images; `out` gets both, rows and checkpoints.

    Args:
        backbone: a run folder, a backbone file, `timm:NAME`, `NAME=FILE`, `random:` before any of them (the same
            network with fresh weights), or `scratch:NAME` (timm's network of that name with fresh weights).
        data: a folder with `train/<class>/` and `val/<class>/` (or valid, test).
        out: the new folder: `backbone.safetensors`, `classifier.safetensors`, `classes.json`, `metrics.jsonl`,
            `results.jsonl`, `checkpoints/`.
        protocol: what changes the numbers.
        image: size and channels.
        limits: use only parts of the folder.
        running: validation, checkpoints, workers, compute type.
        device: auto, cpu, cuda or cuda:N.
        seed: of all draws and of fresh weights.
        recipe: a name to keep with the settings.
        overwrite: replace the run that `out` holds.

    Returns:
        `Result` with `top1` and `top5` on the validation images in percent.

    Raises:
        UsageError: something is wrong with the settings, the weights or the images, nothing was written.
        RunFailure: disk full, too many bad steps.
        Interrupted: SIGINT or SIGTERM; everything is saved.
    """
    config = FinetuneConfig(
        str(backbone),
        str(Path(data).expanduser().resolve()),
        protocol or FinetuneProtocol(),
        image or InputOptions(),
        limits or Limits(),
        running or Running(),
        device,
        seed,
        recipe,
    )
    root = Path(out)
    check_new_run_dir(root, overwrite=overwrite)
    check_apart(config, root)
    select_device(device, flag="--device")
    network = described_network(config)
    train_views(config, network)  # refuses a description that timm does not know
    folder = labelled_folder(config, network.spec.channels)
    model = Classifier(started_backbone(config, network), len(folder.classes), seed=seed)
    run = create_run_dir(root, overwrite=overwrite)
    with only_process_in(run.root):
        values = {"task": TASK, "recipe": recipe or TASK, "settings": asdict(config)}
        write_atomic(run.config, json.dumps(values, indent=2) + "\n")
        write_atomic(run.plan, json.dumps(network.to_json(), indent=2) + "\n")
        return _carry_out(Work(config, network, folder, run), model)


def resume_finetuning(out: str | Path, *, device: str | None = None) -> Result:
    """Go on with an interrupted fine-tuning, with the settings it was started with.

    Args:
        out: its folder.
        device: None = as before.

    Raises:
        UsageError: there is none.
        RunFailure, Interrupted: as `finetune_backbone`.
    """
    run = RunDir(Path(out))
    config = _stored(run)
    if device is not None:
        config = replace(config, device=device)
    done = [row for row in read_jsonl(run.results) if row["task"] == TASK]
    if done:
        logging.info(f"{run.root} is finished: nothing to do")
        return Result(**done[-1])
    network = Network.from_json(json.loads(run.plan.read_text(encoding="utf-8")))
    folder = labelled_folder(config, network.spec.channels)
    begun = any(run.checkpoints.glob("step_*"))
    backbone = network.build(config) if begun else started_backbone(config, network)
    model = Classifier(backbone, len(folder.classes), seed=config.seed)
    with only_process_in(run.root):
        return _carry_out(Work(config, network, folder, run), model)


def check_apart(config: FinetuneConfig, root: Path) -> None:
    """Refuse a folder that holds, or lies in, what the training reads.

    Raises:
        UsageError: `--overwrite` would delete the images or the weights.
    """
    place, data = root.resolve(), Path(config.data)
    if data.is_relative_to(place) or place.is_relative_to(data):
        raise UsageError(f"--out {root} and --data {data} lie one in the other: name a folder apart")
    if Path(config.backbone).expanduser().resolve().is_relative_to(place):
        raise UsageError(f"--out {root} holds the weights to start from, {config.backbone}: name another folder")


def _stored(run: RunDir) -> FinetuneConfig:
    """Return the settings of a folder.

    Raises:
        UsageError: no fine-tuning was started there.
    """
    try:
        values = json.loads(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--resume {run.root} holds no run of mst finetune (no config.json)") from error
    if not isinstance(values, dict) or values.get("task") != TASK or "settings" not in values or not run.plan.exists():
        raise UsageError(f"--resume {run.root} holds no run of mst finetune: is it one of mst pretrain?")
    return FinetuneConfig.from_json(values["settings"])


def _carry_out(work: Work, model: Classifier) -> Result:
    """Train from the newest checkpoint or from the start, then score and save."""
    config, network, folder, run = work.config, work.network, work.folder, work.run
    device = select_device(config.device, flag="--device")
    dtype, reason = select_precision(config.running.precision, device)
    write_atomic(run.environment, json.dumps(describe_environment(device, reason), indent=2) + "\n")
    model.to(device)
    settings = loop_settings(config, len(folder.train.paths))
    scorer = _Scorer(work, model)
    groups = parameter_groups(model, weight_decay=config.protocol.weight_decay, layer_decay=config.layer_decay)
    training = Training(
        "classifier",
        model,
        build_optimizer(groups),
        lambda first: batches(work, settings, first),
        lambda network, batch: batch_loss(network, batch, work),
        scorer.row,
    )
    plain = {key: value for key, value in asdict(config).items() if key in SETTINGS_OF_NUMBERS}
    identity = {
        **json.loads(json.dumps(plain)),
        "network": network.to_json(),
        "classes": list(folder.classes),
        "images": len(folder.train.paths),
    }
    where = Surroundings(
        device,
        dtype,
        config.seed,
        Checkpointing(str(run.checkpoints), config.running.checkpoint_every),
        identity,
        run=run,
        tensorboard=config.running.tensorboard,
        resume=f"mst finetune --resume {shlex.quote(str(run.root))}",
        progress=config.running.progress,
    )
    outcome = fit(training, settings, where)
    _save(work, model, outcome)
    result = _result(work, outcome, scorer.latest or scorer())
    append_jsonl(run.results, result.row())
    logging.info(f"done: {run.backbone}")
    return result


def loop_settings(config: FinetuneConfig, images: int) -> LoopSettings:
    """Return what the loop does with so many training images; an epoch is as many full batches as they make."""
    protocol = config.protocol
    per_epoch = images // protocol.batch_size
    steps = protocol.epochs * per_epoch
    return LoopSettings(
        steps=steps,
        batch_size=protocol.batch_size,
        lr=protocol.lr,
        warmup_steps=min(round(protocol.warmup_epochs * per_epoch), steps - 1),
        schedule="cosine",
        min_lr=min(protocol.min_lr, protocol.lr),
        clip_norm=protocol.clip_norm,
        accumulate=protocol.accumulate,
        evaluate_every=config.running.evaluate_epochs * per_epoch,
    )


def train_views(config: FinetuneConfig, network: Network) -> TrainViews:
    """Return the loader's transform; RandAugment knows three channels only and is left out for others."""
    size, description = network.spec.image_size, config.protocol.randaugment
    augment = None
    if description != "none" and network.spec.channels == RGB:
        augment = RandAugment(description, size=size, mean=network.mean)
    return TrainViews(size, config.protocol.repeats, augment)


def batches(work: Work, settings: LoopSettings, first: int) -> Generator[LabelledBatch, None, None]:
    """Yield the parts of each step's batch from step `first` on.

    Raises:
        DataError: too many files cannot be read.
    """
    config, network, folder = work.config, work.network, work.folder
    protocol = config.protocol
    size = protocol.batch_size // protocol.accumulate
    images = -(-size // protocol.repeats)
    asked = RunConfig.model_validate({"runtime": {"workers": config.running.workers}})
    loader = BatchLoader(
        folder.train.paths,
        train_views(config, network),
        batch_size=images * protocol.accumulate,
        seed=config.seed,
        total_steps=settings.steps,
        start_step=first,
        accumulate=protocol.accumulate,
        channels=network.spec.channels,
        workers=loader_workers(asked, select_device(config.device, flag="--device")),
        max_unreadable_share=config.running.max_unreadable_share,
        unreadable_file=work.run.unreadable,
    )
    with closing(loader):
        for position, batch in enumerate(loader):
            views = batch.tensors[0].transpose(0, 1).flatten(0, 1)  # [R*b, C, H, W]
            labels = folder.train.labels[batch.indices].repeat(protocol.repeats)  # [R*b]
            yield LabelledBatch(views[:size], labels[:size], batch.step, position % protocol.accumulate)


def batch_loss(model: nn.Module, batch: LabelledBatch, work: Work) -> Tensor:
    """Return the soft cross-entropy of one part of a batch after erasing and mixing, drawn from (seed, step, part)."""
    protocol, network = work.config.protocol, work.network
    draw = np.random.default_rng(derive_seed(work.config.seed, "mix", batch.step, batch.part))
    device = next(model.parameters()).device
    images = normalise(batch.images.to(device, non_blocking=True), network.mean, network.std)  # [B, C, H, W]
    images, targets = mixed(
        erased(images, protocol.erasing, draw),
        batch.labels.to(device),
        len(work.folder.classes),
        mixup=protocol.mixup,
        cutmix=protocol.cutmix,
        smoothing=protocol.label_smoothing,
        draw=draw,
    )
    return F.cross_entropy(model(images).float(), targets)


class _Scorer:
    """Scores the classifier on the validation images and keeps the latest scores."""

    def __init__(self, work: Work, model: Classifier) -> None:
        running, val, network = work.config.running, work.folder.val, work.network
        self.model = model
        self.images = ImageSet.from_paths(val.paths, val.labels, channels=network.spec.channels)
        self.transform = ImageTransform(network.spec.image_size, network.mean, network.std)
        self.settings = FeatureSettings(
            precision=running.precision,
            max_unreadable_share=running.max_unreadable_share,
            progress=running.progress,
        )
        self.latest: Scores | None = None

    def __call__(self) -> Scores:
        self.latest = score_classifier(self.model, self.images, self.transform, self.settings)
        return self.latest

    def row(self) -> Mapping[str, float]:
        """Return the numbers of a row of metrics."""
        scores = self()
        return {"val_top1": scores.top1, "val_top5": scores.top5}


def _save(work: Work, model: Classifier, outcome: Outcome) -> None:
    """Write the trained backbone, the classifier and its classes."""
    run, network = work.run, work.network
    metadata = {"recipe": TASK, "step": outcome.steps, "mean": list(network.mean), "std": list(network.std)}
    save_backbone(run.backbone, model.backbone, metadata)
    head = {name: value.detach().cpu().contiguous() for name, value in model.head.state_dict().items()}
    write_atomic(run.root / "classifier.safetensors", save(head, metadata={"format": "pt"}))
    write_atomic(run.root / "classes.json", json.dumps(list(work.folder.classes), indent=2) + "\n")


def _result(work: Work, outcome: Outcome, scores: Scores) -> Result:
    """Return the row of results.jsonl."""
    config, network, folder = work.config, work.network, work.folder
    protocol: dict[str, Any] = {
        **asdict(config.protocol),
        "lr": config.protocol.lr,
        "layer_decay": config.layer_decay,
        "size": list(network.spec.image_size),
        "recipe": config.recipe,
    }
    extra = {
        "train_images": len(folder.train.paths),
        "val_images": len(folder.val.paths),
        "classes": len(folder.classes),
        "unreadable": list(scores.unreadable),
        **asdict(outcome),
    }
    return Result(
        TASK,
        {"top1": scores.top1, "top5": scores.top5},
        protocol,
        config.backbone,
        network.sha256,
        config.seed,
        Path(config.data).name,
        extra,
    )
