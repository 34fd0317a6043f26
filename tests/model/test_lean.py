"""Layers that keep little for the backward pass: values and gradients equal those of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mst.model.backbone import BackboneSpec
from mst.model.block import add_branch
from mst.model.build import build_backbone
from mst.model.families.vit import VitBackbone
from mst.model.lean import FLOP_FORMULAS, NormGelu, attention, linear, norm_linear
from mst.runtime.seeding import generator
from reference import lean_reference as reference

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(1, 4))
"""B images, T tokens, A heads, d."""


def draw(*shape: int, name: str = "x") -> Tensor:
    source = generator("lean", name, *shape)
    return torch.randn(*shape, generator=source, dtype=torch.float64).requires_grad_()


def assert_same(fast: Callable[[], Tensor], slow: Callable[[], Tensor], *inputs: Tensor) -> None:
    """Compare values and the gradients of all inputs in float64."""
    found, expected = fast(), slow()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    weights = draw(*expected.shape, name="weights").detach()
    results = [torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected)]
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, bias=st.booleans(), scaled=st.booleans())
def test_layers_equal_plain_torch(sizes: tuple[int, int, int, int], bias: bool, scaled: bool) -> None:
    batch, tokens, heads, width = sizes
    d, e = heads * width, heads * width + 1
    norm, layer = nn.LayerNorm(d, eps=1e-3).double(), nn.Linear(d, e, bias=bias).double()
    with torch.no_grad():
        norm.weight.copy_(draw(d, name="norm"))
        norm.bias.copy_(draw(d, name="shift"))
    x, gamma = draw(batch, tokens, d), draw(e, name="gamma") if scaled else None
    own = [p for p in (layer.weight, layer.bias, gamma) if p is not None]
    scale: Tensor | float = 1.0 if gamma is None else gamma
    assert_same(lambda: linear(x, layer, gamma), lambda: layer(x) * scale, x, *own)
    weights = (norm, layer.weight, layer.bias)
    inputs = [p for p in (x, layer.weight, layer.bias, norm.weight, norm.bias) if p is not None]
    assert_same(lambda: norm_linear(x, *weights), lambda: reference.norm_linear(x, *weights), *inputs)


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_attention_equals_plain_torch(sizes: tuple[int, int, int, int]) -> None:
    batch, tokens, heads, width = sizes
    qkv = draw(batch, tokens, 3 * heads * width)
    assert_same(lambda: attention(qkv, heads, 0.3), lambda: reference.attention(qkv, heads, 0.3), qkv)


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, count=st.integers(0, 2), size=st.sampled_from([1.0, 30.0, 300.0, 3000.0]))
def test_attention_with_a_bias_equals_plain_torch(
    sizes: tuple[int, int, int, int], count: int, size: float
) -> None:  # the larger, the further apart the scores: exponentials of them overflow, or all of a row vanish
    batch, tokens, heads, width = sizes
    qkv, bias = draw(batch * max(1, count), tokens, 3 * heads * width), draw(heads, tokens, tokens, name="bias")
    scaled = size * (bias.detach() - 1)
    blocked = 100 * draw(count, 1, tokens, tokens, name="blocked").detach() if count else None
    for added in (bias, scaled.requires_grad_()):
        arguments = (qkv, heads, 0.3, added, blocked)
        assert_same(lambda: attention(*arguments), lambda: reference.attention(*arguments), qkv, added)  # noqa: B023


@pytest.mark.parametrize("shift", [-100.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_bias_adds_to_all_scores_changes_nothing(shift: float, dtype: torch.dtype) -> None:
    qkv, bias = draw(4, 9, 3 * 8).detach().to(dtype), torch.arange(162.0).view(2, 9, 9) / 64
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
    torch.testing.assert_close(attention(qkv, 2, 0.3, bias + shift), attention(qkv, 2, 0.3, bias), **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_beyond_what_exponentials_can_show(dtype: torch.dtype) -> None:
    qkv, bias = 30 * draw(4, 9, 3 * 8).detach().to(dtype), torch.zeros(2, 9, 9)
    found = attention(qkv, 2, 1.0, bias)
    torch.testing.assert_close(found, attention(qkv, 2, 1.0), rtol=0.02, atol=0.02 if dtype == torch.float32 else 0.5)
    wanted = reference.attention(qkv.double(), 2, 1.0)
    assert torch.cosine_similarity(found.double().flatten(), wanted.flatten(), dim=0) > (
        0.999 if dtype == torch.float32 else 0.99
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_norm_gelu_equals_plain_torch(groups: int) -> None:
    layer, x = NormGelu(groups, 4).double(), draw(3, 4, 2, 5)
    arguments = (groups, layer.weight, layer.bias, layer.eps)
    assert_same(lambda: layer(x), lambda: reference.norm_gelu(x, *arguments), x, layer.weight, layer.bias)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.4, 0.999])  # 0.01 keeps all, 0.999 none
def test_stochastic_depth_skips_what_it_drops(rate: float) -> None:
    x, weight, seen = draw(6, 2, 3), draw(3, 3, name="weight"), []

    def branch(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows @ weight

    def fast() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(5)
            return add_branch(x, branch, x, rate)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        keep = (torch.empty(6).bernoulli_(1 - rate) if rate else torch.ones(6)).double()
    assert_same(fast, lambda: reference.add_branch(x, x @ weight, keep, rate), x, weight)
    assert seen == [max(1, int(keep.sum()))]  # with nothing kept, one sample of weight zero gives gradients of zero


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])  # without and with LayerScale
def test_a_backbone_equals_timm_blocks(name: str) -> None:
    lean, plain = build(name), build(name)
    plain.reads_only_cls = False
    for block in plain.model.blocks:
        block.lean = False
    assert all(block.lean for block in lean.model.blocks)
    assert lean.reads_only_cls
    images = draw(3, 3, 32, 16).detach()
    mask = draw(3, 8, name="mask").detach() > 0
    readers: list[Callable[[VitBackbone], Tensor]] = [
        lambda backbone: backbone.tokens(images, mask, importance=False).patches,
        lambda backbone: backbone.tokens(images).cls,
        lambda backbone: backbone.summary(images, mask, importance=False).cls,
    ]
    for read in readers:
        found = []
        for backbone in (lean, plain):
            backbone.zero_grad()
            read(backbone).sin().sum().backward()
            found.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*found, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(lean.summary(images), plain.summary(images))


def build(name: str) -> VitBackbone:
    backbone = build_backbone(BackboneSpec(name, (32, 32), 3, 8, embed_dim=32, depth=2, num_heads=2))
    assert isinstance(backbone, VitBackbone)
    with torch.no_grad():
        for index, parameter in enumerate(backbone.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator(name, index)))
    return backbone.double()


def test_bfloat16_is_near_float32() -> None:
    backbone, images = build("vit_tiny_patch16_224").float(), draw(4, 3, 32, 32).detach().float()
    gradients = []
    for enabled in (False, True):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            cls = backbone(images)
        cls.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("enabled", [False, True])
def test_operations_are_counted_in_both_types(enabled: bool) -> None:
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    with counter, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        linear(torch.randn(10, 32), nn.Linear(32, 64))
    assert counter.get_total_flops() == 2 * 10 * 32 * 64
