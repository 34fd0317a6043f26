"""`torch.compile` by block: equal blocks share their compiled graphs, everything between them stays as it is.

A block is compiled whole or not at all: what it draws is drawn before, and a graph break is an error. Where compiling
fails, the run goes on without it and says so. Blocks that also read their attention stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from mst.errors import RunFailure
from mst.model.backbone import Backbone
from mst.model.pair import TeacherStudent
from mst.model.recomputation import Recomputed
from mst.model.stochastic_depth import DropPath
from mst.runtime import logging

FEWEST_STEPS = 1000
"""Of a run that gains what compiling costs at its start."""
GRAPHS = 96
"""Most graphs of one kind of block: sizes of its input, student and teacher, shifted windows, dropped samples."""
_EAGER: ContextVar[bool] = ContextVar("eager", default=False)


def select_compile(asked: Literal["auto", "on", "off"], device: torch.device, *, steps: int) -> tuple[bool, str]:
    """Return whether the blocks are compiled in a run of so many steps, and one line saying why."""
    if asked != "auto":
        return asked == "on", f"{asked}: asked for"
    if device.type != "cuda":
        return False, "off: on a CPU the blocks' own computation keeps less for the backward pass"
    if find_spec("triton") is None:
        return False, "off: the package triton is not there, which torch.compile needs on CUDA"
    if steps < FEWEST_STEPS:
        return False, f"off: {steps} steps gain less than compiling costs"
    return True, "on: fewer passes over the memory of a CUDA device"


class Graphs:
    """The compiled forms of one kind of block.

    Attributes:
        failed: whether compiling has failed, so that blocks run as they are.
    """

    def __init__(self, forward: Callable[..., Any], *, backend: str, needed: bool) -> None:
        """Compile `forward`, a block's unbound method, when it is called; if it is `needed`, a failure ends the run."""
        self._forward = forward
        self._run = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False)
        self._needed = needed
        self.failed = False

    def __deepcopy__(self, memo: dict[int, object]) -> Graphs:
        """Return itself: copies of blocks share their graphs."""
        return self

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        """Return forward(block, *args).

        Raises:
            RunFailure: it cannot be compiled, and has to be.
        """
        try:
            return self._run(block, *args)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            inner = getattr(error, "inner_exception", error)
            reason = next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
            if self._needed:
                raise RunFailure(f"--runtime.compile on: torch.compile failed ({reason}): use auto or off") from error
            logging.warn(f"torch.compile failed ({reason}): going on without it (--runtime.compile off)")
            self.failed = True
            return self._forward(block, *args)


class Compiled(nn.Module):
    """What is put before a block's own class."""

    graphs: ClassVar[Graphs]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns, by a compiled graph where only its tokens are wanted."""
        reads = any(value is not None and value is not False for value in kwargs.values())
        if reads or _EAGER.get() or self.graphs.failed:
            return super().forward(*args, **kwargs)
        layers = [layer for layer in self.children() if isinstance(layer, DropPath)]
        for layer in layers:
            layer.draw_before(args[0])
        try:
            return self.graphs(self, *args)
        finally:
            for layer in layers:
                layer.before, layer.drawn = False, None


def compile_pair(pair: TeacherStudent, *, needed: bool) -> None:
    """Compile the blocks of student and teacher, and say so: the first steps take longer."""
    logging.info("compiling the networks' blocks: the first steps take some minutes, later ones less than without")
    compile_blocks(pair.student.backbone, pair.teacher.backbone, needed=needed)


def compile_blocks(*backbones: Backbone, needed: bool, backend: str = "inductor") -> None:
    """Let all blocks of some backbones run by compiled graphs, made when a block meets an input of a new size.

    Args:
        backbones: their weights and names stay.
        needed: whether a failure ends the run; else it goes on without.
        backend: of torch.compile.
    """
    import torch._dynamo

    # torch's tracer looks at this attribute itself, and then warns whoever uses it.
    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
    for limit in ("recompile_limit", "cache_size_limit"):  # its name before torch 2.7
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, GRAPHS)
            break
    kinds: dict[Any, tuple[type, type]] = {}
    for block in (block for backbone in backbones for block in backbone.blocks):
        recomputed = isinstance(block, Recomputed)
        own: Any = type(block).__bases__[1] if recomputed else type(block)
        if own not in kinds:
            graphs = Graphs(own.forward, backend=backend, needed=needed)
            compiled = type(own.__name__, (Compiled, own), {"graphs": graphs})
            kinds[own] = compiled, type(own.__name__, (Recomputed, compiled), {})
        block.lean = False  # the lean computation leaves dropped samples out, so sizes would change from step to step
        block.__class__ = kinds[own][recomputed]


@contextmanager
def eager() -> Iterator[None]:
    """Inside, in this thread, blocks run as they are: for inputs of many sizes, such as an evaluation's."""
    token = _EAGER.set(True)
    try:
        yield
    finally:
        _EAGER.reset(token)
