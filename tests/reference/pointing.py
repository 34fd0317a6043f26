"""Where attention points, pixel by pixel: Zhang et al. 2016 (the peak) and Wang et al. 2020 (the share on objects)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def peak_pixel(importance: Rows, height: int, width: int) -> tuple[int, int]:
    """Return the pixel (row, column) of an image in the middle of its most important patch, the first of equal ones."""
    h, w = len(importance), len(importance[0])
    places = [(row, column) for row in range(h) for column in range(w)]
    row, column = max(places, key=lambda place: (importance[place[0]][place[1]], -places.index(place)))
    return int((row + 0.5) / h * height), int((column + 0.5) / w * width)


def share_inside(importance: Rows, objects: Rows, counted: Rows) -> float:
    """Return the share of the importance on objects; each patch gives its own evenly to the pixels that it touches."""
    h, w, height, width = len(importance), len(importance[0]), len(objects), len(objects[0])
    inside = total = 0.0
    for row in range(h):
        for column in range(w):
            touched = [
                (y, x)
                for y in range(math.floor(row * height / h), math.ceil((row + 1) * height / h))
                for x in range(math.floor(column * width / w), math.ceil((column + 1) * width / w))
            ]
            each = importance[row][column] / len(touched)
            inside += sum(each for y, x in touched if objects[y][x])
            total += sum(each for y, x in touched if counted[y][x])
    return inside / total
