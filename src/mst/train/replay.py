"""One step of a pre-training again, under inspection: pixels, weights, outputs, losses, gradients, weights after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from mst.engine.inspection import Inspection, Rows, Watch, facts
from mst.engine.replay import Replay
from mst.train.pretraining import Pretraining
from mst.views.normalise import as_views
from mst.views.record import Crops


def weights(task: Pretraining) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers of the networks by name, and the center."""
    yield from task.state.pair.named_parameters()
    yield from ((name, value) for name, value in task.state.pair.named_buffers() if value.is_floating_point())
    yield "center", task.state.center


def inspect_step(task: Pretraining, replay: Replay, microbatches: list[Crops]) -> Inspection:
    """Do one step with hooks that only read, so that its numbers are those of the training."""
    watch, rows, replicas = Watch(), Rows(), task.state.replicas
    replicas.told = rows.begin_share
    told = _Told(microbatches, lambda microbatch: _begin_microbatch(task, watch, rows, microbatch))
    try:
        return replay.inspect(told, replicas.pairs, watch, rows)
    finally:
        replicas.told = None


class _Told(list[Crops]):
    """The microbatches of a step; says of each that it is next. The step takes one after the other, once."""

    def __init__(self, microbatches: Sequence[Crops], begin: Callable[[Crops], None]) -> None:
        super().__init__(microbatches)
        self._begin = begin

    def __iter__(self) -> Iterator[Crops]:
        for microbatch in super().__iter__():
            self._begin(microbatch)
            yield microbatch


def _begin_microbatch(task: Pretraining, watch: Watch, rows: Rows, microbatch: Crops) -> None:
    """Look at a microbatch's pixels as the networks see them, before they do."""
    rows.begin_microbatch(len(microbatch.indices))
    views = as_views(microbatch, task.plan.mean, task.plan.std, task.state.center.device)
    for name, seen in (("global crops", views.global_crops), ("local crops", views.local_crops)):  # [n, b, C, H, W]
        if not seen.numel():
            continue
        if (wrong := facts(f"pixels of {name}", seen)) is not None:
            watch.found.append(wrong)
            rows.add(~seen.flatten(2).isfinite().all(dim=2).any(dim=0), slice(0, len(microbatch.indices)))
