"""Who works on a batch with networks that are divided over processes: torch's FSDP2 around blocks, heads and decoder.

Each process holds a part of every parameter, of its gradient and of AdamW's averages, and of the teacher likewise, so
that the moving average needs no talk. A block is gathered when it is called. The student stays gathered through a
step's parts, and its gradients are added up, once, in the backward pass of the last. Within a host networks are
divided, between hosts of several devices they are repeated: gathering is quick inside only.

Source: Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020 (ZeRO). Gradients are added and not averaged, as in
`mst.parallel.data_parallel`, by sums only: gloo has no other reduction (pytorch #162338).
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from mst.errors import UsageError
from mst.model.pair import StudentInput, StudentOutput, TeacherStudent, own_part
from mst.parallel.data_parallel import OneEach
from mst.parallel.replicas import Replicas
from mst.parallel.world import World

SUMS = "set_force_sum_reduction_for_comms"
"""Method of torch's FSDP2, since 2.8, without which gloo would be asked for averages."""


class Sharded(OneEach):
    """One part of the pair in each process.

    torch.distributed.tensor takes a moment to import: who does not need this class should not import this module.

    Args:
        pair: the whole of it, the same in all processes; it is divided in place.
        world: these processes.
        dtype: compute type, in which networks are gathered.
    """

    def __init__(self, pair: TeacherStudent, world: World, dtype: torch.dtype) -> None:
        self._whole = copy.deepcopy(pair).cpu() if world.first else None
        device = pair.student.head.prototypes.device
        mesh = _mesh(world, device.type)
        self._repeats = world.size // mesh.size(-1)
        self.shards = _Shards(mesh, world)
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # nobody adds to what a network returns
        self._student = _divided(mesh, dtype, pair.student.backbone, pair.student.head, pair.decoder, kept=True)
        self._teacher = _divided(mesh, dtype, pair.teacher.backbone, pair.teacher.head, kept=False)
        super().__init__(pair, world)

    def __deepcopy__(self, memo: dict[int, object]) -> Replicas:
        raise UsageError("networks that are divided over processes cannot be copied: use --runtime.sharding ddp")

    @property
    def whole(self) -> TeacherStudent:
        """A pair of whole tensors as it was at the last `collect`; on the first process only."""
        assert self._whole is not None
        return self._whole

    def student(self, pair: TeacherStudent, inputs: Sequence[StudentInput], *, last: bool) -> StudentOutput:
        """Run the student on one part; after the backward pass of the step's last one it is divided again."""
        ends = last and self._last
        for module in self._student:
            module.set_requires_gradient_sync(ends, recurse=False)
            module.set_reshard_after_backward(ends, recurse=False)
            module.set_is_last_backward(ends)
        return Replicas.student(self, pair, inputs, last=last)

    def begin(self) -> None:
        """Begin a step."""
        for module in self._student:
            module.reshard()
        if self._whole is not None:
            self._whole.cpu()
        super().begin()

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the L2 norms of divided gradients [P], float32: squares of the parts are added over processes."""
        own = torch._foreach_norm([own_part(gradient) for gradient in gradients])
        squares = torch.stack([norm.double() for norm in own]).square()  # [P]
        self._world.add(squares)
        return (squares / self._repeats).sqrt().float()

    def collect(self) -> None:
        """Bring the networks to the first process, one tensor at a time; called in all of them."""
        values = self.pairs[0].state_dict()
        targets = {} if self._whole is None else self._whole.state_dict()
        for name, value in values.items():
            found = full(value)
            if name in targets:
                targets[name].copy_(found)
        if self._whole is not None:
            self._whole.to(self.pairs[0].student.head.prototypes.device)

    def divided(self, value: Tensor, like: Tensor) -> Tensor:
        """Return the part of a whole tensor that this process has of one like it."""
        if not isinstance(like, DTensor):
            return value
        own, mesh = like.to_local(), like.device_mesh
        parts = value.chunk(mesh.size(-1))
        place = mesh.get_local_rank(mesh.ndim - 1)
        part = parts[place] if place < len(parts) else value[:0]
        part = part.to(own.device, own.dtype, copy=True)
        return DTensor.from_local(part, mesh, like.placements, shape=like.shape, stride=like.stride())


class _Shards:
    """Which process writes which parts (`mst.engine.task.Shards`): those of the first host, where there are several.

    What they tell each other of it goes over a group of its own, beside the steps.
    """

    def __init__(self, mesh: DeviceMesh, world: World) -> None:
        repeat = mesh.get_local_rank(0) if mesh.ndim > 1 else 0
        self.place = mesh.get_local_rank(mesh.ndim - 1) if repeat == 0 else None
        self._size = world.size
        self._group: Any = dist.new_group(backend="gloo")

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        found: list[Any] = [None] * self._size
        dist.all_gather_object(found, value, group=self._group)
        return found


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be divided; all processes ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _mesh(world: World, device: str) -> DeviceMesh:
    """Return the mesh: all processes in one row, or a row for each of several hosts."""
    hosts, rest = divmod(world.size, world.local_size)
    if hosts > 1 and world.local_size > 1 and not rest:
        return init_device_mesh(device, (hosts, world.local_size), mesh_dim_names=("repeat", "divide"))
    return init_device_mesh(device, (world.size,))


def _divided(mesh: DeviceMesh, dtype: torch.dtype, *modules: nn.Module | None, kept: bool) -> list[Any]:
    """Divide modules over a mesh, blocks of backbones by themselves; return what was divided, blocks first.

    Args:
        mesh: of the processes.
        dtype: in which they are gathered.
        modules: each is called by itself.
        kept: whether they stay gathered after a forward pass.

    Raises:
        UsageError: a version of torch that cannot.
    """
    fsdp: Any = importlib.import_module("torch.distributed.fsdp")
    if not hasattr(getattr(fsdp, "FSDPModule", None), SUMS):
        raise UsageError(f"--runtime.sharding fsdp2 needs torch 2.8 or newer, this is {torch.__version__}")
    narrow = dtype if dtype != torch.float32 else None
    policy = fsdp.MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    found: list[Any] = []
    for module in filter(None, modules):
        for part in (*getattr(module, "blocks", ()), module):
            fsdp.fully_shard(part, mesh=mesh, reshard_after_forward=not kept, mp_policy=policy)
            found.append(part)
    for part in found:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    return found
