"""Watching a step without changing it: which tensor, in the order of computation, is the first that is not finite.

Hooks on modules see outputs and hooks on parameters see gradients before they are clipped; both only read.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from mst.engine.task import StepReport

BLOW_UP = 10.0
"""From one step to the next, weights that grow by this factor have blown up."""
ROW_AN_IMAGE = {"backbone", "head", "decoder"}
"""Modules, by the last part of their name, whose output has a row for each image or for each crop of it."""


@dataclass(frozen=True)
class TensorFacts:
    """A tensor that is not finite.

    Attributes:
        name: path of the module or parameter, and what of it: "output of student.head".
        shape: of the tensor.
        bad: values that are NaN or infinite.
        low, high: extremes of the finite values; None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    bad: int
    low: float | None
    high: float | None

    def __str__(self) -> str:
        count = "x".join(map(str, self.shape)) or "scalar"
        rest = "none is finite" if self.low is None else f"the others from {self.low:.4g} to {self.high:.4g}"
        return f"{self.name} [{count}]: {self.bad} values are not finite, {rest}"


@dataclass(frozen=True)
class Inspection:
    """What one step was.

    Attributes:
        report: its losses and gradient norm.
        found: what is not finite, in the order of computation.
        images: positions in the batch of the images whose rows of the networks' outputs are not finite.
        gradient, weight, weight_after: name and size of the largest value, before clipping and around the step.
    """

    report: StepReport
    found: Sequence[TensorFacts]
    images: Sequence[int]
    gradient: tuple[str, float] | None
    weight: tuple[str, float]
    weight_after: tuple[str, float]

    @property
    def indices(self) -> list[int]:
        """The batch's images, as positions in the data set."""
        indices: list[int] = self.report.indices.tolist()
        return indices


def facts(name: str, value: Tensor) -> TensorFacts | None:
    """Return what is wrong with a tensor; None if it is finite or holds no floating-point numbers."""
    value = value.detach()
    if not value.is_floating_point() or not value.numel():
        return None
    finite = value.isfinite()
    if bool(finite.all()):
        return None
    sound = value[finite].float()
    low, high = (sound.min().item(), sound.max().item()) if len(sound) else (None, None)
    return TensorFacts(name, tuple(value.shape), value.numel() - len(sound), low, high)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a module's output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


class Watch:
    """Notes each output and each gradient that is not finite, in the order in which they are computed.

    Attributes:
        found: what is not finite; work on replicas is noted in the order in which it ends.
        largest: largest absolute value of each parameter's gradient before clipping, by name.
    """

    def __init__(self) -> None:
        self.found: list[TensorFacts] = []
        self.largest: dict[str, float] = {}
        self._lock = threading.Lock()
        self._handles: list[RemovableHandle] = []
        self._seen: set[int] = set()

    def network(self, root: nn.Module) -> None:
        """Watch every module and every parameter that learns, once where replicas share them."""
        for name, module in root.named_modules():
            if name and id(module) not in self._seen:
                self._seen.add(id(module))
                self._handles.append(module.register_forward_hook(self._output(name)))
        for name, parameter in root.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._seen:
                self._seen.add(id(parameter))
                handle: RemovableHandle = parameter.register_hook(self._gradient(name))  # type: ignore[no-untyped-call]
                self._handles.append(handle)

    def close(self) -> None:
        """Take all hooks away."""
        while self._handles:
            self._handles.pop().remove()

    def note(self, name: str, value: Tensor) -> None:
        """Note a tensor, if it is not finite."""
        if (wrong := facts(name, value)) is not None:
            with self._lock:
                self.found.append(wrong)

    def _output(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for value in tensors(output):
                self.note(f"output of {name}", value)

        return look

    def _gradient(self, name: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            self.note(f"gradient of {name}", gradient)
            size = gradient.detach().abs().max().item() if gradient.numel() else 0.0
            with self._lock:
                self.largest[name] = max(size, self.largest.get(name, 0.0), key=badness)

        return look


class Rows:
    """Finds the images whose rows of the networks' outputs are not finite.

    Attributes:
        bad: their positions in the batch.
    """

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self._first = self._next = 0
        self._here = threading.local()
        self._handles: list[RemovableHandle] = []

    def network(self, root: nn.Module) -> None:
        """Watch a network or a replica of it; a part with BatchNorm tells nothing, as one image spoils the others."""
        for name, module in root.named_modules():
            if name.rpartition(".")[2] in ROW_AN_IMAGE and not any(isinstance(m, _BatchNorm) for m in module.modules()):
                self._handles.append(module.register_forward_hook(self._look))

    def begin_microbatch(self, images: int) -> None:
        """Take note of the microbatch that comes next; this thread works on all of it, unless `begin_share` says so."""
        self._first, self._next = self._next, self._next + images
        self.begin_share(slice(0, images))

    def begin_share(self, share: slice) -> None:
        """Take note of the images of a microbatch that this thread works on."""
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


def badness(value: float) -> tuple[bool, float]:
    """Order numbers by size, NaN last."""
    return (math.isnan(value), value)


def largest_value(named: Iterable[tuple[str, Tensor]]) -> tuple[str, float]:
    """Return the name and size of the largest absolute value; NaN is larger than all."""
    names, values = zip(*((name, value.detach()) for name, value in named if value.numel()), strict=True)
    sizes = torch.stack([norm.float() for norm in torch._foreach_norm(list(values), torch.inf)]).tolist()
    return max(zip(names, sizes, strict=True), key=lambda item: badness(item[1]))
