"""Masks, one image and one token at a time.

Sources: MST (Li et al. 2021), section 3.2 (least attended tokens); AttMask (Kakogeorgiou et al. 2022), section 3.2
(most attended, hints); BEiT (Bao et al. 2022), algorithm 1 (blocks).
"""

from __future__ import annotations

import math
import random

import numpy as np


def eligible_tokens(
    importance: np.ndarray, strategy: str, eligible_fraction: float, revealed: np.ndarray | None = None
) -> np.ndarray:
    """Return which tokens may be hidden [B, N], bool: floor(eligible_fraction * N) of each image.

    Fewer where too many are revealed. `importance` [B, N]; strategy attention_low, attention_high or attention_hint.
    Equal importance: the lower token index first. `revealed` [B, N], bool: tokens that attention_hint may not hide.
    """
    images, tokens = importance.shape
    count = math.floor(eligible_fraction * tokens)
    eligible = np.zeros((images, tokens), dtype=bool)
    for image in range(images):
        candidates = [token for token in range(tokens) if revealed is None or not revealed[image, token]]
        sign = 1.0 if strategy == "attention_low" else -1.0
        candidates.sort(key=lambda token: (sign * float(importance[image, token]), token))
        for token in candidates[:count]:
            eligible[image, token] = True
    return eligible


def most_attended(importance: np.ndarray, share: float) -> np.ndarray:
    """Return the ceil(share * N) tokens of highest importance of each image [B, N], bool, lower index first."""
    images, tokens = importance.shape
    top = np.zeros((images, tokens), dtype=bool)
    for image in range(images):
        order = sorted(range(tokens), key=lambda token: (-float(importance[image, token]), token))
        for token in order[: math.ceil(share * tokens)]:
            top[image, token] = True
    return top


def block_mask(target: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return a mask [height, width], bool, of rectangles, with exactly `target` tokens.

    Each rectangle covers between (min(height, width) // 3)^2 and all of the tokens still missing and has height / width
    between 0.3 and 1 / 0.3; tokens beyond `target` are left out in row-major order.
    """
    draw = random.Random(seed)
    mask = np.zeros((height, width), dtype=bool)
    while mask.sum() < target:
        missing = target - int(mask.sum())
        smallest = min(max(1, (min(height, width) // 3) ** 2), missing)
        area = draw.uniform(smallest, missing)
        aspect = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
        rows = min(max(round(math.sqrt(area * aspect)), 1), height)
        columns = min(max(round(math.sqrt(area / aspect)), 1), width)
        top = draw.randint(0, height - rows)
        left = draw.randint(0, width - columns)
        for row in range(top, top + rows):
            for column in range(left, left + columns):
                if mask.sum() < target:
                    mask[row, column] = True
    return mask


def neighbour_agreement(masks: np.ndarray) -> float:
    """Return the share of adjacent token pairs (4-neighbours) of [B, h, w] that are both or neither hidden."""
    equal = 0
    pairs = 0
    for mask in masks:
        height, width = mask.shape
        for row in range(height):
            for column in range(width):
                if row + 1 < height:
                    equal += int(mask[row, column] == mask[row + 1, column])
                    pairs += 1
                if column + 1 < width:
                    equal += int(mask[row, column] == mask[row, column + 1])
                    pairs += 1
    return equal / pairs
