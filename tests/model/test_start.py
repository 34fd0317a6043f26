"""Starting from trained weights: what is taken over, what is adapted, what is refused."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mst.config.schema import ModelConfig
from mst.errors import CheckpointError
from mst.model.backbone import Backbone
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.model.start import spread_channels, start_from


def tiny(
    size: tuple[int, int] = (32, 32), channels: int = 3, seed: int = 0, name: str = "vit_tiny_patch16_224", **sizes: int
) -> Backbone:
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    swin = {"embed_dim": 8, "num_heads": 1, "depth": 2}
    config = ModelConfig(backbone=name, **{**(swin if name.startswith("swin") else vit), **sizes})
    return build_backbone(backbone_spec(config, image_size=size, channels=channels), seed=seed).eval()


def saved(folder: Path, backbone: Backbone) -> str:
    path = folder / "backbone.safetensors"
    save_backbone(path, backbone, {})
    return str(path)


def test_a_run_gives_the_same_features(tmp_path: Path) -> None:
    source, target = tiny(seed=1), tiny(seed=2)
    mask_token = target.mask_token.clone()
    saved(tmp_path, source)
    start = start_from(target, str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target(images), source(images))
    assert torch.equal(target.mask_token, mask_token)
    assert str(start).endswith(f"{tmp_path}: {start.matched} of {start.matched} tensors")


def test_position_embedding_is_resampled_from_the_files_own_grid(tmp_path: Path) -> None:
    source, target = tiny((16, 64), seed=1), tiny((32, 48), seed=2)
    start = start_from(target, saved(tmp_path, source))
    assert start.adapted == ("pos_embed resampled 2x8 -> 4x6",)
    images = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(target(images), source(images))  # the source resamples it for these images, too


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_for_another_size(name: str, tmp_path: Path) -> None:
    source, target = tiny((64, 64), seed=1, name=name), tiny((96, 96), seed=2, name=name)
    start_from(target, saved(tmp_path, source))
    assert target(torch.randn(1, 3, 96, 96)).isfinite().all()
    torch.testing.assert_close(target.model.norm.weight, source.model.norm.weight)
    weights = (backbone.model.layers[1].blocks[0].mlp.fc1.weight for backbone in (target, source))
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(("old", "new"), [(3, 6), (3, 4), (3, 1), (6, 3), (1, 5), (3, 64), (7, 2)])
def test_channels(old: int, new: int, tmp_path: Path) -> None:
    source, target = tiny(channels=old, seed=1), tiny(channels=new, seed=2)
    start = start_from(target, saved(tmp_path, source))
    assert start.adapted == (f"patch_embed.proj.weight spread from {old} to {new} channels",)
    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(target(grey.expand(-1, new, -1, -1)), source(grey.expand(-1, old, -1, -1)))


def test_more_channels_keep_the_filters_in_turn() -> None:
    weight = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(spread_channels(weight, 6)[:, 3:], weight / 2)
    torch.testing.assert_close(
        spread_channels(weight, 4)[:, [0, 1, 2, 3]],
        weight[:, [0, 1, 2, 0]] / torch.tensor([2.0, 1.0, 1.0, 2.0]).view(1, 4, 1, 1),
    )


def test_another_projects_checkpoint(tmp_path: Path) -> None:
    source, target = tiny(seed=1), tiny(seed=2)
    weights: dict[str, Any] = {f"module.backbone.{name}": value for name, value in source.timm_state_dict().items()}
    weights["module.head.last_layer.weight"] = torch.zeros(2)
    torch.save({"epoch": 3, "teacher": weights}, tmp_path / "other.pth")
    start = start_from(target, str(tmp_path / "other.pth"))
    assert start.unexpected == ("head.last_layer.weight",)
    assert str(start) == (
        f"start from teacher (prefix module.backbone.) of {tmp_path}/other.pth: {start.matched} of {start.matched} "
        "tensors; not taken: head (1)"
    )
    torch.testing.assert_close(target(torch.ones(1, 3, 32, 32)), source(torch.ones(1, 3, 32, 32)))


def test_one_missing_tensor_is_named_and_refused(tmp_path: Path) -> None:
    weights = tiny(seed=1).timm_state_dict()
    save_file({name: value for name, value in weights.items() if name != "norm.bias"}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"has 29 of 30 tensors of vit_.*, 1 are missing \(norm\.bias\)"):
        start_from(tiny(), str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drop": "blocks.1"}, r"has 18 of 30 tensors .* 12 are missing \(blocks\.1\."),
        ({"drop": "patch_embed.proj.weight"}, "no first convolution of a ViT or Swin"),
        ({"embed_dim": 16}, "holds another network: "),
        ({"patch_size": 16}, "holds another network: "),
        ({"depth": 3}, r"holds a deeper network: 6 tensors have no place in vit_tiny_patch16_224 \(blocks\.2\."),
        ({"name": "swin_tiny_patch4_window7_224", "patch_size": 32}, "holds another network: "),
    ],
)
def test_other_networks_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    drop = change.pop("drop", None)
    weights = tiny(seed=1, **change).timm_state_dict()
    kept = {name: value for name, value in weights.items() if drop is None or not name.startswith(drop)}
    save_file(kept, tmp_path / "w.safetensors")
    target = tiny()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=said) as caught:
        start_from(target, str(tmp_path / "w.safetensors"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "nowhere does not exist"),
        ("timm:vit_tiny_patch61", "timm has no such model"),
        ("timm:resnet50", "timm:resnet50: backbone 'resnet50' is not a network of patch tokens"),
        ("timm:test_vit4", "timm has no trained weights"),
        ("junk.pth", r"cannot read weights from .*junk\.pth: it is damaged, or nothing that torch.save wrote"),
        ("empty.pth", r"cannot read weights from .*empty\.pth: it is damaged, or nothing that torch.save wrote"),
        ("cut.pth", r"cannot read weights from .*cut\.pth: it is damaged, or no file of torch\.save"),
        ("junk.safetensors", r"cannot read weights from .*junk\.safetensors: it is damaged"),
        ("code.pth", "holds no tensors by name"),
        ("plain.pkl", "nothing that torch.save wrote"),
        ("list.pth", "holds no tensors by name"),
        ("x" * 300, "cannot read weights from .*: File name too long"),
        ("folder", r"folder holds no backbone\.safetensors, model\.safetensors or "),
        ("fifo", "is no file: name a file of weights"),
    ],
)
def test_bad_sources(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"no weights")
    (tmp_path / "junk.safetensors").write_bytes(b"no weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"weight": np.zeros(3)}, protocol=4))
    torch.save({"hook": print}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "list.pth").read_bytes()[:500])
    with pytest.raises(CheckpointError, match=said) as caught:
        start_from(tiny(), source if ":" in source else str(tmp_path / source))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path)) + len(source)


def test_timm_weights_with_and_without_a_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    created = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=32, depth=2, num_heads=2)
    target = tiny((32, 48), patch_size=16)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: created)
    start = start_from(target, "timm:vit_tiny_patch16_224.augreg_in21k")
    assert start.adapted == ("pos_embed resampled 14x14 -> 2x3",)

    def offline(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise ConnectionError("name resolution failed\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"could not be fetched \(name resolution failed\): without a network"):
        start_from(target, "timm:vit_tiny_patch16_224.augreg_in21k")
    assert not caplog.records
    assert logging.getLogger("huggingface_hub").level != logging.CRITICAL


def test_of_networks_that_fit_alike_the_others_are_named(tmp_path: Path) -> None:
    one, other = (tiny(seed=seed).timm_state_dict() for seed in (1, 2))
    torch.save({"best": one, "last": other}, tmp_path / "two.pth")
    said = str(start_from(tiny(), str(tmp_path / "two.pth")))
    place = tmp_path / "two.pth"
    assert said == f"start from best of {place}: 30 of 30 tensors; fits as well and is not taken: last of two.pth"
    torch.save({"model": one, "averaged_model": other}, tmp_path / "averaged.pth")
    target = tiny()
    assert "fits as well" not in str(start_from(target, str(tmp_path / "averaged.pth")))
    assert torch.equal(target.timm_state_dict()["norm.bias"], other["norm.bias"])


def test_positions_that_the_network_does_not_have_are_refused(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    weights = tiny((64, 64), seed=1, name=name).timm_state_dict()
    torch.save({**weights, "absolute_pos_embed": torch.randn(1, 256, 8)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no place in swin_tiny.* \(absolute_pos_embed\)"):
        start_from(tiny((64, 64), name=name), str(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", ["ViT", "Swin"])
def test_networks_of_transformers_in_memory(kind: str, tmp_path: Path) -> None:
    """Their names there are others than those that `save_pretrained` writes."""
    transformers = pytest.importorskip("transformers")
    if kind == "ViT":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        network = transformers.ViTModel(
            transformers.ViTConfig(**sizes, image_size=32, patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False
        )
        target = tiny(seed=3)
    else:
        config = transformers.SwinConfig(image_size=64, embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
        network = transformers.SwinModel(config)
        target = tiny((64, 64), seed=3, name="swin_tiny_patch4_window7_224")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    start = start_from(target, str(tmp_path / "w.pth"))
    assert not start.unexpected
    if kind == "Swin":  # windows of 7 in maps of 16: transformers does not take them
        own = "encoder.layers.1.blocks.1.attention"
        three = torch.cat([network.state_dict()[f"{own}.{part}_proj.weight"] for part in "qkv"])
        assert torch.equal(target.timm_state_dict()["layers.1.blocks.1.attn.qkv.weight"], three)
        return
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = network.eval()(images).last_hidden_state[:, 0]
        torch.testing.assert_close(target(images), wanted, rtol=1e-4, atol=1e-5)
