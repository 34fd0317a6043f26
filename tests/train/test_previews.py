"""Preview pictures: every column there is, in true colours, and nothing disturbed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mst.model.tokens import Tokens
from mst.objective.records import ObjectiveValues
from mst.runtime.seeding import generator
from mst.train.previews import heat_map, preview, save_preview, tiles
from mst.views.normalise import normalise
from train.tiny_run import tiny_config, tiny_plan, tiny_state

SIDE = 16 * 6 + 2  # a 16 px crop enlarged to 96, and its margin


@pytest.mark.parametrize(
    ("objective", "channels", "columns"),
    [
        ({}, 3, 4),
        ({}, 1, 4),
        ({}, 5, 4),
        ({"strategy": "none"}, 3, 3),
        ({"restoration_weight": 0}, 3, 3),
        ({"restoration_weight": 0, "strategy": "none"}, 3, 2),
    ],
)
def test_columns(tmp_path: Path, objective: dict[str, Any], channels: int, columns: int) -> None:
    config = tiny_config(objective=objective, data={"channels": channels})
    plan = tiny_plan(config)
    state = tiny_state(config, plan)
    before = copy.deepcopy(state.pair)
    images = torch.randint(256, (3, channels, 16, 16), dtype=torch.uint8)
    picture = preview(
        state.pair,
        normalise(images, plan.mean, plan.std),
        ObjectiveValues.from_config(config.objective, teacher_temp=0.04),
        generator("preview"),
        mean=plan.mean,
        std=plan.std,
        dtype=torch.float32,
    )
    assert picture.shape == (3, 3 * SIDE + 2, columns * SIDE + 2)
    shown = picture[:, 2:SIDE:6, 2:SIDE:6].float()  # the first image, back at its own size
    wanted = images[0].float() if channels == 3 else images[0].float().mean(dim=0, keepdim=True).expand(3, -1, -1)
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1.01)
    torch.testing.assert_close(before.state_dict(), state.pair.state_dict(), rtol=0, atol=0)
    assert state.pair.student.training
    save_preview(tmp_path / "a/b.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a/b.png")), picture.permute(1, 2, 0).numpy())


def test_heat_goes_from_black_to_white_in_row_major_order() -> None:
    tokens = Tokens(torch.zeros(1, 2), torch.zeros(1, 6, 2), (2, 3), torch.arange(6.0)[None])
    heat = heat_map(tokens, (4, 6))
    assert heat.shape == (1, 3, 4, 6)
    assert heat[0, :, 0, 0].tolist() == [0, 0, 0]
    assert heat[0, :, -1, -1].tolist() == [1, 1, 1]
    assert (heat[0].sum(dim=0)[:2, 4:] < heat[0].sum(dim=0)[2:, :2]).all()


def test_large_crops_are_not_enlarged() -> None:
    assert tiles([torch.zeros(2, 3, 100, 120)]).shape == (3, 2 * 102 + 2, 122 + 2)
