"""The step without arithmetic counts what a real one does; the paper's backbones cost what timm's own cost."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from commands.calls import image_folder
from mst.config.load import override
from mst.config.schema import ModelConfig
from mst.engine.footprint import LiveBytes
from mst.model.build import backbone_spec, build_backbone
from mst.model.lean import FLOP_FORMULAS
from mst.planning.estimate import networks_memory
from mst.planning.setup import Setup, prepare
from mst.planning.simulation import simulate_step, step_operations
from mst.recipes import base_config

PAPER = ("deit_small_patch16_224", "swin_tiny_patch4_window7_224")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 16)


def setup(images: Path, **changes: Any) -> Setup:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return prepare(override(base_config("debug"), {"data.train": str(images), "runtime.precision": "fp32", **named}))


def test_live_bytes_follow_tensors() -> None:
    with LiveBytes("cpu") as live:
        kept = torch.zeros(1000)  # 4000 bytes
        view = kept[10:]
        assert live.now == 4000
        other = view + 1
        assert live.now == 4000 + 3960
        del other
        assert live.now == 4000
        del kept, view
    assert (live.now, live.peak) == (0, 7960)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__head_norm": "batch", "runtime__precision": "bf16"},
        {"objective__strategy": "block", "views__local_crops": 0},
        {"objective__strategy": "attention_hint", "model__decoder": "linear"},
        {"train__accumulate": 2, "objective__restoration_weight": 0.0},
    ],
)
def test_a_step_without_arithmetic(changes: dict[str, Any], images: Path) -> None:
    state = torch.random.get_rng_state()
    run = setup(images, **changes)
    live = LiveBytes("cpu")
    simulate_step(run, live)
    pair = run.build_pair()
    student, teacher = (sum(p.nbytes for p in part.parameters()) for part in (pair.student, pair.teacher))
    assert live.peak > 4 * student + teacher  # weights, gradients and two averages; the rest is activations
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(isinstance(p, Tensor) and p.isfinite().all() for p in pair.parameters())


def test_memory_grows_with_the_batch_and_not_with_accumulation(images: Path) -> None:
    small, large, parts = (
        networks_memory(setup(images, train__batch_size=batch, train__accumulate=accumulate))
        for batch, accumulate in ((4, 1), (16, 1), (16, 4))
    )
    assert small < large
    assert small <= parts < 0.5 * (small + large)


def test_operations_leave_out_what_stochastic_depth_drops(images: Path) -> None:
    whole, dropped, more = (
        step_operations(setup(images, model__drop_path=rate, train__batch_size=16)) for rate in (0.0, 0.2, 0.8)
    )
    assert whole > dropped > more > 0.2 * whole


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_backbones_have_timms_parameters_and_operations(name: str) -> None:
    ours = build_backbone(backbone_spec(ModelConfig(backbone=name), image_size=(224, 224), channels=3)).eval()
    theirs = timm.create_model(name, num_classes=0).eval()
    for module in theirs.modules():  # torch 2.14 counts nothing for its fused attention on CPUs
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    own = {id(parameter) for parameter in [ours.mask_token]}
    assert sum(p.numel() for p in ours.parameters() if id(p) not in own) == sum(p.numel() for p in theirs.parameters())
    counts = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for model in (ours.to_empty(device="cpu"), theirs.to_empty(device="cpu")):
            with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
                pixels = torch.empty(2, 3, 224, 224)
                model.tokens(pixels, importance=False) if model is ours else model(pixels)
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_the_decoder_is_a_small_part_of_a_step(name: str, images: Path) -> None:
    benchmark = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "step_flops.py"))
    config = benchmark["configuration"](name, str(images), batch=1)
    assert (config.views.global_crops, config.views.global_size) == (2, 224)
    assert (config.views.local_crops, config.views.local_size) == (6, 96)
    whole, decoder = benchmark["flops_per_image"](name, str(images)).values()
    print(f"{name}: {whole / 1e9:.1f} GFLOP an image, decoder {decoder / whole:.1%}")
    assert 0 < decoder <= 0.10 * whole
