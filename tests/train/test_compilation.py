"""Compiled blocks: no graph breaks, what the blocks compute, shared graphs, and a way out where compiling fails."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from model.test_backbones import CASES
from model.test_recomputation import uniform
from mst.errors import RunFailure
from mst.model.backbone import Backbone
from mst.model.recomputation import recompute_blocks
from mst.model.stochastic_depth import branch_draws
from mst.train.compilation import compile_blocks, eager, select_compile

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def run(backbone: Backbone, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Return tokens and gradients of a pass with the draws of a step."""
    backbone.zero_grad()
    with branch_draws(uniform):
        tokens = backbone.tokens(images, mask, importance=False)
    (tokens.cls.square().sum() + tokens.patches.square().sum()).backward()
    return [tokens.cls, tokens.patches, *(p.grad for p in backbone.parameters() if p.grad is not None)]


def pair_of(kind: str, *, recomputed: bool = False, **compiling: Any) -> tuple[Backbone, Backbone]:
    """Return a backbone that leaves nothing out of its computation, and the same one compiled."""
    case = CASES[kind]
    case = dataclasses.replace(case, depth=case.depth if "swin" in kind else 5)
    plain = case.build(drop_path=0.5).train()
    for block in plain.blocks:
        block.lean = False
    compiled = copy.deepcopy(plain)
    if recomputed:
        recompute_blocks(compiled)
    compile_blocks(compiled, **{"needed": True, "backend": "eager", **compiling})
    return plain, compiled


@pytest.mark.parametrize(
    ("kind", "recomputed", "expected"),
    [
        ("deit", False, 2),
        ("deit", True, 2),
        ("eva02", False, 2),
        ("swin", False, 8),
        pytest.param("deit3", False, 2, marks=pytest.mark.slow),
        pytest.param("dinov2-swiglu", False, 2, marks=pytest.mark.slow),
        pytest.param("rope-mixed", True, 2, marks=pytest.mark.slow),
        pytest.param("swin", True, 8, marks=pytest.mark.slow),
        pytest.param("swinv2", False, 8, marks=pytest.mark.slow),
        pytest.param("swin-non-square", False, 8, marks=pytest.mark.slow),
    ],
)
def test_a_block_is_one_graph_and_equal_blocks_share_it(kind: str, recomputed: bool, expected: int) -> None:
    """`fullgraph` makes a break an error. Two graphs: the first block leaves nothing out. Swin: each differs."""
    plain, compiled = pair_of(kind, recomputed=recomputed)
    images = torch.randn(4, 3, *CASES[kind].size)
    for one, other in zip(run(plain, images), run(compiled, images), strict=True):
        assert torch.equal(one, other)
    assert graphs() == expected
    assert not counters["graph_break"]
    assert [*plain.state_dict()] == [*compiled.state_dict()]


def test_other_sizes_modes_and_copies() -> None:
    plain, compiled = pair_of("deit")
    compiled = copy.deepcopy(compiled)
    for size in ((48, 48), (32, 32)):
        images = torch.randn(4, 3, *size)
        assert torch.equal(run(plain, images)[1], run(compiled, images)[1])
    plain.eval(), compiled.eval()
    images = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        expected, found = (net.tokens(images, importance=True) for net in (plain, compiled))
    assert torch.equal(expected.patches, found.patches)
    assert torch.equal(expected.importance, found.importance)  # type: ignore[arg-type]
    assert graphs() == 2 + 2 + 2


def test_evaluations_make_no_graphs() -> None:
    plain, compiled = pair_of("deit")
    plain.eval(), compiled.eval()
    with torch.no_grad(), eager():
        for batch in (1, 2, 3):
            images = torch.randn(batch, 3, 48, 48)
            assert torch.equal(plain(images), compiled(images))
    assert graphs() == 0


def broken(*_: Any, **__: Any) -> Any:
    raise OSError("no compiler here")


def test_where_compiling_fails_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    plain, compiled = pair_of("deit", needed=False, backend=broken)
    images = torch.randn(4, 3, 48, 48)
    for _ in range(2):
        for one, other in zip(run(plain, images), run(compiled, images), strict=True):
            assert torch.equal(one, other)
    assert capsys.readouterr().err.count("torch.compile failed") == 1


def test_where_it_was_asked_for_a_failure_ends_the_run() -> None:
    _, compiled = pair_of("deit", backend=broken)
    with pytest.raises(RunFailure, match=r"--runtime.compile on: torch.compile failed \(.*no compiler here"):
        run(compiled, torch.randn(4, 3, 48, 48))


@pytest.mark.parametrize(
    ("asked", "device", "steps", "found", "why"),
    [
        ("on", CPU, 1, True, "asked for"),
        ("off", CARD, 10**6, False, "asked for"),
        ("auto", CPU, 10**6, False, "CPU"),
        ("auto", CARD, 10**6, True, "CUDA"),
        ("auto", CARD, 999, False, "999 steps"),
    ],
)
def test_who_compiles(asked: Any, device: torch.device, steps: int, found: bool, why: str) -> None:
    with mock.patch("mst.train.compilation.find_spec", return_value=object()):
        on, reason = select_compile(asked, device, steps=steps)
    assert on is found
    assert why in reason
    assert reason.startswith("on: " if found else "off: ")


def test_cuda_without_triton_is_left_alone() -> None:
    with mock.patch("mst.train.compilation.find_spec", return_value=None):
        assert select_compile("auto", CARD, steps=10**6)[1].startswith("off: the package triton is not there")


@pytest.mark.slow
def test_the_compiler_itself_gives_the_same_numbers() -> None:
    plain, compiled = pair_of("deit", backend="inductor")
    images = torch.randn(4, 3, 48, 48)
    for one, other in zip(run(plain, images), run(compiled, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
