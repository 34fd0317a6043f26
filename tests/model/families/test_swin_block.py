"""Swin's lean blocks: values and gradients equal timm's, and those of the slow definition where maps do not tile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from mst.model.families.swin_block import _known_cut, read_stages
from mst.model.families.windows import cut
from mst.model.stochastic_depth import replace_drop_paths
from mst.runtime.seeding import generator
from reference.swin_reference import swin_block

FAMILIES: dict[str, Any] = {"swin": SwinTransformerBlock, "swinv2": SwinTransformerV2Block}
WIDE = torch.float64


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator("swin block", name, *shape), dtype=WIDE)


def blocks(
    family: str, size: tuple[int, int], window: tuple[int, int], *, shifted: bool, heads: int = 2, **settings: Any
) -> tuple[Any, Any]:
    """Return timm's block of random weights in float64, and the same as a lean block."""
    shift = (window[0] // 2, window[1] // 2) if shifted else 0
    plain = FAMILIES[family](4 * heads, size, heads, window_size=window, shift_size=shift, **settings).to(WIDE)
    with torch.no_grad():
        for index, parameter in enumerate(plain.parameters()):
            parameter.copy_(0.4 * draw(*parameter.shape, name=str(index)))
    replace_drop_paths(plain)
    lean = copy.deepcopy(plain)
    read_stages([_Stage([lean])])
    lean.shifted = shifted
    assert lean.lean
    return plain, lean


class _Stage:
    def __init__(self, blocks: list[Any]) -> None:
        self.blocks = blocks


def gradients(block: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and the gradients of the input and of all weights; the same draws each time."""
    block.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        out = run(x)
    (out * draw(*out.shape, name="weights")).sum().backward()
    assert x.grad is not None
    found = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    assert found.keys() == dict(block.named_parameters()).keys()
    return out.detach(), {"input": x.grad, **found}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    count=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    shifted=st.booleans(),
    bias=st.booleans(),
    rate=st.sampled_from([0.0, 0.4, 0.9]),
    batch=st.integers(1, 4),
)
def test_equals_timm_where_windows_tile_the_map(  # noqa: PLR0917 (hypothesis passes by name)
    family: str, window: tuple[int, int], count: tuple[int, int], shifted: bool, bias: bool, rate: float, batch: int
) -> None:
    size = (window[0] * count[0], window[1] * count[1])
    plain, lean = blocks(family, size, window, shifted=shifted, qkv_bias=bias, drop_path=rate)
    x = draw(batch, *size, 8)
    assert_same(gradients(lean, lean, x), gradients(plain, plain, x))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    shifted=st.booleans(),
)
def test_equals_the_slow_definition_at_any_size(
    family: str, window: tuple[int, int], size: tuple[int, int], shifted: bool
) -> None:
    plain, lean = blocks(family, (4 * window[0], 4 * window[1]), window, shifted=shifted)
    shift = tuple(side // 2 if shifted and length > side else 0 for side, length in zip(window, size, strict=True))
    x = draw(2, *size, 8)
    assert_same(gradients(lean, lean, x), gradients(plain, lambda x: swin_block(plain, x, shift), x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [2, 8])  # attention weights kept, and computed again
def test_the_plain_path_is_the_same(family: str, side: int) -> None:
    _, lean = blocks(family, (32, 32), (side, side), shifted=True, drop_path=0.3)
    plain = copy.deepcopy(lean)
    plain.lean = False
    x = draw(3, side + 3, side, 8)
    assert_same(gradients(lean, lean, x), gradients(plain, plain, x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_other_types_are_near(family: str, dtype: torch.dtype, autocast: bool) -> None:
    plain, lean = blocks(family, (8, 8), (4, 4), shifted=True)
    x = draw(2, 6, 7, 8)
    _, expected = gradients(plain, lambda x: swin_block(plain, x, (2, 2)), x)
    lean = lean.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, found = gradients(lean, lean, x.to(dtype))
    for name, value in found.items():
        assert value.dtype == dtype
        similarity = torch.cosine_similarity(value.double().flatten(), expected[name].flatten(), dim=0)
        assert similarity > (0.99 if autocast or dtype == torch.bfloat16 else 1 - 1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_keeps_less(family: str) -> None:
    plain, lean = blocks(family, (14, 14), (7, 7), shifted=True)
    weights = {p.untyped_storage().data_ptr() for block in (plain, lean) for p in block.parameters()}
    kept: dict[str, int] = {}
    for name, block in (("timm", plain), ("lean", lean)):
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block(draw(8, 14, 14, 8))
        kept[name] = sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in weights)
    assert kept["lean"] < 0.6 * kept["timm"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_in_inference_mode_spoils_no_later_one(family: str) -> None:
    plain, lean = blocks(family, (6, 6), (3, 3), shifted=True)
    x = draw(2, 6, 6, 8)
    _known_cut.cache_clear()
    with torch.inference_mode():
        lean(x)
    assert_same(gradients(lean, lean, x), gradients(plain, plain, x))


def test_what_stands_in_the_padding_is_left_out() -> None:
    windows = cut((5, 3), (4, 3), shifted=True, device=torch.device("cpu"))
    x = draw(2, 5, 3, 1)
    split = windows.split(x)  # [2 * 2, 12, 1]
    assert windows.padding is not None
    assert int(windows.padding.sum()) == 9  # three rows of three
    torch.testing.assert_close(windows.join(split).view(x.shape), x)
    garbage = split.flatten().clone()
    garbage[windows.padding.repeat(2)] = float("nan")
    torch.testing.assert_close(windows.join(garbage.view(split.shape)).view(x.shape), x)
