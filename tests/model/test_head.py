from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mst.model.head import ProjectionHead
from reference.model_reference import weight_normed_linear
from reference.module_reference import fill_with_nan


def build(norm: str = "none", *, freeze_gain: bool = True) -> ProjectionHead:
    head = ProjectionHead(16, hidden=24, bottleneck=8, prototypes=20, norm=norm, freeze_gain=freeze_gain)
    head.init_weights(0)
    return head


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_equals_the_weight_normalised_layer(norm: str) -> None:
    head = build(norm, freeze_gain=False)
    torch.nn.init.uniform_(head.gain, 0.5, 2.0)
    features = torch.randn(5, 16)
    slow = weight_normed_linear(head.prototypes, head.gain)
    expected = slow(F.normalize(head.mlp(features), dim=-1))
    torch.testing.assert_close(head(features).logits(), expected)
    target = torch.randn(5, 20)
    (head(features).logits() * target).sum().backward()
    mine = head.prototypes.grad
    (slow(F.normalize(head.mlp(features), dim=-1)) * target).sum().backward()
    torch.testing.assert_close(mine, slow.parametrizations.weight.original1.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_init_weights_writes_everything(norm: str) -> None:
    head = build(norm)
    expected = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    fill_with_nan(head)
    state = torch.get_rng_state()
    head.init_weights(0)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_logits_are_cosines_in_float32_whatever_the_compute_type() -> None:
    head = build()
    features = torch.randn(6, 16) * 100
    exact = head(features).logits()
    assert exact.abs().max() <= 1 + 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features).logits()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.03, rtol=0.05)


def test_frozen_gain_is_no_trained_parameter() -> None:
    assert not build(freeze_gain=True).gain.requires_grad
    assert build(freeze_gain=False).gain.requires_grad


def test_batch_norm_is_there_only_when_asked() -> None:
    assert len([m for m in build("batch").modules() if isinstance(m, torch.nn.BatchNorm1d)]) == 2
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in build("none").modules())
