"""Outlines of the synthetic scenes' objects as implicit functions: negative inside, about the distance outside.

Coordinates are the object's own: the origin is its centre, 1 its outer radius, y points down. The folds are the usual
constructions of signed distances, kept just exact enough for one pixel of antialiasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]
"""Float32 values per pixel."""


def arrow(x: Field, y: Field) -> Field:
    """An arrow that points up."""
    ax: Field = np.abs(x)
    head = np.maximum(0.7 * ax - 0.7 * y - 0.64, y)
    shaft = np.maximum(ax - 0.3, np.abs(y - 0.4) - 0.52)
    return np.minimum(head, shaft)


def crescent(x: Field, y: Field) -> Field:
    """A waning moon."""
    return np.maximum(np.hypot(x, y) - 0.95, 0.78 - np.hypot(x - 0.5, y))


def cross(x: Field, y: Field) -> Field:
    """A plus sign."""
    ax, ay = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(ax, ay) - 0.95, np.minimum(ax, ay) - 0.3)


def disc(x: Field, y: Field) -> Field:
    """A filled circle."""
    return np.hypot(x, y) - 0.92


def flower(x: Field, y: Field) -> Field:
    """Six round petals."""
    edge: Field = 0.68 + 0.27 * np.cos(6 * np.arctan2(y, x))
    return np.hypot(x, y) - edge


def heart(x: Field, y: Field) -> Field:
    """Two discs and the wedge below them."""
    ax = np.abs(x)
    lobes = np.hypot(ax - 0.42, y + 0.3) - 0.5
    wedge = np.maximum(0.75 * ax + 0.66 * y - 0.62, -y - 0.3)
    return np.minimum(lobes, wedge)


def ring(x: Field, y: Field) -> Field:
    """A circle with a hole."""
    return np.abs(np.hypot(x, y) - 0.72) - 0.24


def square(x: Field, y: Field) -> Field:
    """A square with sharp corners."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def star(x: Field, y: Field) -> Field:
    """Five points: the plane folded onto half a point, whose edge is one straight line."""
    half, inner = math.pi / 5, 0.42
    angle = np.abs(np.mod(np.arctan2(x, -y) + half, 2 * half) - half)  # 0 on a point's axis, `half` between points
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    normal = (inner * math.sin(half), 1 - inner * math.cos(half))  # of the edge from (1, 0) to the inner corner
    return ((along - 1) * normal[0] + across * normal[1]) / math.hypot(*normal)


def triangle(x: Field, y: Field) -> Field:
    """Three equal sides, one corner up."""
    return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.52


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    shape.__name__: shape for shape in (arrow, crescent, cross, disc, flower, heart, ring, square, star, triangle)
}
"""Class name -> outline, in the order of the labels (alphabetical, as class folders are sorted)."""
