"""Weight decay where it belongs, and clipping of each tensor by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mst.train.optimizer import build_optimizer, clip_per_tensor_, set_step_values, trained_parameters
from reference.clipping import clip_per_tensor
from train.tiny_run import tiny_config, tiny_plan, tiny_state

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=6)


@settings(deadline=None)
@given(SHAPES, st.sampled_from([0.1, 1.0, 3.0, 1e4]), st.integers(0, 1000))
def test_clipping_equals_its_definition(shapes: list[tuple[int, ...]], max_norm: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draws) * 2
    expected, norms = clip_per_tensor([np.asarray(p.grad) for p in parameters], max_norm)
    found = clip_per_tensor_(parameters, max_norm)
    np.testing.assert_allclose(found.numpy(), norms, rtol=1e-5, atol=1e-6)
    for parameter, gradient in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-4, atol=1e-6)


def test_no_limit_only_measures_and_missing_gradients_are_passed_over() -> None:
    with_gradient, without = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))
    with_gradient.grad = torch.full((4,), 50.0)
    assert clip_per_tensor_([with_gradient, without], None).tolist() == [100.0]
    assert with_gradient.grad.tolist() == [50.0] * 4
    assert without.grad is None
    assert clip_per_tensor_([without], 1.0).shape == (0,)


def test_a_gradient_that_is_not_finite_shows_in_its_norm() -> None:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    parameters[1].grad[0] = torch.inf
    norms = clip_per_tensor_(parameters, 1.0)
    assert norms.isfinite().tolist() == [True, False]


def test_groups() -> None:
    config = tiny_config(model={"head_norm": "batch", "norm_last_layer": False})
    state = tiny_state(config, tiny_plan(config))
    optimizer = build_optimizer(state.pair, config.optimizer)
    names = {id(p): name for name, p in trained_parameters(state.pair)}
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed | undecayed == set(names.values())
    assert not decayed & undecayed
    assert all(
        name.endswith(".bias")
        or "norm" in name
        or "mask_token" in name
        or "mlp.1" in name
        or "mlp.4" in name
        or "decoder" in name
        for name in undecayed
    )
    assert {"student.head.prototypes", "student.head.gain", "student.backbone.model.pos_embed"} <= decayed
    assert not any("teacher" in name for name in names.values())
    set_step_values(optimizer, lr=0.5, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.3), (0.5, 0.0)]


@pytest.mark.parametrize("gain_frozen", [True, False])
def test_what_does_not_learn_is_left_out(gain_frozen: bool) -> None:
    config = tiny_config(model={"norm_last_layer": gain_frozen}, objective={"restoration_weight": 0})
    names = [name for name, _ in trained_parameters(tiny_state(config, tiny_plan(config)).pair)]
    assert ("student.head.gain" in names) != gain_frozen
    assert not any(name.startswith("decoder") for name in names)
