"""Time attention forward and backward on this CPU: torch's fused kernel against plain matrix products, per size.

It is why `mst.model.attention.choose_kernel` takes plain products for short sequences on CPUs. Medians of interleaved
repetitions on one thread, bfloat16 autocast as in training; ratios above one mean that plain products are faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
SIZES = [(256, 4, 17, 32), (128, 4, 65, 32), (96, 6, 37, 64), (32, 6, 197, 64), (2, 6, 1025, 64)]
"""(B images, A heads, T tokens, d): local and global crops of vit-tiny-cifar10, of DeiT-S, and a 512 px image."""


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's own kernel; all [B, A, T, d]."""
    return F.scaled_dot_product_attention(q, k, v)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition; all [B, A, T, d]."""
    weights: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, A, T, T]
    return weights.softmax(dim=-1) @ v


def seconds(attention: Attention, qkv: Tensor) -> float:
    """Return the time of one forward and backward pass over qkv [B, T, 3, A, d]."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
    out.float().sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def main() -> None:
    """Print one row per size and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", default="", help="write the rows here as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for batch, heads, tokens, dim in SIZES:
        draws = torch.Generator().manual_seed(0)
        qkv = torch.randn(batch, tokens, 3, heads, dim, generator=draws).bfloat16().requires_grad_()
        pairs = [(seconds(fused, qkv), seconds(plain, qkv)) for _ in range(args.repetitions + 1)][1:]
        ratios = sorted(a / b for a, b in pairs)
        rows.append(
            {
                "size": [batch, heads, tokens, dim],
                "fused_ms": 1000 * statistics.median(a for a, _ in pairs),
                "plain_ms": 1000 * statistics.median(b for _, b in pairs),
                "ratio": statistics.median(ratios),
                "ratio_range": [ratios[0], ratios[-1]],
            }
        )
        row = rows[-1]
        print(
            f"B {batch:4d}  A {heads}  T {tokens:5d}  d {dim}:  fused {row['fused_ms']:7.2f} ms  plain "
            f"{row['plain_ms']:7.2f} ms  ratio {row['ratio']:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"
        )
    if args.out:
        Path(args.out).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
