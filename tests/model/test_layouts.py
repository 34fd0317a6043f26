"""Weights as other projects' scripts write them are found, whatever lies around them, and give the same features."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.layouts import (
    WRAPPED,
    hf_dinov2,
    hf_dinov3,
    hf_swin,
    hf_swin_v2,
    hf_vit,
    meta_dinov2,
    meta_dinov3,
    microsoft_swin,
    mmpretrain_swin,
    mmpretrain_vit,
    renamed,
    under,
)
from mst.config.schema import ModelConfig
from mst.errors import CheckpointError
from mst.model.backbone import Backbone
from mst.model.build import backbone_spec, build_backbone
from mst.model.start import start_from

VIT = "vit_tiny_patch16_224"
DINO_2, DINO_2_REGISTERS, DINO_3 = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
)
DINO_3_BIAS = "vit_small_patch16_dinov3_qkvb"
SWIN, SWIN_2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
CLIP = "vit_base_patch16_clip_224"


def tiny(name: str, seed: int) -> Backbone:
    """A small network whose every tensor, biases and scales too, has its own values."""
    swin = {"embed_dim": 8, "num_heads": 1, "depth": 2}
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = ModelConfig(backbone=name, **(swin if name.startswith("swin") else vit))
    size = (64, 64) if name.startswith("swin") else (32, 32)
    backbone = build_backbone(backbone_spec(config, image_size=size, channels=3), seed=seed).eval()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return backbone


def assert_same(source: Backbone, target: Backbone, **tolerance: float) -> None:
    for name, value in source.timm_state_dict().items():
        torch.testing.assert_close(target.timm_state_dict()[name], value, msg=name, **tolerance)
    images = torch.randn(2, 3, *source.spec.image_size)
    torch.testing.assert_close(target(images), source(images), **tolerance)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("project", WRAPPED)
def test_wrappers_and_prefixes(project: str, legacy: bool, tmp_path: Path) -> None:
    source, target = tiny(VIT, 1), tiny(VIT, 2)
    content = WRAPPED[project](dict(source.timm_state_dict()))
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    start = start_from(target, str(tmp_path / "w.pth"))
    assert start.matched == len(source.timm_state_dict())
    loose = {"rtol": 2e-2, "atol": 2e-2} if "half" in project or "bfloat16" in project else {"rtol": 0.0, "atol": 1e-6}
    assert_same(source, target, **loose)
    assert "\n" not in str(start)


NAMED: list[tuple[str, Callable[[Backbone], Any]]] = [
    (VIT, hf_vit),
    (VIT, lambda backbone: under("vit.", hf_vit(backbone)) | {"classifier.weight": torch.ones(5, 32)}),
    (VIT, lambda backbone: {"state_dict": under("model.vit.", hf_vit(backbone))}),
    ("deit_tiny_patch16_224", hf_vit),
    (DINO_2, hf_dinov2),
    (DINO_2, meta_dinov2),
    (DINO_2, lambda backbone: {"teacher": under("backbone.", meta_dinov2(backbone))}),
    (DINO_2_REGISTERS, meta_dinov2),
    (DINO_3, hf_dinov3),
    (DINO_3, meta_dinov3),
    (DINO_3, lambda backbone: {"teacher": under("module.backbone.", meta_dinov3(backbone))}),
    (SWIN, microsoft_swin),
    (SWIN, lambda backbone: {"model": microsoft_swin(backbone), "optimizer": {}, "max_accuracy": 81.2}),
    (SWIN, lambda backbone: {"model": under("encoder.", microsoft_swin(backbone))}),
    (SWIN, hf_swin),
    (SWIN, lambda backbone: under("swin.", hf_swin(backbone))),
    (SWIN_2, microsoft_swin),
    (SWIN_2, hf_swin_v2),
    (VIT, lambda backbone: {"state_dict": under("backbone.", mmpretrain_vit(backbone)), "meta": {"epoch": 3}}),
    (SWIN, lambda backbone: {"state_dict": under("backbone.", mmpretrain_swin(backbone))}),
]


@pytest.mark.parametrize(("name", "layout"), NAMED)
def test_names_of_other_projects(name: str, layout: Callable[[Backbone], Any], tmp_path: Path) -> None:
    source, target = tiny(name, 1), tiny(name, 2)
    torch.save(layout(source), tmp_path / "w.pth")
    start = start_from(target, str(tmp_path / "w.pth"))
    assert start.matched == len(source.timm_state_dict())
    assert_same(source, target, rtol=0.0, atol=1e-6)


def test_biases_of_dinov3_go_where_the_network_has_them(tmp_path: Path) -> None:
    source, target = tiny(DINO_3_BIAS, 1), tiny(DINO_3_BIAS, 2)
    weights = dict(source.timm_state_dict())
    for name in [name for name in weights if name.endswith("q_bias")]:
        query, value = weights.pop(name), weights.pop(name.replace("q_bias", "v_bias"))
        weights[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.full_like(query, 9.0), value])
    torch.save(
        {**renamed(weights, (r"gamma_", "ls"), (r"ls(\d)", r"ls\1.gamma"), (r"reg_token", "storage_tokens"))},
        tmp_path / "w.pth",
    )
    start_from(target, str(tmp_path / "w.pth"))
    assert_same(source, target, rtol=0.0, atol=1e-6)
    with pytest.raises(
        CheckpointError, match=r"4 tensors have no place in vit_small_patch16_dinov3 \(blocks\.0\.attn\.q_bias"
    ):
        start_from(tiny(DINO_3, 2), str(tmp_path / "w.pth"))


def test_names_that_timm_converts(tmp_path: Path) -> None:
    source, target = tiny(CLIP, 1), tiny(CLIP, 2)
    weights = renamed(
        source.timm_state_dict(),
        (r"^patch_embed\.proj", "conv1"),
        (r"^pos_embed", "positional_embedding"),
        (r"^norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"norm(\d)", r"ln_\1"),
        (r"attn\.proj", "attn.out_proj"),
        (r"qkv\.", "in_proj_"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"^blocks", "transformer.resblocks"),
    )
    weights["class_embedding"] = weights.pop("cls_token")[0, 0]
    weights["positional_embedding"] = weights["positional_embedding"][0]
    save_file({f"visual.{name}": value.contiguous() for name, value in weights.items()}, tmp_path / "w.safetensors")
    start_from(target, str(tmp_path / "w.safetensors"))
    assert_same(source, target, rtol=0.0, atol=1e-6)


def test_a_whole_pickled_network_is_read_without_its_code(tmp_path: Path) -> None:
    source, target = tiny(VIT, 1), tiny(VIT, 2)
    torch.save({"net": torch.nn.Sequential(source.model), "epoch": 1}, tmp_path / "w.pth")
    assert str(start_from(target, str(tmp_path / "w.pth"))).startswith("start from net (prefix 0.) of ")
    assert_same(source, target, rtol=0.0, atol=0.0)


def test_shards_of_hugging_face(tmp_path: Path) -> None:
    source, target = tiny(VIT, 1), tiny(VIT, 2)
    weights = list(under("vit.", hf_vit(source)).items())
    names = {}
    for number, part in enumerate((weights[:9], weights[9:])):
        save_file({name: value.contiguous() for name, value in part}, tmp_path / f"model-{number}.safetensors")
        names |= {name: f"model-{number}.safetensors" for name, _ in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (tmp_path / "config.json").write_text("{}")
    for place in (tmp_path, index):
        start_from(target, str(place))
        assert_same(source, target, rtol=0.0, atol=0.0)
    index.write_text('{"weight_map": {"a": "../model-0.safetensors"}}')
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        start_from(target, str(index))


def test_the_student_is_taken_where_there_is_no_teacher(tmp_path: Path) -> None:
    source, target = tiny(VIT, 1), tiny(VIT, 2)
    torch.save({"student": under("module.backbone.", source.timm_state_dict()), "teacher": None}, tmp_path / "w.pth")
    assert "start from student (prefix module.backbone.)" in str(start_from(target, str(tmp_path / "w.pth")))
    assert_same(source, target, rtol=0.0, atol=0.0)


def google_vit(backbone: Backbone) -> dict[str, Any]:
    """Arrays as JAX has them: kernels transposed, one array for each of query, key and value of all heads."""
    weights = {name: value.numpy() for name, value in backbone.timm_state_dict().items()}
    width, heads = backbone.embed_dim, backbone.model.blocks[0].attn.num_heads
    arrays = {
        "embedding/kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": weights["patch_embed.proj.bias"],
        "cls": weights["cls_token"],
        "Transformer/posembed_input/pos_embedding": weights["pos_embed"],
        "Transformer/encoder_norm/scale": weights["norm.weight"],
        "Transformer/encoder_norm/bias": weights["norm.bias"],
    }
    for number in range(len(backbone.model.blocks)):
        own, there = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        attention = f"{there}MultiHeadDotProductAttention_1/"
        for position, word in enumerate(("query", "key", "value")):
            rows = slice(position * width, (position + 1) * width)
            kernel, bias = weights[f"{own}attn.qkv.weight"][rows], weights[f"{own}attn.qkv.bias"][rows]
            arrays[f"{attention}{word}/kernel"] = kernel.T.reshape(width, heads, -1)
            arrays[f"{attention}{word}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = weights[f"{own}attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = weights[f"{own}attn.proj.bias"]
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{there}{theirs}/scale"] = weights[f"{own}{ours}.weight"]
            arrays[f"{there}{theirs}/bias"] = weights[f"{own}{ours}.bias"]
        for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{there}MlpBlock_3/{theirs}/kernel"] = weights[f"{own}mlp.{ours}.weight"].T
            arrays[f"{there}MlpBlock_3/{theirs}/bias"] = weights[f"{own}mlp.{ours}.bias"]
    return arrays


def test_arrays_of_google(tmp_path: Path) -> None:
    source, target = tiny(VIT, 1), tiny(VIT, 2)
    arrays, path = google_vit(source), tmp_path / "w.npz"
    np.savez(path, **arrays)
    start_from(target, str(path))
    assert_same(source, target, rtol=0.0, atol=1e-6)
    fewer = {name: value for name, value in arrays.items() if "encoderblock_1" not in name}
    for change, said in (
        (fewer, "holds 1 blocks: name the network"),
        ({**arrays, "cls": arrays["cls"] * np.nan}, "cls_token holds NaN"),
        ({"a": np.ones(3)}, "does not fit vit_tiny_patch16_224"),
        ({**arrays, "embedding/kernel": np.array([{"a": 1}], dtype=object)}, "does not fit vit_tiny_patch16_224"),
        ({**arrays, "cls": np.ones((1, 1, 7), np.float32)}, "does not fit vit_tiny_patch16_224"),
    ):
        np.savez(path, **change)
        with pytest.raises(CheckpointError, match=said) as caught:
            start_from(tiny(VIT, 2), str(path))
        assert "\n" not in str(caught.value)
    gc.collect()  # a file that was left open warns here, and not in another test
    path.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"it is damaged, or no \.npz file"):
        start_from(target, str(path))
