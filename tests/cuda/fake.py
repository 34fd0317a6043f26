"""A CUDA device that is not there: tensors with shapes and devices but no values, and a count of what a host waits for.

torch's fake tensors say `cuda` on a machine without a card and refuse operands on two devices, forward. The backward
pass of torch's engine runs in threads of real devices, so here the graph's own nodes are called one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CARD = torch.device("cuda:0")
aten = torch.ops.aten
SIZED = (aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.bincount.default)
READ = {aten._local_scalar_dense.default: "a value", **dict.fromkeys(SIZED, "a size")}
"""What the host reads of a tensor: the others' results have as many rows as the values say."""


class HostWaits(TorchDispatchMode):
    """Counts by name the operations for which the host waits until the device has done all its work.

    - reading a value: `.item()`, `.tolist()`, `if tensor:`;
    - a copy to the host, or one to the device that is not `non_blocking`;
    - an index on the host into a tensor on the device; a mask as an index; other sizes that depend on values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    _should_skip_dynamo = classmethod(lambda cls: False)  # as `mst.engine.footprint` has it: quicker

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (reason := waits(func, args, kwargs)) is not None:
            self.found[reason] += 1
        return func(*args, **kwargs)

    def tolist(self, tensor: Tensor) -> Any:
        """Answer `Tensor.tolist`, for which the host waits once, with halves or zeros."""
        if tensor.device.type == "cuda":
            self.found["values"] += 1
        value: Any = 0.5 if tensor.is_floating_point() else 0
        for size in reversed(tensor.shape):
            value = [value] * size
        return value


def waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Say why the host waits for an operation; None = it does not."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    if func in READ and any(tensor.device.type == "cuda" for tensor in tensors):
        return READ[func]
    if func is aten._to_copy.default:
        target = kwargs.get("device") or tensors[0].device
        return _copy(tensors[0].device.type, torch.device(target).type, kwargs.get("non_blocking"))
    if func is aten.copy_.default:
        blocking = (args[2:] or (kwargs.get("non_blocking"),))[0]
        return _copy(args[1].device.type, args[0].device.type, blocking)
    if func in {aten.index.Tensor, aten.index_put.default, aten.index_put_.default} and args[0].device.type == "cuda":
        return _index([index for index in args[1] if index is not None])
    return None


def _index(given: list[Tensor]) -> str | None:
    if any(index.device.type == "cpu" for index in given):
        return "an index from the host"
    return "a mask as an index" if any(index.dtype == torch.bool for index in given) else None


def _copy(source: str, target: str, non_blocking: Any) -> str | None:
    if (source, target) == ("cuda", "cpu"):
        return "a copy to the host"
    if (source, target) == ("cpu", "cuda") and not non_blocking:
        return "a copy to the device"
    return None


class Answers(TorchDispatchMode):
    """Answers where the program asks for values that are not there: one half, and all rows of a count."""

    _should_skip_dynamo = classmethod(lambda cls: False)  # as `mst.engine.footprint` has it: quicker

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return 0.5
        if func is aten.nonzero.default:
            return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.int64, device=args[0].device)
        if func is aten.index.Tensor and args[1][0].dtype == torch.bool:  # as if the mask were true everywhere
            return args[0].flatten(0, args[1][0].ndim - 1).clone()
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda() -> Iterator[HostWaits]:
    """Inside, tensors may be made on `CARD`, run forward and backward, and be on one device only; counts the waits."""
    with ExitStack() as stack:
        for name, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            ("torch.Tensor.pin_memory", lambda tensor: tensor),
            ("torch.cuda.get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8)),
            ("torch.cuda.set_rng_state", lambda *_: None),
            ("torch.cuda.device", lambda *_: nullcontext()),
            ("torch.cuda.manual_seed", lambda *_: None),
            ("torch.Tensor.backward", backward),
        ):
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Answers())
        waits = stack.enter_context(HostWaits())

        def tolist(tensor: Tensor) -> Any:
            return waits.tolist(tensor)

        stack.enter_context(mock.patch.object(FakeTensor, "tolist", tolist))
        yield waits


def backward(loss: Tensor, gradient: Tensor | None = None) -> None:
    """Add the gradients of a loss to its leaves, as `Tensor.backward`, without torch's engine."""
    assert loss.grad_fn is not None
    waiting = _uses(loss.grad_fn)
    gathered: dict[Any, dict[int, Tensor]] = {
        loss.grad_fn: {0: torch.ones_like(loss) if gradient is None else gradient}
    }
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            edges = [(after, place) for after, place in node.next_functions if after is not None]
            for (after, place), value in zip(edges, _call(node, gathered.pop(node, {})), strict=True):
                if value is not None:
                    held, about = gathered.setdefault(after, {}), after._input_metadata[place]
                    assert value.device == about.device, f"{node.name()} gives {value.device} to {about.device}"
                    fitting = value.sum_to_size(about.shape).to(about.dtype)
                    held[place] = held[place] + fitting if place in held else fitting
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)


def _uses(root: Any) -> Counter[Any]:
    """Return how many gradients each node of a graph waits for."""
    uses: Counter[Any] = Counter()
    seen, todo = {root}, [root]
    while todo:
        for after, _ in todo.pop().next_functions:
            if after is not None:
                uses[after] += 1
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
    return uses


def _call(node: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Run one node and return gradients for its edges that lead on.

    It gets None where nobody gave a gradient.
    """
    leads = [after is not None for after, _ in node.next_functions]
    if not gradients:
        return (None,) * sum(leads)
    given = [gradients.get(place) for place in range(len(node._input_metadata))]
    if type(node).__name__ == "AccumulateGrad":
        leaf, value = node.variable, given[0]
        leaf.grad = value.clone() if leaf.grad is None else leaf.grad + value
        return ()
    if not callable(node):  # an autograd.Function, which returns something for what is no tensor, too
        found = node.apply(*given)
        leads = node.needs_input_grad
    else:
        found = node(*given)
    found = found if isinstance(found, tuple) else (found,)
    return tuple(value for value, lead in zip(found, leads, strict=True) if lead)
