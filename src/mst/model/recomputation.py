"""Activation checkpointing by block: the backward pass computes a block again instead of keeping what is inside it.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; torch's non-reentrant checkpoint does it. The
network then keeps the input of each block and the inside of one: about a quarter more arithmetic for far less memory.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mst.model.backbone import Backbone
from mst.model.stochastic_depth import draws_again


class Recomputed(nn.Module):
    """What is put before a block's own class."""

    attn: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns; where a backward pass may follow, keep its arguments only."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        fused = getattr(self.attn, "fused_attn", None)
        drawn, again = draws_again()

        def block(*args: Any, **kwargs: Any) -> Any:
            if fused is not None:  # longer or shorter crops may have passed in between
                self.attn.fused_attn = fused
            return super(Recomputed, self).forward(*args, **kwargs)

        contexts = nullcontext(), again
        return checkpoint(
            block, *args, use_reentrant=False, preserve_rng_state=not drawn, context_fn=lambda: contexts, **kwargs
        )


def recompute_blocks(backbone: Backbone) -> None:
    """Let each block of a backbone be computed again in the backward pass; weights, names and results stay."""
    for block in backbone.blocks:
        own = type(block)
        block.__class__ = type(own.__name__, (Recomputed, own), {})
