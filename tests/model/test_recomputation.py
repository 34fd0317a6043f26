"""Blocks that are computed again give the gradients of those that keep their insides, and keep far less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from model.test_backbones import CASES, Case
from mst.model.backbone import Backbone
from mst.model.recomputation import recompute_blocks
from mst.model.stochastic_depth import Draw, branch_draws
from mst.objective.draws import StepDraws

KINDS = ("deit", "deit3", "dinov2-swiglu", "eva02", "rope-mixed", "swin", "swinv2")


def uniform(rows: int, count: int) -> Tensor:
    return StepDraws(0, 3, range(4), 4).uniform("depth", rows, count)


def gradients(backbone: Backbone, images: Tensor, draw: Draw | None) -> list[Tensor]:
    backbone.train().zero_grad()
    torch.manual_seed(5)
    with branch_draws(draw):
        tokens = backbone.tokens(images, importance=False)
    torch.rand(3)  # something else draws before the backward pass
    (tokens.cls.square().sum() + tokens.patches.square().sum()).backward()
    return [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("draw", [uniform, None], ids=["step's draws", "global draws"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_bits(kind: str, draw: Draw | None) -> None:
    case: Case = CASES[kind]
    kept = case.build(drop_path=0.5)
    again = copy.deepcopy(kept)
    recompute_blocks(again)
    images = torch.randn(4, case.channels, *case.size)
    expected, found = gradients(kept, images, draw), gradients(again, images, draw)
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert [*kept.state_dict()] == [*again.state_dict()]


def test_another_crop_in_between_changes_nothing() -> None:
    """Crops of 1,024 tokens are read by one kernel and longer ones by another; the block remembers which it was."""
    backbone = CASES["deit"].build()
    recompute_blocks(backbone)
    small = backbone.tokens(torch.randn(1, 3, 32, 32), importance=False).cls.sum()
    for block in backbone.blocks:
        block.attn.fused_attn = True
    small.backward()
    assert not any(block.attn.fused_attn for block in backbone.blocks)


def test_only_the_inputs_of_blocks_are_kept() -> None:
    kept = Case("deit_tiny_patch16_224", (96, 96), (32, 32), depth=8).build()
    again = copy.deepcopy(kept)
    recompute_blocks(again)
    sizes = []
    for backbone in (kept, again):
        held: dict[int, int] = {}

        def note(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            backbone.tokens(torch.randn(8, 3, 96, 96), importance=False)
        weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
        sizes.append(sum(size for place, size in held.items() if place not in weights))
    assert sizes[1] < 0.25 * sizes[0]
