"""What wraps modules (DDP, FSDP2) relies on: one gradient a parameter and pass, and weights read within the call."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mst.config.schema import ModelConfig, RunPlan
from mst.model.pair import StudentInput, TeacherStudent, build_pair
from mst.runtime.seeding import generator

VIT, SWIN, SWIN_V2 = "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
FAMILIES = [VIT, SWIN, SWIN_V2, "vit_small_patch16_dinov3"]


def build(name: str, *, drop_path: float = 0.0) -> TeacherStudent:
    small = {"embed_dim": 32, "num_heads": 2, "head_hidden": 24, "head_bottleneck": 8, "norm_last_layer": False}
    model = ModelConfig(backbone=name, depth=2, patch_size=16, drop_path=drop_path, **small)
    plan = RunPlan.model_construct(prototypes=20, global_size=(64, 64))
    pair = build_pair(model, plan, channels=3, restoration=True, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(pair.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(name, index)))
    return pair


def parts() -> dict[str, StudentInput]:
    images, small = (torch.randn(n, 3, s, s, generator=generator("images", s)) for n, s in ((3, 64), (5, 32)))
    mask = torch.rand(3, 16, generator=generator("mask")) < 0.4
    return {"global crop": StudentInput(images, mask, True), "local crops": StudentInput(small, None, False)}


def loss(pair: TeacherStudent, part: StudentInput) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        vectors, prototypes, reconstruction = pair([part])
    found = (vectors[0] @ prototypes.t()).sin().sum()
    return found if reconstruction is None else found + reconstruction.square().mean()


@pytest.mark.parametrize("drop_path", [0.0, 0.9])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_parameter_gets_its_gradient_once_a_part(name: str, autocast: bool, drop_path: float) -> None:
    pair = build(name, drop_path=drop_path)
    names = {n: p for n, p in pair.named_parameters() if p.requires_grad}
    fired: Counter[str] = Counter()
    for name_, parameter in names.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name_=name_: fired.update([name_]))
    for what, part in parts().items():
        fired.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = loss(pair, part)
        result.backward()
        assert set(fired.values()) == {1}
        left_out = names.keys() - fired.keys()
        if what == "global crop":
            assert not left_out
        else:  # local crops are neither masked nor restored
            assert left_out == {n for n in names if n.startswith("decoder.") or n.endswith("backbone.mask_token")}


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module.*returned a view")  # the head's vectors; nobody writes to them
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_gathered_weights_give_the_same_gradients(name: str, autocast: bool) -> None:
    plain = build(name, drop_path=0.3)
    sharded = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    for block in blocks(sharded.student.backbone.model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    for part in parts().values():
        found = []
        for pair in (plain, sharded):
            pair.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                result = loss(pair, part)
            result.backward()
            grads = {n: p.grad for n, p in pair.named_parameters() if p.grad is not None}
            found.append({n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()})
        torch.testing.assert_close(*({n: g for n, g in grads.items() if g.any()} for grads in found))


def blocks(model: nn.Module) -> list[nn.Module]:
    if hasattr(model, "layers"):
        return [block for stage in model.layers for block in stage.blocks]  # type: ignore[union-attr,operator]
    return list(model.blocks)  # type: ignore[arg-type]
