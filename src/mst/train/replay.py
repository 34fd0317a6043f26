"""One step of a pre-training again, under inspection: pixels, weights, outputs, losses, gradients, weights after it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mst.engine.inspection import TensorFacts, Watch, facts, largest_value, tensors
from mst.engine.replay import Replay
from mst.model.pair import TeacherStudent
from mst.train.pretraining import Pretraining
from mst.train.step import StepReport
from mst.views.normalise import normalise
from mst.views.record import Views


@dataclass(frozen=True)
class Inspection:
    """What one step was.

    Attributes:
        report: its losses and gradient norm.
        found: what is not finite, in the order of computation.
        images: positions in the batch of the images whose rows of the networks' outputs are not finite.
        indices: the batch's images, as positions in the data set.
        gradient, weight, weight_after: name and size of the largest value, before clipping and around the step.
    """

    report: StepReport
    found: Sequence[TensorFacts]
    images: Sequence[int]
    indices: Sequence[int]
    gradient: tuple[str, float] | None
    weight: tuple[str, float]
    weight_after: tuple[str, float]


def weights(task: Pretraining) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers of the networks by name, and the center."""
    yield from task.state.pair.named_parameters()
    yield from ((name, value) for name, value in task.state.pair.named_buffers() if value.is_floating_point())
    yield "center", task.state.center


def inspect_step(task: Pretraining, replay: Replay, parts: list[Views]) -> Inspection:
    """Do one step with hooks that only read, so that its numbers are those of the training."""
    watch, rows, replicas = Watch(), _Rows(), task.state.replicas
    weight = largest_value(weights(task))
    for name, value in weights(task):
        watch.note(f"weight {name} before the step", value)
    for pair in replicas.pairs:
        watch.network(pair)
        rows.network(pair)
    replicas.told = rows.begin_share
    try:
        report = replay.step(_Told(parts, lambda part: _begin_part(task, watch, rows, part)))
    finally:
        replicas.told = None
        watch.close()
        rows.close()
    assert isinstance(report, StepReport)
    for name, number in report.scalars().items():
        watch.note("the gradient norm (of all gradients)" if name == "grad_norm" else name, torch.tensor(number))
    for name, value in weights(task):
        watch.note(f"weight {name} after the step", value)
    gradient = max(watch.largest.items(), key=lambda item: (math.isnan(item[1]), item[1])) if watch.largest else None
    return Inspection(
        report,
        watch.found,
        sorted(rows.bad),
        report.indices.tolist(),
        gradient,
        weight,
        largest_value(weights(task)),
    )


def _begin_part(task: Pretraining, watch: Watch, rows: _Rows, part: Views) -> None:
    """Look at a part's pixels as the networks see them, before they do."""
    rows.begin_part(len(part.indices))
    for name, pixels in (("global crops", part.global_crops), ("local crops", part.local_crops)):
        if not pixels.numel():
            continue
        seen = normalise(pixels.to(task.state.center.device), task.plan.mean, task.plan.std)  # [n, b, C, H, W]
        if (wrong := facts(f"pixels of {name}", seen)) is not None:
            watch.found.append(wrong)
            rows.add(~seen.flatten(2).isfinite().all(dim=2).any(dim=0), slice(0, len(part.indices)))


class _Told(list[Any]):
    """The parts of a step; says of each that it is next."""

    def __init__(self, parts: Sequence[Views], begin: Callable[[Views], None]) -> None:
        super().__init__(parts)
        self._begin = begin

    def __iter__(self) -> Iterator[Views]:
        for part in super().__iter__():
            self._begin(part)
            yield part


class _Rows:
    """Finds the images whose rows of backbone, head and decoder are not finite.

    Attributes:
        bad: their positions in the batch.
    """

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self._first = self._next = 0
        self._here = threading.local()
        self._handles: list[RemovableHandle] = []

    def network(self, pair: TeacherStudent) -> None:
        """Watch a pair or a replica of it; a head with BatchNorm tells nothing, as one image spoils the others."""
        parts = {"backbone", "decoder"} if pair.student.head.couples_images else {"backbone", "head", "decoder"}
        for name, module in pair.named_modules():
            if name.rpartition(".")[2] in parts:
                self._handles.append(module.register_forward_hook(self._look))

    def begin_part(self, images: int) -> None:
        """Take note of the part that comes next."""
        self._first, self._next = self._next, self._next + images

    def begin_share(self, share: slice) -> None:
        """Take note of the images of a part that this thread works on."""
        self._here.share = share

    def close(self) -> None:
        """Take all hooks away."""
        while self._handles:
            self._handles.pop().remove()

    def add(self, wrong: Tensor, share: slice) -> None:
        """Note which of a share's images [b] are not finite."""
        self.bad.update(self._first + share.start + place for place in wrong.nonzero().flatten().tolist())

    def _look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        value = next(tensors(output)).detach()  # [n*b, ...], crops of one image apart by b
        share: slice = self._here.share
        images = share.stop - share.start
        wrong = ~value.flatten(1).isfinite().all(dim=1)  # [n*b]
        if bool(wrong.any()) and len(wrong) % images == 0:
            self.add(wrong.view(-1, images).any(dim=0), share)
