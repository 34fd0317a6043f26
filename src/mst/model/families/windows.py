"""Windows of a map: which place of the map stands where in which window, and attention inside windows.

Source: Liu et al. 2021 (Swin), 2022 (Swin V2). Differs from timm where a map is no multiple of the window: padding
comes before the shift and takes no part in attention, and a map shorter than the window is one window.

Letters (docs/algorithm.md): B images, A heads, D embedding size, d = D / A; here also M = tokens of a window, n windows
per image, and h' w' = the map of a stage.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_LOGIT_SCALE = 100.0  # Swin V2, section 3.2: the temperature is not below 0.01
BLOCKED = -100.0  # added to scores that must not count; timm's value


class Windows(NamedTuple):
    """How a map of h' x w' places is cut into n windows of M places.

    Attributes:
        sides: of a window (rows, columns); M is their product.
        places: the place of the map (row * w' + column) at each place of the windows [n*M]; any one at padding.
        back: the place of the windows for each place of the map [h'*w'].
        labels: a number per place of each window [n, M], or None where every place sees every other: places see each
            other only where their numbers agree. Negative marks padding.
        padding: where the windows hold padding [n*M], or None without any.
        whole: whether the map is one window, so that nothing changes its place.
    """

    sides: tuple[int, int]
    places: Tensor
    back: Tensor
    labels: Tensor | None
    padding: Tensor | None
    whole: bool

    def split(self, x: Tensor) -> Tensor:
        """Return the windows [B*n, M, C] of a map [B, h', w', C] or [B, h'*w', C]."""
        rows = x.flatten(1, -2)  # [B, h'*w', C]
        if not self.whole:
            rows = _Rearrange.apply(rows, self.places, self.back, None)  # [B, n*M, C]
        return rows.view(-1, self.sides[0] * self.sides[1], x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Return the map [B, h'*w', C] of windows [B*n, M, C]; what stands in the padding is left out."""
        rows = windows.reshape(-1, len(self.places), windows.shape[-1])  # [B, n*M, C]
        if not self.whole:
            rows = _Rearrange.apply(rows, self.back, self.places, self.padding)
        return rows

    def blocked(self) -> Tensor | None:
        """Return what is added to scores so that places see only those of their number [n, 1, M, M], or None."""
        if self.labels is None:
            return None
        return ((self.labels.unsqueeze(1) != self.labels.unsqueeze(2)) * BLOCKED).unsqueeze(1)


def cut(size: tuple[int, int], window: tuple[int, int], *, shifted: bool, device: torch.device) -> Windows:
    """Return how a map of `size` is cut into windows of the sides `window`, or smaller where the map is.

    Where a map is longer than the window it is padded to a multiple of it, then, with `shifted`, rolled by half a
    window: its last windows hold rows and columns of its start, which are another piece of the image.
    """
    axes = [_Axis(length, side, shifted, device) for length, side in zip(size, window, strict=True)]
    rows, columns = axes
    side = (rows.side, columns.side)
    labels = _grid(2 * rows.labels, columns.labels).clamp(min=-1)  # [n, M] 0..3, -1 where either side is padding
    padded = rows.padded or columns.padded
    return Windows(
        sides=side,
        places=_grid(rows.source * size[1], columns.source).flatten(),
        back=(
            (rows.window[:, None] * columns.count + columns.window) * (side[0] * side[1])
            + rows.inside[:, None] * side[1]
            + columns.inside
        ).flatten(),
        labels=labels if padded or rows.shift or columns.shift else None,
        padding=(labels < 0).flatten() if padded else None,
        whole=not padded and rows.count == columns.count == 1,
    )


class _Axis:
    """One side of a map: `count` windows of `side` places."""

    def __init__(self, length: int, side: int, shifted: bool, device: torch.device) -> None:
        self.side = min(side, length)
        self.shift = self.side // 2 if shifted and length > self.side else 0
        self.count = -(-length // self.side)
        total = self.count * self.side
        self.padded = total > length
        rolled = torch.arange(total, device=device).view(self.count, self.side)
        source = (rolled + self.shift) % total  # [count, side]
        self.source = source.where(source < length, 0)
        self.labels = (rolled >= total - self.shift).long().where(source < length, -10)  # [count, side], 1 = wrapped
        place = (torch.arange(length, device=device) - self.shift) % total
        self.window, self.inside = place // self.side, place % self.side  # each [length]


def _grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the sum for each place of each window [n, M] of what holds for rows [nh, wh] and columns [nw, ww]."""
    return (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)


class _Rearrange(torch.autograd.Function):
    """Rows x [B, P, C] in another order [B, Q, C]; backward reads the gradient in the order `back`, zero at `empty`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, empty: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, empty)
        return x.index_select(1, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, empty = ctx.saved_tensors
        dx = grad.index_select(1, back)
        return dx if empty is None else dx.masked_fill_(empty[:, None], 0.0), None, None, None


def attend_in_windows(attention: Any, x: Tensor, windows: Windows, importance: bool) -> tuple[Tensor, Tensor | None]:
    """Run a window attention on a map.

    Args:
        attention: timm's `WindowAttention` of Swin or Swin V2.
        x: the map [B, h', w', D].
        windows: how it is cut; their sides are not above the attention's own.
        importance: also read what each place receives.

    Returns:
        The new map [B, h', w', D], and what each place receives, averaged over the queries of the image and over heads
        [B, h'*w'], float32, detached, where padding neither gives nor takes; or None.
    """
    q, k, v = _queries_keys_values(attention, windows.split(x))  # each [B*n, A, M, d]
    bias, blocked = position_bias(attention, windows.sides), windows.blocked()  # [A, M, M], [n, 1, M, M] or None
    if blocked is not None:
        bias = (bias + blocked).repeat(q.shape[0] // blocked.shape[0], 1, 1, 1)  # [B*n, A, M, M]
    received = None
    if importance:
        received = windows.join(_received(q.detach(), k.detach(), bias.detach(), windows).unsqueeze(-1)).squeeze(-1)
        received = received / received.shape[1]
    if _fused(x):
        dropout = attention.attn_drop.p if attention.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, bias.type_as(q), dropout_p=dropout, scale=1.0)  # [B*n, A, M, d]
    else:
        weights = attention.attn_drop((q @ k.transpose(-2, -1) + bias).softmax(dim=-1))  # [B*n, A, M, M], M is small
        out = weights.type_as(v) @ v  # [B*n, A, M, d]
    out = windows.join(out.transpose(1, 2).flatten(2)).view(*x.shape[:3], -1)  # [B, h', w', D]
    return attention.proj_drop(attention.proj(out)), received


def _fused(x: Tensor) -> bool:
    """Whether torch's fused kernels work on x: they keep no matrix of M x M for each window, and are slow on a CPU."""
    return x.device.type != "cpu"


def _received(q: Tensor, k: Tensor, bias: Tensor, windows: Windows) -> Tensor:
    """Return what each key receives from all queries of its window, averaged over heads [B*n, M], float32."""
    with torch.autocast(q.device.type, enabled=False):
        weights = (q.float() @ k.float().transpose(-2, -1) + bias).softmax(dim=-1).mean(dim=1)  # [B*n, M, M]
    if windows.padding is not None:
        real = ~windows.padding.view(-1, weights.shape[1]).repeat(
            q.shape[0] * weights.shape[1] // len(windows.padding), 1
        )
        weights = weights * real.unsqueeze(2) * real.unsqueeze(1)
    return weights.sum(dim=1)


def _queries_keys_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries with their scale, keys and values [B*n, A, M, d] of windows [B*n, M, D']."""
    qkv = F.linear(x, attention.qkv.weight, qkv_bias(attention)).reshape(*x.shape[:2], 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B*n, A, M, d]
    if hasattr(attention, "logit_scale"):  # V2: cosines with a learned temperature
        q, k = (F.normalize(part.to(torch.promote_types(v.dtype, torch.float32)), dim=-1) for part in (q, k))
        return (q * logit_scale(attention)).type_as(v), k.type_as(v), v
    return q * attention.scale, k, v


def logit_scale(attention: Any) -> Tensor:
    """Return what the cosines of each head are multiplied by in Swin V2 [A, 1, 1]."""
    scale: Tensor = attention.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()
    return scale


def qkv_bias(attention: Any) -> Tensor | None:
    """Return the bias [3 * D'] of the layer that makes queries, keys and values, or None."""
    if getattr(attention, "q_bias", None) is not None:  # V2: a bias for queries and values only
        return torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    bias: Tensor | None = attention.qkv.bias
    return bias


def position_bias(attention: Any, window: tuple[int, int]) -> Tensor:
    """Return the position bias [A, M, M] of windows that may be smaller than the attention's own."""
    (wh, ww), own = window, attention.window_size
    index = attention.relative_position_index.view(*own, *own)[:wh, :ww, :wh, :ww].reshape(wh * ww, wh * ww)
    if hasattr(attention, "cpb_mlp"):  # V2: continuous, section 3.3
        table = 16 * torch.sigmoid(attention.cpb_mlp(attention.relative_coords_table).flatten(0, 2))
    else:
        table = attention.relative_position_bias_table  # [(2wh-1)(2ww-1), A]
    bias: Tensor = table[index].permute(2, 0, 1)
    return bias
