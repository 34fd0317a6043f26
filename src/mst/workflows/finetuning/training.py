"""A fine-tuning as a training of the engine: batches, loss and optimizer, and its identity for resume and replay."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mst.data.labelled import LabelledFolder
from mst.engine.layer_decay import build_optimizer, parameter_groups
from mst.engine.schedule import Checkpointing
from mst.engine.supervised import PreparedTraining, TrainContext, Training
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.finetune.classifier import Classifier
from mst.parallel.shares import own_share
from mst.runtime.device import select_device, select_precision
from mst.runtime.identity import CONTENTS, DataIdentity
from mst.workflows.finetuning.batches import LabelledBatch, Work, batch_loss, batches, loop_settings
from mst.workflows.finetuning.start import FinetuneConfig

SETTINGS_OF_NUMBERS = ("backbone", "protocol", "image", "limits", "seed")


def prepared_finetuning(
    work: Work,
    model: Classifier,
    contents: DataIdentity,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    *,
    unreadable: Path | None = None,
) -> PreparedTraining[LabelledBatch]:
    """Return the training of a classifier, in place.

    Args:
        work: what is trained, on what.
        model: on its device.
        contents: what the labelled folder holds.
        evaluate: returns the numbers of a row of metrics.
        unreadable: where files that cannot be decoded are listed; None = nowhere.
    """
    config, network, folder, run = work.config, work.network, work.folder, work.run
    device = select_device(config.device, flag="--device")
    settings = loop_settings(config, len(folder.train.paths))
    groups = parameter_groups(model, weight_decay=config.protocol.weight_decay, layer_decay=config.layer_decay)
    training = Training(
        "classifier",
        model,
        build_optimizer(groups),
        lambda first: batches(work, settings, first, unreadable=unreadable, share=own_share()),
        lambda network, batch: batch_loss(network, batch, work),
        evaluate,
        folder.train.paths.name,
    )
    given = {
        "network": network.to_json(),
        "classes": list(folder.classes),
        "images": len(folder.train.paths),
        CONTENTS: contents.digest,
    }
    identity = {**_plain(config), **given}
    shorter = None
    if config.ended:
        before = replace(config.protocol, epochs=config.ended[-1])
        shorter = {**_plain(replace(config, protocol=before, ended=config.ended[:-1])), **given}
    context = TrainContext(
        device,
        select_precision(config.running.precision, device)[0],
        config.seed,
        Checkpointing(str(run.checkpoints), config.running.checkpoint_every),
        identity,
        tensorboard=config.running.tensorboard,
        resume=f"mst finetune --resume {shlex.quote(str(run.root))}",
        progress=config.running.progress,
        shorter=shorter,
    )
    return PreparedTraining(training, settings, context)


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings that change the numbers as JSON types."""
    plain = {key: value for key, value in asdict(config).items() if key in SETTINGS_OF_NUMBERS}
    plain["image"] = {key: value for key, value in plain["image"].items() if key != "value_range"}  # in the network's
    if config.ended:
        plain["ended"] = config.ended
    values: dict[str, Any] = json.loads(json.dumps(plain))
    return values


def identity_of(folder: LabelledFolder) -> DataIdentity:
    """Return what a labelled folder holds."""
    train, val = (ImageSet(*part) for part in (folder.train, folder.val))
    return LabelledSets(folder.classes, train, val, folder.split).fingerprint()
