"""A training step without arithmetic, on tensors that have shapes but no values: to count its bytes, or its operations.

The step is the real one (`mst.train.step`), so that nothing about the networks is written twice. It runs on torch's
fake tensors, as torch's own tools for planning memory do, and costs seconds whatever the batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mst.config.load import override
from mst.engine.footprint import Answers
from mst.model.lean import FLOP_FORMULAS
from mst.model.pair import TeacherStudent
from mst.planning.setup import Setup
from mst.runtime.seeding import generator
from mst.train.schedule import step_values
from mst.train.state import new_state, replica_count
from mst.train.step import train_step
from mst.views.record import Views


def step_operations(setup: Setup) -> int:
    """Return the floating point operations of the products and convolutions of a step, as many as on average."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    simulate_step(setup, counter, dropping=True)
    return int(counter.get_total_flops())


def simulate_step(setup: Setup, watch: TorchDispatchMode | FlopCounterMode, *, dropping: bool = False) -> None:
    """Let `watch` see the networks, the optimizer's state and one optimizer step with all that is alive in it.

    With accumulation there are two microbatches: the second meets the gradients of the first, all others are like it.
    What is watched is watched in one thread, so one replica does all the work; of the others there are the gradients.

    Args:
        setup: the run; its images are not read.
        watch: sees every operation, as `LiveBytes` or torch's `FlopCounterMode`.
        dropping: whether stochastic depth leaves out samples, as many as on average.
    """
    images, microbatches = setup.plan.batch_size_per_pass, min(setup.config.train.accumulate, 2)
    plan = setup.plan.model_copy(update={"batch_size": images * microbatches})
    config = override(setup.config, {"runtime.replicas": 1})
    pair = meta_pair(setup)
    answers = Answers(dropping=dropping)
    with FakeTensorMode(allow_non_fake_inputs=True), answers, watch:
        state = new_state(pair.to_empty(device=setup.device), config, plan)
        for parameter in state.parameters:
            parameter.grad = torch.zeros_like(parameter)
        others = replica_count(setup.config, setup.plan, setup.device) - 1
        kept = [torch.zeros_like(parameter) for parameter in state.parameters for _ in range(others)]
        state.optimizer.step()  # makes its averages, which the first steps of a run do not have yet
        views = (random_views(setup, images) for _ in range(microbatches))
        train_step(state, views, step_values(plan, config, 0), config, plan, dtype=setup.precision)
        del kept


def meta_pair(setup: Setup) -> TeacherStudent:
    """Return the networks of a run without their memory, on the meta device."""
    with torch.device("meta"):
        return replace(setup, device=torch.device("meta")).build_pair(resumed=True)


def random_views(setup: Setup, images: int) -> Views:
    """Return normalised crops of noise on the run's device."""
    draw = generator(setup.config.runtime.seed, "probe")
    views, channels = setup.config.views, setup.config.data.channels
    shapes = [
        (views.global_crops, images, channels, *setup.plan.global_size),
        (views.local_crops, images, channels, *setup.plan.local_size),
    ]
    crops = [torch.randn(shape, generator=draw).to(setup.device) for shape in shapes]
    return Views(crops[0], crops[1], torch.arange(images))
