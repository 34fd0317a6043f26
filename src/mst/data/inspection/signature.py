"""A small picture of an image by which it is compared with others, and the 64-bit hash by which others are found.

Letters: n images, S = 32 the side of the small picture, T = 8 that of its colours.
The hash is the signs of low cosine coefficients, as in "pHash" (C. Zauner, Implementation and Benchmarking of
Perceptual Image Hash Functions, 2010), here without the comparison with their median: a sign does not depend on the
other coefficients.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

SIDE, COLOUR_SIDE = 32, 8
GREY, COLOURS = SIDE * SIDE, 2 * COLOUR_SIDE * COLOUR_SIDE
LENGTH = GREY + COLOURS
"""Bytes of a signature: grey [S, S], then blue and red differences [T, T, 2] as of JPEG (128 = none)."""
BITS = 64
_WAVES = 11
"""Lowest frequencies in each direction among which the hash takes its own."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_AT_ONCE = 4096

Signatures = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]


def signature(pixels: Tensor) -> bytes:
    """Return the signature of an image: pixels uint8 [C, H, W], any C.

    Other numbers of channels than 3 are averaged, and have no colours.
    """
    values = pixels.permute(1, 2, 0).numpy()  # [H, W, C]
    if values.shape[2] not in {1, 3}:
        values = np.stack([_shrunk(values[..., band]) for band in range(values.shape[2])]).mean(0)[..., None]
        values = np.rint(values).astype(np.uint8)
    return of_small(_shrunk(values[..., 0] if values.shape[2] == 1 else values))


def of_small(small: npt.NDArray[np.uint8]) -> bytes:
    """Return the signature of a small picture, grey [S, S] or RGB [S, S, 3]."""
    if small.ndim == 2:
        return small.tobytes() + b"\x80" * COLOURS
    values = small.astype(np.float32)
    grey = values @ _LUMA  # [S, S]
    apart = np.stack([(values[..., 2] - grey) / 1.772, (values[..., 0] - grey) / 1.402], -1)  # ITU-T T.871
    step = SIDE // COLOUR_SIDE
    coarse = apart.reshape(COLOUR_SIDE, step, COLOUR_SIDE, step, 2).mean((1, 3)) + 128
    return _rounded(grey).tobytes() + _rounded(coarse).tobytes()


def hashes(signatures: Signatures) -> Hashes:
    """Return the hash of each signature: uint8 [n, LENGTH] -> uint64 [n]."""
    found = np.zeros(len(signatures), np.uint64)
    waves, chosen = _cosines(), _chosen()
    for first in range(0, len(signatures), _AT_ONCE):
        grey = signatures[first : first + _AT_ONCE, :GREY].astype(np.float32).reshape(-1, SIDE, SIDE)
        coefficients = waves @ grey @ waves.T  # [n, waves, waves]
        signs = coefficients.reshape(len(grey), -1)[:, chosen] > 0  # [n, BITS]
        found[first : first + _AT_ONCE] = np.ascontiguousarray(np.packbits(signs, axis=1)).view(np.uint64)[:, 0]
    return found


def _shrunk(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return [H, W] or [H, W, C] as [S, S] or [S, S, C]."""
    picture = Image.fromarray(np.ascontiguousarray(values))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@cache
def _cosines() -> npt.NDArray[np.float32]:
    """Return the lowest waves of the cosine transform (DCT-II): [waves, S]."""
    places = (np.arange(SIDE) + 0.5) / SIDE
    return np.cos(np.pi * np.arange(_WAVES)[:, None] * places).astype(np.float32)


@cache
def _chosen() -> npt.NDArray[np.int64]:
    """Return which of [waves x waves] coefficients make the hash: the lowest, without the mean."""
    rows, columns = np.mgrid[:_WAVES, :_WAVES].reshape(2, -1)
    order = np.lexsort((rows, rows + columns))
    return order[1 : BITS + 1]
