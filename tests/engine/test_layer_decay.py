"""Which layer a parameter lies in, by family, and that every one is in exactly one group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mst.engine.layer_decay import build_optimizer, layer_numbers, parameter_groups
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone

VIT = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
GAP = BackboneSpec("vit_medium_patch16_gap_240", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
EVA = BackboneSpec("vit_small_patch16_rope_mixed_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
SWIN = BackboneSpec("swin_tiny_patch4_window7_224", (64, 64), 3, 32, embed_dim=16, depth=3, num_heads=1)
SWIN2 = BackboneSpec("swinv2_tiny_window8_256", (64, 64), 3, 32, embed_dim=16, depth=2, num_heads=1)

LAYERS = {
    VIT: ({"pos_embed": 0, "cls_token": 0, "patch_embed.proj.weight": 0, "blocks.1.mlp.fc1.weight": 2}, 3),
    EVA: (
        {"patch_embed.proj.weight": 0, "blocks.0.attn.qkv.weight": 1, "blocks.1.norm1.weight": 2, "norm.weight": 2},
        3,
    ),
    SWIN: ({"layers.1.downsample.reduction.weight": 3, "layers.1.blocks.0.norm1.weight": 3, "norm.bias": 9}, 10),
    SWIN2: ({"patch_embed.proj.weight": 0, "layers.3.blocks.1.mlp.fc2.weight": 8}, 9),
}


class Inside(nn.Module):
    """A network around a backbone."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"body": build_backbone(spec)})
        self.head = nn.Linear(4, 4)


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.name)
def test_layers_of_each_family(spec: BackboneSpec) -> None:
    expected, above = LAYERS[spec]
    numbers, top = layer_numbers(build_backbone(spec))
    assert top == above
    assert {name: numbers[f"model.{name}"] for name in expected} == expected
    inside, same = layer_numbers(Inside(spec))
    assert same == top
    assert inside == {f"stem.body.{name}": layer for name, layer in numbers.items()}


@pytest.mark.parametrize("spec", [*LAYERS, GAP], ids=lambda spec: spec.name)
def test_every_parameter_is_in_one_group(spec: BackboneSpec) -> None:
    model = Inside(spec)
    model.stem.body.mask_token.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    scale_of = {id(p): group["scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    top = layer_numbers(model)[1]
    assert {scale_of[id(p)] for p in model.head.parameters()} == {1.0}
    assert scale_of[id(model.stem.body.model.patch_embed.proj.weight)] == 0.5**top
    exempt = ("bias", "pos_embed", "token", "bias_table", "logit_scale")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim == 1 or name.endswith(exempt) or "cpb_mlp" in name or "rope" in name
            assert decay_of[id(parameter)] == (0.0 if free else 0.05), name


def test_a_network_without_a_backbone_has_one_rate() -> None:
    groups = parameter_groups(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), weight_decay=0.1, layer_decay=0.5)
    assert [(group["weight_decay"], group["scale"], len(group["params"])) for group in groups] == [
        (0.0, 1.0, 3),
        (0.1, 1.0, 1),
    ]
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        assert type(build_optimizer([dict(group) for group in groups], name)) is kind  # type: ignore[arg-type]
