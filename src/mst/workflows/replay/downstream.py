"""A step of a training with labels again: a fine-tuning, a segmentation or a detector, built anew from its folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from mst.checkpoint.store import CheckpointStore
from mst.engine.supervised import PreparedTraining
from mst.engine.supervised_replay import replay_step
from mst.errors import UsageError
from mst.evaluate.detection.evaluation import DetectionProtocol
from mst.evaluate.segmentation.evaluation import SegmentationProtocol
from mst.finetune.classifier import Classifier
from mst.runtime import logging
from mst.runtime.device import select_device
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation import detection, segmentation
from mst.workflows.evaluation.asked import FORMAT, asked_again
from mst.workflows.finetuning.batches import Work
from mst.workflows.finetuning.start import labelled_folder, started_backbone
from mst.workflows.finetuning.stored import TASK, stored_config, stored_network
from mst.workflows.finetuning.training import identity_of, prepared_finetuning
from mst.workflows.replay.found import found_in

Built = PreparedTraining[Any]


def replay_downstream(run: RunDir, step: int, *, accept_changed_data: bool) -> dict[str, Any]:
    """Compute step number `step` of a training with labels again.

    Args:
        run: folder of its rows: `--out` of `mst finetune`, `--save-model` or `--out` of `mst evaluate segmentation`,
            `--checkpoints` of `mst evaluate detection`.
        step: counted from 1, as in bad_steps.jsonl.
        accept_changed_data: whether other images than those of the training are taken too.

    Returns:
        As `mst.workflows.replay.run.replay`.

    Raises:
        UsageError: no such step, something changed since, or a network or images in memory.
    """
    noted = _noted(run)
    if (processes := noted.get("processes", 1)) != 1:
        logging.warn(
            f"{processes} processes shared the batches of {run.root}, one computes the step here: draws within a share "
            "(mixing of images, sampling of boxes) are others, and so are the numbers"
        )
    prepared = _fine_tuning(run, step) if noted.get("task", TASK) == TASK else _evaluation(run, noted)
    accept = None if accept_changed_data else f"mst replay {shlex.quote(str(run.root))} {step} --accept-changed-data"
    done = replay_step(prepared, step, identity=noted.get("identity"), accept=accept)
    return found_in(
        run, step, begun=done.begun, again=done.again, inspection=done.inspection, image=prepared.training.image
    )


def _noted(run: RunDir) -> Mapping[str, Any]:
    """Return what the training noted when it began; a fine-tuning of an older version noted nothing.

    Raises:
        UsageError: it is damaged.
    """
    try:
        noted = json.loads(run.training.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{run.training} cannot be read ({error}): the step cannot be replayed") from error
    if not isinstance(noted, dict) or not isinstance(noted.get("identity", {}), dict):
        raise UsageError(f"{run.training} is no record of a training of this package")
    return noted


def _fine_tuning(run: RunDir, step: int) -> Built:
    """Build a fine-tuning; its first weights are looked for only where no checkpoint before the step replaces them."""
    config, network = stored_config(run, str(run.root)), stored_network(run, str(run.root))
    folder = labelled_folder(config, network, tell=False)
    replaced = any(saved < step for saved in CheckpointStore(run.checkpoints, keep=1).steps())
    backbone = network.build(config) if replaced else started_backbone(config, network)
    model = Classifier(backbone, len(folder.classes), seed=config.seed)
    model.to(select_device(config.device, flag="--device"))
    return prepared_finetuning(Work(config, network, folder, run), model, identity_of(folder))


def _evaluation(run: RunDir, noted: Mapping[str, Any]) -> Built:
    """Build the training of a head or a detector as it was asked for.

    Raises:
        UsageError: it was begun in memory, or by another version.
    """
    task, asked = noted.get("task"), noted.get("asked")
    if asked is None:
        raise UsageError(f"{run.root} is of a network or images in memory, which cannot be loaded again: no replay")
    if task not in BUILD or noted.get("format") != FORMAT:
        raise UsageError(f"{run.training} is of another version: format {noted.get('format')}, task {task}")
    return BUILD[task](asked)


BUILD: dict[object, Callable[[Mapping[str, Any]], Built]] = {
    "segmentation": lambda asked: segmentation.training_of(
        asked_again(asked, SegmentationProtocol, segmentation.SegmentationOptions)
    ),
    "detection": lambda asked: detection.training_of(asked_again(asked, DetectionProtocol, detection.DetectionOptions)),
}
"""Word after `mst evaluate` -> its training."""
