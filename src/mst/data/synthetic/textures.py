"""Surfaces of the synthetic scenes: scalar patterns in [0, 1] and pairs of colours to paint them with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mst.data.synthetic.shapes import Field

_KNOTS = 6  # the cloud pattern interpolates a grid of 6x6 random numbers
DRAWS = 12 + _KNOTS**2
"""Uniform numbers that one surface uses, whatever its pattern and size: scenes look the same at any resolution."""


def bricks(u: Field, v: Field, noise: Field) -> Field:
    """Rows of oblongs, every other row shifted by half."""
    shift = math.pi * np.mod(np.floor(v / math.pi), 2)
    return _edge(3 * np.maximum(np.cos(2 * v), np.cos(u + shift)) - 2.2)


def checks(u: Field, v: Field, noise: Field) -> Field:
    """A chessboard."""
    return _edge(2 * np.sin(u) * np.sin(v))


def clouds(u: Field, v: Field, noise: Field) -> Field:
    """Smooth random blotches."""
    return noise


def dots(u: Field, v: Field, noise: Field) -> Field:
    """Round spots on a grid."""
    return _edge(np.cos(u) + np.cos(v) - 0.7)


def grid(u: Field, v: Field, noise: Field) -> Field:
    """Thin crossing lines."""
    return _edge(3 * np.maximum(np.cos(u), np.cos(v)) - 2.2)


def marble(u: Field, v: Field, noise: Field) -> Field:
    """Veins: bars that follow the noise."""
    return _edge(np.sin(0.5 * u + 9 * noise))


def plain(u: Field, v: Field, noise: Field) -> Field:
    """A soft ramp."""
    return 0.425 + 0.35 * np.sin(0.12 * u) + 0.15 * noise


def scales(u: Field, v: Field, noise: Field) -> Field:
    """Overlapping tiles, each shaded from one side."""
    along = v / math.pi
    row = np.floor(along)
    across = np.mod(u / math.pi + 0.5 * np.mod(row, 2), 1) - 0.5
    return np.clip(along - row - across * across, 0, 1)


def stripes(u: Field, v: Field, noise: Field) -> Field:
    """Parallel bars."""
    return _edge(np.sin(u))


def waves(u: Field, v: Field, noise: Field) -> Field:
    """Bars that bend."""
    return _edge(np.sin(u + 1.6 * np.sin(0.6 * v)))


PATTERNS: tuple[Callable[[Field, Field, Field], Field], ...] = (
    bricks, checks, clouds, dots, grid, marble, plain, scales, stripes, waves,
)  # fmt: skip


@dataclass(frozen=True)
class Habit:
    """The look that belongs to a class: which of `PATTERNS`, and how fine it is, from 0 (coarse) to 1."""

    pattern: int
    pitch: float


def habit_of(number: int) -> Habit:
    """Return the habit of a class; neighbours differ in pattern and in pitch."""
    return Habit(number % len(PATTERNS), (number * 3 % len(PATTERNS)) / (len(PATTERNS) - 1))


def surface(y: Field, x: Field, draws: Sequence[float], habit: Habit | None = None) -> Field:
    """Paint one surface.

    Args:
        y: rows in the scene, float32 [h, 1], 1 = the scene's shorter side.
        x: columns in the scene, float32 [1, w], same unit.
        draws: `DRAWS` uniform numbers that decide everything.
        habit: pattern and, within a tenth, pitch; None = the draws decide.

    Returns:
        Colours, float32 [3, h, w], about in [0, 1].
    """
    pattern, pitch = int(draws[0] * len(PATTERNS)), draws[2]
    if habit is not None:
        pattern, pitch = habit.pattern, habit.pitch + 0.2 * (draws[2] - 0.5)
    angle, scale = 2 * math.pi * draws[1], 2 * math.pi * 3 ** (1 + pitch)  # 3 to 9 periods per side
    u = scale * (math.cos(angle) * x + math.sin(angle) * y) + 2 * math.pi * draws[3]  # [h, w]
    v = scale * (math.cos(angle) * y - math.sin(angle) * x) + 2 * math.pi * draws[4]  # [h, w]
    knots = np.asarray(draws[12:], dtype=np.float32).reshape(_KNOTS, _KNOTS)
    noise = _knot_weights(y) @ knots @ _knot_weights(x).T  # [h, w]
    first, second = _colours(draws[5:11])
    level = PATTERNS[pattern](u, v, noise)  # [h, w]
    colours: Field = first * (1 - level) + second * level
    return colours


def _edge(wave: Field) -> Field:
    """Turn a wave in about [-1, 1] into soft bars in [0, 1]."""
    return np.clip(0.5 + 1.2 * wave, 0, 1)


def _knot_weights(position: Field) -> Field:
    """Cosine-interpolation weights [n, knots] of n positions; 0 is the first knot, 1 the last."""
    at = np.clip(position.reshape(-1, 1), 0, 1) * (_KNOTS - 1)
    distance = np.minimum(np.abs(at - np.arange(_KNOTS, dtype=np.float32)), 1)
    return 0.5 + 0.5 * np.cos(math.pi * distance)


def _colours(draws: Sequence[float]) -> tuple[Field, Field]:
    """Two random colours [3, 1, 1] of clearly different lightness."""
    dark = 0.55 * np.asarray(draws[:3], dtype=np.float32).reshape(3, 1, 1)
    light = 0.45 + 0.55 * np.asarray(draws[3:], dtype=np.float32).reshape(3, 1, 1)
    return (dark, light) if draws[0] + draws[3] < 1 else (light, dark)
