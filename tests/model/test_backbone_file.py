from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mst.config.schema import ModelConfig
from mst.errors import CheckpointError
from mst.model import backbone_file
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.backbone_file import load_backbone, save_backbone
from mst.model.build import backbone_spec, build_backbone, timm_arguments
from mst.runtime.storage.files import aside_of

METADATA = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "recipe": "debug"}


@pytest.fixture
def backbone() -> Backbone:
    config = ModelConfig(backbone="deit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=1, num_heads=2)
    return build_backbone(backbone_spec(config, image_size=(16, 24), channels=3), seed=3).eval()


@pytest.fixture
def saved(backbone: Backbone, tmp_path: Path) -> Path:
    save_backbone(tmp_path / "backbone.safetensors", backbone, METADATA)
    return tmp_path / "backbone.safetensors"


def test_round_trip(backbone: Backbone, saved: Path) -> None:
    images = torch.randn(2, 3, 16, 24)
    for path in (saved, saved.parent, str(saved)):
        loaded = load_backbone(path)
        assert loaded.spec == backbone.spec
        assert loaded.metadata == METADATA
        assert not loaded.training
        assert torch.equal(loaded(images), backbone(images))


def test_weights_are_timms(backbone: Backbone, saved: Path) -> None:
    model = timm.create_model(backbone.spec.name, **timm_arguments(backbone.spec)).eval()
    model.load_state_dict(load_file(saved), strict=True)
    images = torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(model(images), backbone(images))


def test_nothing_else_is_left_in_the_folder(saved: Path, backbone: Backbone) -> None:
    for path in (saved, saved.with_suffix(".json")):  # as a kill leaves them
        aside = aside_of(path)
        aside.with_name(aside.name.replace(f"-{os.getpid()}-", "-999999999-")).write_bytes(b"half")
    save_backbone(saved, backbone, METADATA)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["backbone.json", "backbone.safetensors"]


def refuse(path: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        load_backbone(path)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path, saved: Path) -> None:
    refuse(tmp_path / "nothing.safetensors", "does not exist")
    saved.with_suffix(".json").unlink()
    refuse(saved, "backbone.json does not exist: .*; weights of another project: NAME=FILE")
    refuse(tmp_path / ("x" * 300), "cannot read .*: File name too long")


def test_truncated(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:1000])
    refuse(saved, "cannot read .*backbone.safetensors")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"format": 1, "spec": {}, "metadata": {}}'])
def test_damaged_description(saved: Path, text: str) -> None:
    saved.with_suffix(".json").write_text(text)
    refuse(saved, "cannot read|has format missing")


def test_unknown_format(saved: Path) -> None:
    values = json.loads(saved.with_suffix(".json").read_text())
    saved.with_suffix(".json").write_text(json.dumps({**values, "format": 9}))
    refuse(saved, "has format 9, this version reads 1")


def test_another_architecture(saved: Path) -> None:
    values = json.loads(saved.with_suffix(".json").read_text())
    values["spec"]["depth"] = 2
    saved.with_suffix(".json").write_text(json.dumps(values))
    refuse(saved, r"does not fit its description: of \d+ tensors, 12 missing \(first blocks.1")
    values["spec"].update(depth=1, embed_dim=48)
    saved.with_suffix(".json").write_text(json.dumps(values))
    refuse(saved, "of another shape")
    for wrong in ({"depth": -1}, {"channels": 0}, {"patch_size": 8.5}, {"name": 3}, {"image_size": [0, 32]}):
        saved.with_suffix(".json").write_text(json.dumps({**values, "spec": {**values["spec"], **wrong}}))
        refuse(saved, r"backbone\.json: not a backbone description: (depth|channels|patch_size|name|image_size) is ")


def test_one_tensor_too_many(saved: Path) -> None:
    save_file({**load_file(saved), "extra": torch.zeros(1)}, saved)
    refuse(saved, r"1 unknown \(first extra\)")


WRONG = [None, 0, -1, 10**30, 1.5, float("nan"), "x", "", [], {}, True, [0], [16], [16, None], [1e308, 1], "9" * 5000]


def test_wrong_values_of_every_key(saved: Path) -> None:
    """Zero, negative, huge, null and other kinds: one line each; None is allowed where the name's own value holds."""
    description = saved.with_suffix(".json")
    sound = json.loads(description.read_text())
    for place in [*((key,) for key in sound), *(("spec", key) for key in sound["spec"]), ("metadata", "std")]:
        for value in WRONG:
            changed = json.loads(json.dumps(sound))
            (changed if len(place) == 1 else changed[place[0]])[place[-1]] = value
            description.write_text(json.dumps(changed))
            if place == ("metadata",) and value == {}:
                continue
            with pytest.raises(CheckpointError) as caught:
                load_backbone(saved)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 400 + len(str(saved))


def test_a_small_file_never_makes_a_large_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = saved.with_suffix(".json")
    values = json.loads(description.read_text())
    values["spec"] |= {"embed_dim": 16384, "depth": 64, "num_heads": 16}
    description.write_text(json.dumps(values))
    places = []
    build = backbone_file.build_backbone

    def watched(spec: BackboneSpec) -> Backbone:
        places.append(torch.get_default_device().type)
        return build(spec)

    monkeypatch.setattr(backbone_file, "build_backbone", watched)
    refuse(saved, "does not fit its description: of .* missing .*, .* of another shape")
    assert places == ["meta"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight.fill_(float("nan")), "holds NaN"),
        (lambda weight: weight.fill_(float("-inf")), "holds infinity"),
        (lambda weight: weight.double() * 1e300, "holds infinity"),  # in float32
        (lambda weight: weight.int(), "is of type int32: weights are of type float32, float16, bfloat16, float64"),
        (lambda weight: weight.bool(), "is of type bool"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "is of type float8_e4m3fn"),
        (lambda weight: weight.to(torch.complex64), "is of type complex64"),
    ],
)
def test_weights_that_are_no_numbers(saved: Path, change: Callable[[Tensor], Tensor], said: str) -> None:
    weights = load_file(saved)
    save_file({**weights, "norm.weight": change(weights["norm.weight"])}, saved)
    refuse(saved, f"backbone.safetensors: norm.weight {said}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(saved: Path, backbone: Backbone, dtype: torch.dtype) -> None:
    save_file({name: value.to(dtype) for name, value in load_file(saved).items()}, saved)
    loaded = load_backbone(saved)
    assert {value.dtype for value in loaded.timm_state_dict().values()} == {torch.float32}
    images = torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(loaded(images), backbone(images), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_damaged_descriptions_and_weights(saved: Path) -> None:
    """Bytes changed, cut or put in at random in either file: a backbone or one line, never anything else."""
    files = [saved.with_suffix(".json"), saved]
    contents = [file.read_bytes() for file in files]
    draws = torch.Generator().manual_seed(0)
    loads = 0
    for number in range(3000):
        file, content = files[number % 2], bytearray(contents[number % 2])
        for _ in range(int(torch.randint(1, 3, (), generator=draws))):
            where = int(torch.randint(min(len(content), 2000), (), generator=draws))
            kind = int(torch.randint(10, (), generator=draws))
            if kind == 0:
                del content[where:]
                content = content or bytearray(b"\0")
            else:
                content[where : where + kind % 2] = bytes([int(torch.randint(32, 127, (), generator=draws))])
        file.write_bytes(content)
        try:
            load_backbone(saved)
            loads += 1
        except CheckpointError as refusal:
            assert "\n" not in str(refusal)  # noqa: PT017
        file.write_bytes(contents[number % 2])
    assert 0 < loads < 2000
