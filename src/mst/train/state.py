"""Everything that changes while a run trains; together with the configuration it decides every later step.

There is no random state in it: every draw derives from (seed, step), see `mst.train.step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mst.checkpoint.fit import Unfit, check_module, check_optimizer, check_tensor, number, section, whole
from mst.config.schema import RunConfig, RunPlan
from mst.errors import CheckpointError, UsageError
from mst.model.pair import TeacherStudent
from mst.parallel.batch_norm import share_statistics
from mst.parallel.data_parallel import DataParallel
from mst.parallel.lanes import Lanes
from mst.parallel.replicas import Replicas
from mst.parallel.world import World
from mst.runtime.device import select_precision
from mst.train.monitors import CollapseWatch, FeatureBuffer, RunningMeans
from mst.train.optimizer import build_optimizer

MOST_REPLICAS = 4
"""Each one has gradients of its own, so this many times the memory of those."""


@dataclass
class TrainState:
    """A run after `step` optimizer steps.

    Attributes:
        pair: student, teacher, image decoder.
        optimizer: AdamW over student and decoder.
        center: running mean of the teacher's logits [1, K].
        features: the teacher's latest features, for RankMe.
        replicas: who works on the pair's batches: threads, processes or lanes (not saved).
        microbatches: of a step, in this process (not saved).
        means: losses since the last row of metrics.
        collapse: how long the statistics have looked collapsed.
        step: optimizer steps done, skipped ones included.
        bad_steps: steps skipped because something was not finite.
        bad_streak: how many of them in succession, up to now.
        seconds: time spent training, over all sittings.
        parameters: all that learns (not saved: part of student and decoder).
        buffers: running statistics of the networks (not saved either).
    """

    pair: TeacherStudent
    optimizer: AdamW
    center: Tensor
    features: FeatureBuffer
    replicas: Replicas
    microbatches: int = 1
    means: RunningMeans = field(default_factory=RunningMeans)
    collapse: CollapseWatch = field(default_factory=CollapseWatch)
    step: int = 0
    bad_steps: int = 0
    bad_streak: int = 0
    seconds: float = 0.0
    parameters: list[nn.Parameter] = field(init=False)
    buffers: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # Listed once: walking the modules costs milliseconds, which is a share of a small network's step.
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.buffers = list(self.pair.buffers())

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        """Return the parts of a checkpoint by name; tensors are the live ones, or parts of them, not copies."""
        parts: dict[str, dict[str, Any]] = {
            "student": self.pair.student.state_dict(),
            "teacher": self.pair.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {
                "step": self.step,
                "bad_steps": self.bad_steps,
                "bad_streak": self.bad_streak,
                "seconds": self.seconds,
                "center": self.center,
                "features": self.features.state_dict(),
                "means": self.means.state_dict(),
                "collapse": self.collapse.state_dict(),
            },
        }
        if self.pair.decoder is not None:
            parts["decoder"] = self.pair.decoder.state_dict()
        return parts

    def load(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `state_dicts` returned, strictly.

        Raises:
            CheckpointError: a part, a key, a shape, a type or a number does not fit; nothing has changed.
        """
        try:
            progress, modules = self._checked(parts)
        except Unfit as error:
            raise CheckpointError(f"the checkpoint does not fit this run's networks: {error}") from error
        for name, module in modules.items():
            like = module.state_dict()
            module.load_state_dict({key: self.replicas.divided(value, like[key]) for key, value in parts[name].items()})
        self.optimizer.load_state_dict(self._own_part(parts["optimizer"]))
        self.center.copy_(progress["center"])
        self.features.load_state_dict(progress["features"])
        self.means.load_state_dict(progress["means"])
        self.collapse.load_state_dict(progress["collapse"])
        self.step, self.seconds = progress["step"], float(progress["seconds"])
        self.bad_steps, self.bad_streak = progress["bad_steps"], progress["bad_streak"]

    def _own_part(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state with what this process holds of each tensor that is as large as its parameter."""
        state = {
            key: {
                name: self.replicas.divided(value, self.parameters[key]) if value.ndim else value
                for name, value in entries.items()
            }
            for key, entries in saved["state"].items()
        }
        return {**saved, "state": state}

    def _checked(self, parts: Mapping[str, Mapping[str, Any]]) -> tuple[Mapping[str, Any], dict[str, nn.Module]]:
        """Return the progress and the networks by the names of their parts, once all of it fits.

        Raises:
            Unfit: something does not.
        """
        pair, progress = self.pair, section(parts, "progress")
        modules: dict[str, nn.Module] = {"student": pair.student, "teacher": pair.teacher}
        if pair.decoder is not None:
            modules["decoder"] = pair.decoder
        step = whole(progress, "step")
        for key in ("bad_steps", "bad_streak"):
            whole(progress, key, most=step)
        number(progress, "seconds", least=0.0)
        check_tensor(progress.get("center"), self.center, "center")
        self.features.check(section(progress, "features"))
        self.means.check(section(progress, "means"))
        whole(section(progress, "collapse"), "streak", most=step)
        for name, module in modules.items():
            check_module(parts.get(name), module, name)
        check_optimizer(parts.get("optimizer"), self.optimizer, steps=step)
        return progress, modules


def new_state(pair: TeacherStudent, config: RunConfig, plan: RunPlan) -> TrainState:
    """Return the state at step 0 around an initialised pair, which stays on its device.

    Raises:
        UsageError: replicas or lanes that the processes cannot have.
    """
    device, world = pair.student.head.prototypes.device, World.current()
    own_lanes = max(1, config.runtime.lanes // world.size)
    if world.size > 1 and config.model.head_norm == "batch":
        share_statistics(pair)
    replicas = _workers(pair, config, plan, world)  # first: it may replace parameters by parts of them
    return TrainState(
        pair=pair,
        optimizer=build_optimizer(pair, config.optimizer),
        center=torch.zeros(1, plan.prototypes, device=device),
        features=FeatureBuffer(pair.student.backbone.embed_dim, device=device),
        replicas=replicas,
        microbatches=config.train.accumulate * own_lanes,
    )


def _workers(pair: TeacherStudent, config: RunConfig, plan: RunPlan, world: World) -> Replicas:
    """Return who works on the batches: lanes if there are any, else processes, else replicas in threads.

    Raises:
        UsageError: lanes that so many processes cannot share, or replicas in each of several processes.
    """
    lanes, replicas = config.runtime.lanes, config.runtime.replicas
    if lanes:
        if world.size > lanes or world.size & (world.size - 1):
            raise UsageError(
                f"--runtime.lanes {lanes} on {world.size} processes: use 1, 2, 4, ... up to {lanes} of them"
            )
        return Lanes(pair, world, microbatches=config.train.accumulate)
    if world.size > 1 and config.runtime.sharding == "fsdp2":
        from mst.parallel.sharded import Sharded

        return Sharded(pair, world, select_precision(config.runtime.precision, pair.student.head.prototypes.device)[0])
    if world.size > 1:
        if replicas > 1:
            raise UsageError(f"--runtime.replicas {replicas} on {world.size} processes: each has one: leave it away")
        if config.objective.strategy == "none":
            pair.student.backbone.mask_token.requires_grad_(False)  # nothing is hidden: it gets no gradient to add up
        return DataParallel(pair, world)
    count = replica_count(config, plan, pair.student.head.prototypes.device)
    return Replicas(pair, count, threads=max(1, torch.get_num_threads() // count))


def replica_count(config: RunConfig, plan: RunPlan, device: torch.device) -> int:
    """Return how many replicas work on a pass: as asked, or one per compute thread of a CPU; never more than images.

    A head with BatchNorm looks at the whole batch, so it has one; so have compiled blocks.
    """
    if device.type != "cpu" or config.model.head_norm == "batch" or config.runtime.compile == "on":
        return 1
    wanted = config.runtime.replicas or min(torch.get_num_threads(), MOST_REPLICAS)
    return max(1, min(wanted, plan.batch_size_per_pass))
