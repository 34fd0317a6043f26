"""A whole pre-training step on a CUDA device that is not there: one device for all, and one wait of the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cuda.fake import CARD, HostWaits, fake_cuda
from mst.config.schema import ViewsConfig
from mst.model.pair import build_pair
from mst.runtime.seeding import generator
from mst.train.monitors import FeatureBuffer
from mst.train.state import TrainState, new_state
from mst.train.step import StepReport, train_step
from mst.views.finish import finish
from mst.views.normalise import as_views, normalise
from mst.views.parameters import draw_parameters, draw_uniforms
from train.test_step import VALUES
from train.tiny_run import tiny_batches, tiny_config, tiny_plan

SWIN = {
    "views": {"global_size": 64, "local_size": 32},
    "model": {
        "backbone": "swin_tiny_patch4_window7_224",
        "patch_size": 32,
        "embed_dim": 16,
        "num_heads": 1,
        "depth": 1,
    },
}
SWIN_V2 = {**SWIN, "model": {**SWIN["model"], "backbone": "swinv2_tiny_window8_256"}}
EVA = {"model": {"backbone": "eva02_tiny_patch14_224"}}
BF16 = {"runtime": {"precision": "bf16"}}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {},
    "bf16, no local crops, no clipping": {**BF16, "views": {"local_crops": 0}, "optimizer": {"clip": None}},
    "batch norm, accumulated": {
        "model": {"head_norm": "batch", "drop_path": 0.3, "norm_last_layer": False},
        "train": {"accumulate": 2},
    },
    "swin": {**SWIN, **BF16, "model": {**SWIN["model"], "drop_path": 0.3}},
    "eva": {**EVA, "model": {**EVA["model"], "decoder": "linear"}},
    "none": {"objective": {"strategy": "none", "restoration_weight": 0.0}},
    "hint": {"objective": {"strategy": "attention_hint"}},
    "block": {"objective": {"strategy": "block", "masked_sample_share": 0.5}},
}
MORE: dict[str, dict[str, dict[str, Any]]] = {
    "swin v2": SWIN_V2,
    "swin, batch norm": {**SWIN, "model": {**SWIN["model"], "head_norm": "batch"}},
    "eva bf16": {**EVA, **BF16},
    "high": {"objective": {"strategy": "attention_high"}},
    "random": {"objective": {"strategy": "random"}},
}
ALL = [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)]


def fake_step(sections: dict[str, dict[str, Any]], *, statistics: bool) -> tuple[TrainState, StepReport, HostWaits]:
    """Do one step; return what is left, and what the host waited for in it."""
    config = tiny_config(**sections)
    plan = tiny_plan(config)
    restores = config.objective.restoration_weight > 0
    with torch.device("meta"):
        pair = build_pair(config.model, plan, channels=3, restoration=restores, seed=0)
    dtype = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32
    with fake_cuda() as waits:
        state = new_state(pair.to_empty(device=CARD), config, plan)
        batches = tiny_batches(config, plan)
        parts = [as_views(next(batches), plan.mean, plan.std, CARD) for _ in range(config.train.accumulate)]
        assert waits.found == {}
        report = train_step(state, parts, VALUES, config, plan, dtype=dtype, statistics=statistics)
        state.features.push(report.features)
    return state, report, waits


@pytest.mark.parametrize("kind", ALL)
def test_a_step_is_on_one_device_and_the_host_waits_once(kind: str) -> None:
    state, report, waits = fake_step((KINDS | MORE)[kind], statistics=False)
    assert waits.found == {"values": 1}
    student = {f"student.{name}": parameter for name, parameter in state.pair.student.named_parameters()}
    decoder = {} if state.pair.decoder is None else dict(state.pair.decoder.named_parameters())
    unmoved = {
        name for name, parameter in (student | decoder).items() if parameter.requires_grad and parameter.grad is None
    }
    assert unmoved == ({"student.backbone.mask_token"} if kind == "none" else set())
    assert {tensor.device for tensor in (*state.parameters, *state.buffers, state.center, report.features)} == {CARD}
    assert report.indices.device.type == "cpu"


@pytest.mark.parametrize("kind", ["vit", "none"])
def test_a_row_of_statistics_costs_one_wait_more(kind: str) -> None:
    assert fake_step(KINDS[kind], statistics=True)[2].found == {"values": 2}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_colours_are_changed_without_waiting(channels: int) -> None:
    config, images = ViewsConfig(global_size=32, local_size=16, local_crops=2), 6
    sizes = np.tile([40, 40], (images, 1))
    draws = draw_uniforms(4, [generator("colours", image) for image in range(images)])
    parameters = draw_parameters(config, draws, sizes, channels=channels)
    with fake_cuda() as waits:
        crops = torch.zeros(4 * images, channels, 32, 32, dtype=torch.uint8).to(CARD, non_blocking=True)
        finish(crops, parameters, crops)
        assert normalise(crops, (0.5,), (0.2,)).device == CARD
        assert waits.found == {}


def test_the_count_sees_what_a_host_waits_for() -> None:
    """Each line stalls a real card once."""
    host = torch.arange(4)
    with fake_cuda() as waits:
        values = torch.zeros(4, 4, device=CARD)
        lines = (
            lambda: values.sum().item(),
            values.tolist,
            lambda: bool(values.any()),
            values.cpu,
            lambda: host.to(CARD),
            lambda: torch.tensor([1.0, 2.0], device=CARD),
            lambda: values[host],
            lambda: values[values > 0],
            values.nonzero,
            lambda: values.copy_(torch.zeros(4, 4)),
        )
        for number, line in enumerate(lines, 1):
            line()
            assert waits.found.total() == number, number
        host.to(CARD, non_blocking=True)
        values[host.to(CARD, non_blocking=True)] = 0.0
        FeatureBuffer(4, rows=8, device=CARD).push(values)
        assert waits.found.total() == len(lines)


def test_two_devices_are_refused_forward_and_backward() -> None:
    with fake_cuda():
        there = torch.zeros(3, device=CARD, requires_grad=True)
        with pytest.raises(RuntimeError, match=r"same device|at least two devices"):
            there + torch.zeros(3)

        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x * 2

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                return torch.zeros(3)

        with pytest.raises(AssertionError, match="cpu"):
            Wrong.apply(there).sum().backward()
        (there * 2).sum().backward()
        assert there.grad is not None
        assert there.grad.device == CARD
