"""How much memory a training takes, counted on tensors that have shapes and no values.

Live bytes are summed while a step runs without arithmetic, as torch's own tools for planning memory do.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ALLOCATOR_SHARE = 1.1
"""Memory taken per byte of tensors, because allocators round up and keep gaps (benchmarks/plan_memory.py)."""
CPU_SCRATCH = 180_000_000
"""Bytes that the CPU's compute libraries take on top, whatever the batch (measured there as well)."""


class TooManyBytes(Exception):
    """`LiveBytes` has seen enough."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that adds little to each operation: most of what torch asks of fake tensors is their device."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and keeping the compiler away costs as much as an operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        return self.seen(func, args, kwargs or {})

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operation returns."""
        raise NotImplementedError


class LiveBytes(_Watch):
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

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the tensors that an operation returns."""
        out = func(*args, **kwargs)
        for value in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(value, FakeTensor):
                device = value.fake_device
            elif isinstance(value, Tensor):
                device = value.device
            else:
                continue
            if device.type == self._device_type:
                self._note(value.untyped_storage())
        return out

    @property
    def taken(self) -> int:
        """Memory of the peak, with what allocators and libraries add."""
        return round(self.peak * ALLOCATOR_SHARE) + (CPU_SCRATCH if self._device_type == "cpu" else 0)

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


class Answers(_Watch):
    """Answers where a step asks for values: every number is one half, and so many of the drawn samples are kept.

    Args:
        dropping: whether stochastic depth leaves out as many as on average; else none, the most a step can cost.
    """

    def __init__(self, *, dropping: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dropping, self._share = dropping, 1.0

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an answer, or what the operation returns."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5
        if func is torch.ops.aten.ge.Scalar:  # stochastic depth compares its draws with the rate
            self._share = 1.0 - args[1] if self._dropping else 1.0
        if func is torch.ops.aten.nonzero.default:
            kept = round(args[0].numel() * self._share)
            return torch.zeros(kept, args[0].ndim, dtype=torch.int64, device=args[0].device)
        return func(*args, **kwargs)


def training_bytes(
    model: nn.Module,
    optimizer: Callable[[nn.Module], Optimizer],
    loss: Callable[[nn.Module], Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    microbatches: int = 1,
    most: int | None = None,
) -> int:
    """Return the memory of a model, its gradients, its optimizer and one step, with what allocators and libraries add.

    Args:
        model: of any device; it is left as it is, and no memory is taken.
        optimizer: makes the optimizer of a model like it.
        loss: makes the images of a microbatch on `device` and returns the model's mean loss of them.
        device: where it would be trained.
        dtype: compute type (autocast).
        microbatches: of a step; all after the second are like it.
        most: stop counting beyond so many bytes of tensors.

    Raises:
        TooManyBytes: they are more than `most`.
    """
    live, like = LiveBytes(device.type, most=most), without_values(model)
    with FakeTensorMode(allow_non_fake_inputs=True), Answers(dropping=False), live:
        like = like.to_empty(device=device).train()
        learnt = optimizer(like)
        for parameter in (parameter for parameter in like.parameters() if parameter.requires_grad):
            parameter.grad = torch.zeros_like(parameter)
        learnt.step()  # makes its averages, which the first step does not have yet
        for _ in range(min(microbatches, 2)):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                value = loss(like)
            value.backward()  # type: ignore[no-untyped-call]
        learnt.step()
    return live.taken


def without_values(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters and buffers have shapes and no values, on the device "meta"."""
    shapes: dict[int, Tensor] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta", requires_grad=False)
        shapes[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        shapes[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, shapes)


class Counted:
    """The memory of microbatches of any number of images: counted up to a size, beyond it a line goes on.

    Args:
        count: returns the bytes of a microbatch of so many images.
        largest: number of images that is counted at most.
        most: bytes beyond which it does not matter how many more they are.
    """

    def __init__(self, count: Callable[[int], int], *, largest: int, most: int) -> None:
        self._count, self._largest, self._most = count, largest, most
        self._known: dict[int, int] = {}

    def of(self, images: int) -> int:
        """Return the bytes that a microbatch of so many images takes; `most` where it is more than that."""
        if images > self._largest:
            half = max(1, self._largest // 2)
            at_half, at_largest = self.of(half), self.of(self._largest)
            each = (at_largest - at_half) / max(1, self._largest - half) or at_largest / self._largest
            return round(at_largest + each * (images - self._largest))
        if images not in self._known:
            try:
                self._known[images] = min(self._most, self._count(images))
            except TooManyBytes:
                self._known[images] = self._most
        return self._known[images]

    def most_images(self, room: float) -> int:
        """Return how many images fit into so many bytes, by the line through two counts, one of which does; 0: none."""
        few = max((images for images, size in self._known.items() if size <= room), default=1)
        if self.of(few) > room:
            return 0
        more = min((images for images, size in self._known.items() if images > few and size < self._most), default=0)
        found = self._on_line(few, more or min(few + 7, self._largest), room)
        if few < found <= self._largest and self.of(found) > room:  # the line is a little too flat near its start
            found = self._on_line(few, found, room)
        return found

    def _on_line(self, few: int, more: int, room: float) -> int:
        if more == few or self.of(more) == self._most:
            return few
        each = max(1.0, (self.of(more) - self.of(few)) / (more - few))
        return few + int((room - self.of(few)) / each)
