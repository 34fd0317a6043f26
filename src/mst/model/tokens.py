"""The records that backbones return.

Letters (docs/algorithm.md): B images, N = h*w patch tokens, D embedding size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """What a backbone makes of a batch of images, after its final norm.

    Attributes:
        cls: global feature [B, D]: the CLS token, or the mean of the patch tokens where there is none.
        patches: patch tokens [B, N, D] in row-major order of the grid.
        grid: (h, w) with h * w == N.
        importance: attention each patch token receives [B, N], float32, or None where it was not asked for.
            For a ViT it is the last block's CLS query after the softmax over all keys, averaged over heads,
            so a row sums to one minus what the prefix tokens receive.
        cls_token: the CLS token itself [B, D], whatever the global feature is; None where there is none.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]
    importance: Tensor | None
    cls_token: Tensor | None = None


class Summary(NamedTuple):
    """What of `Tokens` is left where nobody reads the patch tokens; the last block is then mostly left out.

    Attributes:
        cls: as in `Tokens`.
        grid: as in `Tokens`.
        importance: as in `Tokens`.
    """

    cls: Tensor
    grid: tuple[int, int]
    importance: Tensor | None
