"""What a real card must do; each test also runs on the CPU in a card's place where that says something."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.calls import call, image_folder
from mst.model.pair import TeacherStudent
from mst.runtime.device import set_float32_products
from mst.train.compilation import compile_blocks
from mst.train.state import new_state
from mst.train.step import StepReport, train_step
from mst.views.normalise import normalise
from mst.views.record import Views
from train.test_step import VALUES
from train.tiny_run import tiny_batches, tiny_config, tiny_plan, tiny_state

CPU = torch.device("cpu")
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CARD = pytest.param(torch.device("cuda:0"), marks=[pytest.mark.cuda, needs_card], id="card")
PLACES = pytest.mark.parametrize("device", [pytest.param(CPU, id="cpu"), CARD])
ON_CARD = pytest.mark.parametrize("device", [CARD])


def one_step(
    device: torch.device, *, dtype: torch.dtype = torch.float32, compiled: bool = False, steps: int = 1, **sections: Any
) -> tuple[TeacherStudent, StepReport]:
    """Do steps from the same weights and crops; return the networks on the CPU, and the last report."""
    config = tiny_config(**sections)
    plan = tiny_plan(config)
    pair = copy.deepcopy(tiny_state(config, plan).pair).to(device)
    if compiled:
        compile_blocks(pair.student.backbone, pair.teacher.backbone, needed=True)
    state = new_state(pair, config, plan)
    batches = tiny_batches(config, plan)
    for _ in range(steps):
        views = next(batches)
        large, small = (normalise(crops.to(device), plan.mean, plan.std) for crops in views[:2])
        report = train_step(
            state, [Views(large, small, views.indices)], VALUES, config, plan, dtype=dtype, statistics=True
        )
        state.step += 1
    return pair.to(CPU), report


@PLACES
@pytest.mark.parametrize("kind", ["vit", "batch", "swin"])
def test_a_step_is_that_of_the_cpu(device: torch.device, kind: str) -> None:
    swin = {"backbone": "swin_tiny_patch4_window7_224", "patch_size": 32, "embed_dim": 16, "num_heads": 1, "depth": 1}
    sections: dict[str, Any] = {
        "vit": {"model": {"drop_path": 0.3}},
        "batch": {"model": {"head_norm": "batch"}, "objective": {"strategy": "block"}},
        "swin": {"model": swin, "views": {"global_size": 64, "local_size": 32}},
    }[kind]
    set_float32_products(device, torch.float32)
    (expected, before), (found, after) = one_step(CPU, **sections), one_step(device, **sections)
    assert after.scalars() == pytest.approx(before.scalars(), rel=1e-3)
    assert after.statistics == pytest.approx(before.statistics, rel=1e-2)
    torch.testing.assert_close(after.logits.cpu(), before.logits, rtol=1e-3, atol=1e-4)
    for (name, one), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=2.1e-3, msg=name)  # Adam's first step is a sign


@PLACES
def test_bfloat16_learns_what_float32_learns(device: torch.device) -> None:
    set_float32_products(device, torch.bfloat16)
    _, exact = one_step(device, steps=5)
    _, short = one_step(device, steps=5, dtype=torch.bfloat16)
    assert short.loss == pytest.approx(exact.loss, rel=0.05)


@ON_CARD
def test_compiled_blocks_give_the_same_step(device: torch.device) -> None:
    sections: dict[str, Any] = {"model": {"drop_path": 0.3}}
    (_, plain), (_, compiled) = (one_step(device, compiled=on, **sections) for on in (False, True))
    assert compiled.scalars() == pytest.approx(plain.scalars(), rel=1e-3)


@ON_CARD
@pytest.mark.parametrize("strategy", ["attention_low", "block", "random"])
def test_the_host_waits_once_in_a_step(device: torch.device, strategy: str) -> None:
    """The card's own count of what tests/cuda/fake.py counts without one."""
    config = tiny_config(objective={"strategy": strategy})
    plan = tiny_plan(config)
    state = new_state(tiny_state(config, plan).pair.to(device), config, plan)
    views = next(tiny_batches(config, plan))
    large, small = (normalise(crops.to(device), plan.mean, plan.std) for crops in views[:2])
    parts = [Views(large, small, views.indices)]
    train_step(state, parts, VALUES, config, plan, dtype=torch.float32)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_step(state, parts, VALUES, config, plan, dtype=torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(one.message) for one in said) == 1


@PLACES
def test_features_are_those_of_the_cpu(device: torch.device) -> None:
    config = tiny_config()
    backbone = tiny_state(config, tiny_plan(config)).pair.teacher.backbone.eval()
    images = [torch.randn(5, 3, 16, 16) for _ in range(2)]
    with torch.no_grad():
        expected = [backbone(batch) for batch in images]
        backbone.to(device)
        for batch, features in zip(images, expected, strict=True):
            torch.testing.assert_close(backbone(batch.to(device)).cpu(), features, rtol=1e-3, atol=1e-4)


@PLACES
def test_a_run_trains_stops_and_goes_on(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = image_folder(tmp_path / "images", 17), tmp_path / "run"
    words = ("--data.train", images, "--out", run, "--runtime.device", device, "--runtime.workers", "0")
    assert call(capsys, "pretrain", "debug", *words, "--json").status == 0
    assert (run / "backbone.safetensors").exists()
    assert call(capsys, "pretrain", "--resume", run).status == 0
    assert call(capsys, "embed", "--backbone", run, "--data", images, "--out", tmp_path / "features.npz").status == 0
