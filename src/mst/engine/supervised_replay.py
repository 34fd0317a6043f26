"""A step of a training with labels again: the checkpoint before it, the steps in between, then the step, looked at.

`mst.engine.replay` does steps of any task. Here is what a training with labels adds: which checkpoint to begin at,
whether all is as it was, and what is seen of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from mst.checkpoint.compare import FIRST_IMAGE, changed_identity
from mst.checkpoint.store import CheckpointStore
from mst.engine.inspection import Inspection, Rows, Watch, facts
from mst.engine.replay import Replay
from mst.engine.supervised import Microbatch, PreparedTraining, own_identity
from mst.errors import UsageError
from mst.paths import user_path
from mst.runtime import logging
from mst.runtime.identity import CONTENTS

OF_THE_DATA = frozenset({CONTENTS, "images", "train_images", FIRST_IMAGE})
"""Keys of a training's identity that may differ where other data are accepted."""
INPUT = "backbone"
"""Module whose input is looked at: the batch's images as the network sees them."""


@dataclass(frozen=True)
class ReplayedStep:
    """A step that was done again.

    Attributes:
        begun: step of the checkpoint that it was reached from; 0 = the start.
        again: the steps up to it.
        inspection: what it was.
    """

    begun: int
    again: Replay
    inspection: Inspection


def replay_step(
    prepared: PreparedTraining[Any], step: int, *, identity: Mapping[str, Any] | None, accept: str | None
) -> ReplayedStep:
    """Compute step number `step`, counted from 1, again, from the newest checkpoint before it or from the start.

    Args:
        prepared: the training, built anew; its networks are trained in place.
        step: the step.
        identity: what the training was when it began; None = not noted, by an older version.
        accept: None = go on although the data changed; else what to type for that, for the message.

    Raises:
        UsageError: no such step; or settings, weights or data are others than they were.
        CheckpointError: the checkpoints before it are damaged.
    """
    if not 1 <= step <= prepared.settings.steps:
        raise UsageError(f"step {step} is outside this training: give 1 to {prepared.settings.steps}")
    folder = prepared.context.saving.checkpoints
    store = CheckpointStore(user_path(folder), keep=1) if folder else None
    checkpoint = None
    if store is not None and any(saved < step for saved in store.steps()):
        checkpoint = store.load_latest(most=step - 1)
        identity = checkpoint.info.get("identity", identity)
    if identity is not None:
        _refuse_changes(identity, own_identity(prepared.context), accept)
        prepared = prepared._replace(context=replace(prepared.context, identity=identity))
    look = _Look(prepared.training.loss)
    prepared = prepared._replace(training=replace(prepared.training, loss=look.loss))
    task, model = prepared.task(), prepared.training.model
    if checkpoint is None:
        logging.info(f"there is no checkpoint before step {step}: beginning at step 0")
    else:
        task.load(checkpoint)
    begun = task.state.step
    again = Replay(task, prepared.intervals, partial(_weights, model))
    logging.info(f"replaying {step - 1 - begun} steps from step {begun} on, then step {step}; as long as training them")
    with closing(prepared.training.batches(begun)) as batches:
        again.steps(batches, step - 1 - begun)
        microbatches = again.take(batches)
        with look.at(model):
            inspection = again.inspect(microbatches, [model], look.watch, look.rows)
    return ReplayedStep(begun, again, inspection)


def _refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any], accept: str | None) -> None:
    """Refuse to call another training the one that was.

    Raises:
        UsageError: names what differs.
    """
    changed = changed_identity(then, now)
    other = sorted(changed - (OF_THE_DATA if accept is None else frozenset()))
    if not other:
        return
    advice = f", or take them as they are: {accept}" if accept and changed <= OF_THE_DATA else ""
    raise UsageError(
        f"this would be another step: {', '.join(other)} changed since the training; give back what it had{advice}"
    )


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers of a network by name."""
    yield from model.named_parameters()
    yield from ((name, value) for name, value in model.named_buffers() if value.is_floating_point())


class _Look:
    """Looks at a step's images where they enter the backbone, and keeps count of its microbatches.

    Attributes:
        watch: gets what is not finite.
        rows: gets the images.
    """

    def __init__(self, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        """Stand between a training and its loss."""
        self.watch, self.rows = Watch(), Rows()
        self._loss, self._looks = loss, False

    def loss(self, model: nn.Module, microbatch: Microbatch) -> Tensor:
        """Return the loss of a microbatch, which is the one that comes next."""
        if self._looks:
            self.rows.begin_microbatch(len(microbatch.positions))
        return self._loss(model, microbatch)

    @contextmanager
    def at(self, model: nn.Module) -> Iterator[None]:
        """Look at the step that is done inside."""
        handle = model.get_submodule(INPUT).register_forward_pre_hook(self._enter)
        self._looks = True
        try:
            yield
        finally:
            self._looks = False
            handle.remove()

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        pixels: Tensor = inputs[0]  # [b, C, H, W]
        if (wrong := facts(f"pixels given to {INPUT}", pixels)) is not None:
            self.watch.found.append(wrong)
            self.rows.add(~pixels.flatten(1).isfinite().all(dim=1), slice(0, len(pixels)))
