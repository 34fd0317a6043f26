"""A training step without arithmetic, on tensors that have shapes but no values: to count its bytes, or its operations.

The step is the real one (`mst.train.step`), so that nothing about the networks is written twice. It runs on torch's
fake tensors, as torch's own tools for planning memory do, and costs seconds whatever the batch.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from mst.config.load import override
from mst.model.lean import FLOP_FORMULAS
from mst.planning.setup import Setup
from mst.runtime.seeding import generator
from mst.train.schedule import step_values
from mst.train.state import new_state, replica_count
from mst.train.step import train_step
from mst.views.record import Views


class TooManyBytes(Exception):
    """`LiveBytes` has seen enough."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors on one kind of device that are alive at a time.

    Args:
        device_type: the kind of device.
        most: stop at more than so many bytes; None = count to the end.

    Attributes:
        now: bytes held.
        peak: most bytes held so far.

    Raises:
        TooManyBytes: from the operation that makes it more than `most`.
    """

    now: int
    peak: int

    def __init__(self, device_type: str, *, most: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._most = most
        self._device_type = device_type
        self._sizes: dict[int, int] = {}  # of each live storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor) and value.device.type == self._device_type:
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)
            if self._most is not None and self.now > self._most:
                raise TooManyBytes

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers where the step asks for values: every number is one half, and so many of the drawn samples are kept.

    Args:
        dropping: whether stochastic depth leaves out as many as on average; else none, the most a step can cost.
    """

    def __init__(self, *, dropping: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dropping, self._share = dropping, 1.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5
        if func is torch.ops.aten.ge.Scalar:  # stochastic depth compares its draws with the rate
            self._share = 1.0 - args[1] if self._dropping else 1.0
        if func is torch.ops.aten.nonzero.default:
            kept = round(args[0].numel() * self._share)
            return torch.zeros(kept, args[0].ndim, dtype=torch.int64, device=args[0].device)
        return func(*args, **(kwargs or {}))


def step_operations(setup: Setup) -> int:
    """Return the floating point operations of the products and convolutions of a step, as many as on average."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    simulate_step(setup, counter, dropping=True)
    return int(counter.get_total_flops())


def simulate_step(setup: Setup, watch: TorchDispatchMode | FlopCounterMode, *, dropping: bool = False) -> None:
    """Let `watch` see the networks, the optimizer's state and one optimizer step with all that is alive in it.

    With accumulation two passes are made: the second one meets the gradients of the first, all others are like it.
    What is watched is watched in one thread, so one replica does all the work; of the others there are the gradients.

    Args:
        setup: the run; its images are not read.
        watch: sees every operation, as `LiveBytes` or torch's `FlopCounterMode`.
        dropping: whether stochastic depth leaves out samples, as many as on average.
    """
    images, passes = setup.plan.batch_size_per_pass, min(setup.config.train.accumulate, 2)
    plan = setup.plan.model_copy(update={"batch_size": images * passes})
    config = override(setup.config, {"runtime.replicas": 1})
    with torch.device("meta"):
        pair = replace(setup, device=torch.device("meta")).build_pair(resumed=True)
    answers = _Answers(dropping=dropping)
    with FakeTensorMode(allow_non_fake_inputs=True), answers, watch:
        state = new_state(pair.to_empty(device=setup.device), config, plan)
        for parameter in state.parameters:
            parameter.grad = torch.zeros_like(parameter)
        others = replica_count(setup.config, setup.plan, setup.device) - 1
        kept = [torch.zeros_like(parameter) for parameter in state.parameters for _ in range(others)]
        state.optimizer.step()  # makes its averages, which the first steps of a run do not have yet
        views = (random_views(setup, images) for _ in range(passes))
        train_step(state, views, step_values(plan, config, 0), config, plan, dtype=setup.precision)
        del kept


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
