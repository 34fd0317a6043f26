"""Pre-training from a configuration to a run folder: the one place where data, views, model and training meet."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.config.load import (
    dump_config,
    json_text,
    override,
    require_data,
    with_absolute_paths,
    with_given,
    with_minutes,
)
from mst.config.schema import MonitorConfig, RunConfig
from mst.data.decoding import UnreadableImage, read_image
from mst.data.inside import refuse_inside
from mst.data.labelled import find_labels
from mst.data.loader import BatchLoader
from mst.data.sources import ImageSource, even_positions
from mst.data.sources.places import weighted_place
from mst.engine.trainer import Trainer
from mst.errors import ConfigError, RunFailure, UsageError
from mst.evaluate.classification.verdict import Verdict
from mst.evaluate.common.protocol import ImageTransform
from mst.model.pair import TeacherStudent
from mst.parallel.launch import wanted_here
from mst.parallel.shares import own_share
from mst.parallel.world import World
from mst.paths import is_address, user_path
from mst.planning.environment import continued, describe_environment
from mst.planning.fitting import check_fits
from mst.planning.held_out import crop_pairs
from mst.planning.images import knn_labels, labelled_cache, training_images
from mst.planning.resolving import resolved
from mst.planning.setup import Setup, describe_setup, prepare
from mst.planning.stream import CropStream
from mst.recipes import base_config
from mst.runtime import logging
from mst.runtime.dynamics.repair import read_repairs
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.lock import only_process_in
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir, check_new_run_dir, create_run_dir, open_run_dir
from mst.runtime.threads import threads_kept
from mst.train.dynamics import tell_foreseen
from mst.train.pretraining import Pretraining
from mst.views.record import Crops
from mst.workflows.callbacks import NOBODY, Callback, Callbacks
from mst.workflows.changed_data import resumed_setup, with_identity
from mst.workflows.judged import Judged, tell_without_labels

PREVIEW_IMAGES = 6


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        root: its folder.
        backbone: the teacher's backbone, for `mst.load_backbone`.
        steps: optimizer steps done.
        metrics: the last value of every metric, by its name in metrics.jsonl.
        verdict: whether it helped, where there were labelled images to say it.
    """

    root: Path
    backbone: Path
    steps: int
    metrics: dict[str, float]
    verdict: Verdict | None = None


def load_recipe(
    name: str | Path, overrides: Mapping[str, object] | None = None, *, minutes: float | None = None
) -> RunConfig:
    """Return the configuration of a recipe (or of a JSON file) with some settings replaced.

    What `own-images` leaves to the images, the device and the time is chosen when the run starts.

    Args:
        name: a recipe's name or the path of a JSON file.
        overrides: dotted key -> value, as on the command line: `{"data.train": "photos", "train.epochs": 10}`.
        minutes: how long a run may take: `own-images` chooses everything for it, any other recipe its epochs.

    Raises:
        ConfigError: an unknown recipe, key or value; the nearest name or the allowed range is named.
    """
    if minutes is not None and not 0 < minutes <= 1e6:
        raise ConfigError(f"minutes {minutes:g}: must be above 0, at most 1e+06")
    return with_minutes(with_given(override(base_config(name), overrides or {}), overrides or {}), minutes)


def pretrain(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed_data: bool = False,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Pre-train a backbone; `backbone.safetensors` in the run folder is the result.

    Args:
        config: what to do, see `load_recipe`.
        out: the run folder: a new one, or with `resume` the one to go on with.
        resume: go on from the newest sound checkpoint, with the configuration that the run was started with.
        overwrite: replace the run that `out` holds.
        accept_changed_data: with `resume`, go on although the images are not those of before: steps per epoch and the
            order of the images follow from the new ones, from this step on, and the plan notes the change.
        callbacks: are told of the start, of rows, and of the end (`mst.Callback`); their faults do not end the run.
        quiet: print warnings and errors only: no table, no remarks, no bar.

    Raises:
        StopTraining: a callback ended it; everything is saved.
        UsageError: something is wrong with the settings or the images, and nothing was written; or another process
            is at work in the folder.
        RunFailure: disk full, out of memory, collapse, too many bad steps.
        Interrupted: a signal; everything is saved.
    """
    with logging.only_warnings(quiet), threads_kept():
        told = Callbacks(callbacks)
        return _pretrained(config, out, told, resume=resume, overwrite=overwrite, accept=accept_changed_data)


def _pretrained(
    config: RunConfig, out: str | Path, told: Callbacks, *, resume: bool, overwrite: bool, accept: bool
) -> Run:
    world = World.current()
    if world.size == 1 and (processes := wanted_here(config.runtime.processes)) > 1:
        raise UsageError(
            f"--runtime.processes {processes}: this call is one process: use mst pretrain, or start it with torchrun"
        )
    require_data(config)
    config = with_absolute_paths(config)
    world.refuse_differences(config.model_dump(mode="json"), "settings")
    run = open_run_dir(user_path(out)) if resume else RunDir(user_path(out))
    if not resume:
        world.from_first(lambda: check_new_run_dir(run.root, overwrite=overwrite))
        check_apart(config, run)
    setup = with_identity(prepare(resolved(config)))
    if resume:
        setup = resumed_setup(setup, run, accept=accept)
    world.refuse_differences(setup.plan.model_dump(mode="json"), "images")
    logging.show(describe_setup(setup))
    if not resume:
        tell_foreseen(setup.config, setup.plan)
    check_fits(setup)
    pair = setup.build_pair(resumed=resume and any(run.checkpoints.glob("step_*")))
    if not resume:
        world.from_first(lambda: create_run_dir(run.root, overwrite=overwrite))
    world.keep_log(run.root)
    with only_process_in(run.root):
        return carry_out(setup, pair, run, resume=resume, told=told)


def check_apart(config: RunConfig, run: RunDir) -> None:
    """Refuse a new run whose folder lies in that of its images or the other way round, also through links and lists.

    Raises:
        UsageError: `--overwrite` would delete the images or the weights to start from, or the run's pictures would
            become training images.
    """
    root = run.root.resolve()
    monitor = config.monitor
    places = [weighted_place(source).source for source in config.data.train if not is_address(source)]
    labelled = [place for place in (monitor.knn_data, monitor.knn_labels) if place and not is_address(place)]
    for source in map(Path, [*map(os.fsdecode, places), *labelled]):
        if source.resolve().is_relative_to(root):
            raise UsageError(f"--out {run.root} holds the images {source}: name a folder apart from them")
    start = config.model.init_from
    if start is not None and Path(start).resolve().is_relative_to(root):
        raise UsageError(f"--out {run.root} holds the weights to start from, {start}: name another folder")
    for source in map(Path, map(os.fsdecode, places)):
        if source.is_dir() and root.is_relative_to(source.resolve()):
            raise UsageError(
                f"--out {run.root} lies in --data.train {source}, where the run's pictures would become training "
                "images: name a folder outside"
            )
    if run.exists():  # it would be deleted
        refuse_inside(run.root, *indexed(config))


def indexed(config: RunConfig) -> list[ImageSource]:
    """Return all training and labelled images, also those that limits leave out."""
    data, labelled = config.data, config.monitor.knn_data
    found: list[ImageSource] = [training_images(data, tell=False)]
    if labelled is not None:
        cache = labelled_cache(config)
        found.append(find_labels(labelled, knn_labels(config), channels=data.channels, cache=cache).images)
    return found


def next_command(config: RunConfig, run: RunDir) -> str:
    """Return what to type after a run: a linear probe on the images that k-NN has judged it by, or on some."""
    monitor, usual = config.monitor, MonitorConfig()
    words = ["--backbone", str(run.root), "--data", monitor.knn_data or "LABELLED"]
    if monitor.knn_labels is not None:
        words += ["--labels", monitor.knn_labels]
    if monitor.knn_label_column is not None:
        words += ["--label-column", monitor.knn_label_column]
    for option, value, other in (
        ("--val-share", monitor.knn_val_share, usual.knn_val_share),
        ("--split-seed", monitor.knn_split_seed, usual.knn_split_seed),
    ):
        words += [option, str(value)] if value != other else []
    task = ["linear", *words, "--compare"] if monitor.knn_data is not None else ["baselines", *words]
    return f"mst evaluate {shlex.join(task)}"


def carry_out(setup: Setup, pair: TeacherStudent, run: RunDir, *, resume: bool, told: Callbacks = NOBODY) -> Run:
    """Train in the run's folder, from its newest checkpoint or from the start.

    Raises:
        CheckpointError: nothing to resume from that fits the settings.
        RunFailure, Interrupted: as `pretrain`.
    """
    state = setup.new_state(pair)
    environment = describe_environment(setup.device, setup.precision_reason)
    judged = Judged(setup.labelled, setup, run, state) if setup.labelled is not None else None
    task = Pretraining(
        state,
        partial(batches, setup, run),
        config=setup.config,
        plan=setup.plan,
        run=run,
        dtype=setup.precision,
        environment=environment,
        evaluator=judged,
        samples=preview_samples(setup),
        held_out=crop_pairs(setup.held_out, setup.plan.global_size),
        repairs=World.current().from_first(lambda: read_repairs(run)) if resume else (),
    )
    outputs = replace(task.outputs, on_row=told.on_row, progress=logging.has_remarks())
    trainer = Trainer(task, task.intervals, outputs)
    if resume and not trainer.saver.resumed:
        logging.info(f"{run.root} has no checkpoint yet: starting at step 0")
    if World.current().first:
        write_atomic(run.config, dump_config(setup.config))  # first: it is what makes the folder a run
        here = continued(environment, run.environment, step=state.step, last=task.plan.total_steps)
        write_atomic(run.environment, json.dumps(here, indent=2) + "\n")
        write_atomic(run.plan, json_text(task.plan))
        if setup.labelled is not None and setup.labelled.split is not None and setup.labelled.split.automatic:
            write_atomic(run.root / setup.labelled.split.file, setup.labelled.split.table)
    try:
        told.on_start(run.root, setup.config.model_dump(mode="json"), task.plan.model_dump(mode="json"))
        train(setup, trainer)
    except BaseException as error:
        told.on_stop(error)
        raise
    verdict = None
    if judged is not None:
        verdict = judged.conclude()
    else:
        tell_without_labels(run)
    logging.info(f"done: {run.backbone}; try it: {next_command(setup.config, run)}")
    metrics = last_metrics(run)
    told.on_end(run.backbone, metrics)
    return Run(run.root, run.backbone, state.step, metrics, verdict)


def train(setup: Setup, trainer: Trainer[Crops]) -> None:
    """Run the loop to the end.

    Raises:
        RunFailure: among others, the batch does not fit into memory.
    """
    try:
        trainer.fit()
    except torch.OutOfMemoryError as error:
        raise RunFailure(
            f"{setup.plan.batch_size_per_pass} images per microbatch do not fit into the memory of {setup.device}: "
            f"go on with --train.accumulate {2 * setup.config.train.accumulate}"
        ) from error


def batches(setup: Setup, run: RunDir, first_step: int) -> Generator[Crops, None, None]:
    """Yield the run's crops from `first_step` on; at the end, say how many files gave no image."""
    share = own_share(setup.config.runtime.lanes)
    with CropStream(setup, run, first_step=first_step, share=share) as crops:
        try:
            yield from crops
        finally:
            report_unreadable(crops.loader, run)


def preview_samples(setup: Setup) -> Tensor | None:
    """Return a few whole images, cut to the size of a global crop: uint8 [n, C, H, W]; None if none can be read."""
    crop = ImageTransform(setup.plan.global_size, setup.plan.mean, setup.plan.std).crop
    images = list(_readable(setup))
    return torch.stack([crop(image) for image in images]) if images else None


def _readable(setup: Setup) -> Iterator[Tensor]:
    for position in even_positions(len(setup.images), PREVIEW_IMAGES).tolist():
        try:
            yield read_image(setup.images, position, channels=setup.config.data.channels, scale=setup.scale)
        except UnreadableImage:
            continue


def report_unreadable(loader: BatchLoader, run: RunDir) -> None:
    """Say how many files gave no image, and who decoded the others where a device was asked to."""
    if loader.unreadable.count:
        logging.warn(
            f"{loader.unreadable.count} of {loader.unreadable.files_read} files could not be decoded: "
            f"{run.unreadable} lists them"
        )
    if (card := loader.reader.card) is not None:
        logging.info(f"{card.on_card} images were decoded by {card.device}, {card.on_cpu} by the CPU: no plain JPEGs")


def last_metrics(run: RunDir) -> dict[str, float]:
    """Return the last value of every metric."""
    metrics: dict[str, Any] = {}
    for row in read_jsonl(run.metrics):
        metrics |= {key: value for key, value in row.items() if value is not None}
    return metrics
