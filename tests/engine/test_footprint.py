"""A training that is counted without values takes what a real one takes, and is left as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mst.engine.footprint import LiveBytes, TooManyBytes, training_bytes, without_values
from mst.engine.layer_decay import build_optimizer, parameter_groups

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    own(torch.zeros(2, 3, 16, 16))
    own[0].requires_grad_(False)
    return own


def loss(model: nn.Module, images: int) -> Tensor:
    result: Tensor = model(torch.zeros(images, 3, 16, 16)).square().mean()
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_it_is_what_a_real_training_takes(dtype: torch.dtype, microbatches: int) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def counted(images: int) -> int:
        return training_bytes(
            model,
            lambda like: build_optimizer(parameter_groups(like, weight_decay=0.0)),
            lambda like: loss(like, images),
            device=CPU,
            dtype=dtype,
            microbatches=microbatches,
        )

    few, many = counted(16), counted(256)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for images, expected in ((16, few), (256, many)):
        with LiveBytes("cpu") as live:
            real = network()
            optimizer = build_optimizer(parameter_groups(real, weight_decay=0.0))
            for _ in range(2):
                for _ in range(min(microbatches, 2)):
                    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                        value = loss(real, images)
                    value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        assert expected == pytest.approx(live.taken, rel=0.02)


def test_counting_stops_where_it_is_too_much() -> None:
    with pytest.raises(TooManyBytes):
        training_bytes(
            network(),
            lambda like: build_optimizer(parameter_groups(like, weight_decay=0.0)),
            lambda like: loss(like, 2**24),
            device=CPU,
            dtype=torch.float32,
            most=2**30,
        )


def test_a_copy_without_values_shares_what_is_shared() -> None:
    model = network()
    model.add_module("again", model[0])
    like = without_values(model)
    assert like.get_submodule("again") is like.get_submodule("0")
    assert {parameter.device.type for parameter in like.parameters()} == {"meta"}
    assert [p.requires_grad for p in like.parameters()] == [p.requires_grad for p in model.parameters()]
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
