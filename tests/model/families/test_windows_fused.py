"""Attention in windows by torch's fused kernels, as on CUDA: the values and gradients of plain products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.families.test_swin_block import WIDE, blocks, draw
from mst.model.families import windows
from mst.model.families.windows import attend_in_windows, cut

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (6, 9)], ids=["tiled", "one window", "padded"])
@pytest.mark.parametrize("shifted", [False, True], ids=["straight", "shifted"])
@pytest.mark.parametrize("importance", [False, True], ids=["", "importance"])
def test_fused_is_plain(
    family: str, size: tuple[int, int], shifted: bool, importance: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = blocks(family, (8, 8), (4, 4), shifted=shifted)[0].attn.train()
    places, x = cut(size, (4, 4), shifted=shifted, device=CPU), draw(3, *size, 8)
    found: list[list[Tensor]] = []
    for fused in (False, True):
        monkeypatch.setattr(windows, "_fused", lambda x, fused=fused: fused)
        attention.zero_grad()
        inputs = x.clone().requires_grad_()
        out, received = attend_in_windows(attention, inputs, places, importance)
        (out * draw(*out.shape, name="weights")).sum().backward()
        gradients = [parameter.grad for parameter in attention.parameters() if parameter.grad is not None]
        assert inputs.grad is not None
        found.append([out, inputs.grad, *gradients, *([received] if received is not None else [])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9 if one.dtype == WIDE else 1e-6, atol=1e-9)


def test_a_cpu_uses_plain_products() -> None:
    assert not windows._fused(torch.zeros(1))
    assert windows._fused(torch.zeros(1, device="meta"))
