"""The painter of the synthetic scenes: background, clutter, objects and light, all from one stream of draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mst.data.synthetic.shapes import SHAPES, Field
from mst.data.synthetic.styles import HABITATS, Style
from mst.data.synthetic.textures import DRAWS, Habit, habit_of, surface

_OUTLINES = tuple(SHAPES.values())
_AIR = 0.6  # how strongly the background is tinted
_LIT = 0.6  # how often the objects are lighter than the background rather than darker
_MAX_STROKES = 3  # clutter without a label


@dataclass(frozen=True)
class Pose:
    """Where an object lies: centre and radius in shorter sides, angle in radians, aspect = width / height."""

    y: float
    x: float
    radius: float
    angle: float
    aspect: float
    mirrored: bool


@dataclass
class Painter:
    """A canvas of `height` x `width` pixels and the stream of random numbers that decides what is painted."""

    height: int
    width: int
    rng: np.random.Generator
    style: Style = HABITATS
    colours: Field = field(init=False)  # [3, H, W], about in [0, 1]
    owner: NDArray[np.uint8] = field(init=False)  # [H, W], 0 = background, else the number of the object
    lit: bool = field(init=False)

    def __post_init__(self) -> None:
        self.colours = np.zeros((3, self.height, self.width), dtype=np.float32)
        self.owner = np.zeros((self.height, self.width), dtype=np.uint8)
        self.lit = self.draw() < _LIT

    @property
    def side(self) -> int:
        """Pixels of the shorter side, the unit of all lengths."""
        return min(self.height, self.width)

    def draw(self) -> float:
        """Return the next uniform number."""
        return float(self.rng.random())

    def draws(self, count: int) -> list[float]:
        """Return the next `count` uniform numbers."""
        return list(self.rng.random(count).tolist())

    def paint_background(self, label: int) -> None:
        """Two surfaces with a bent border, calmer than the objects, and strokes across them."""
        y, x = self._axes()
        first = surface(y, x, self.draws(DRAWS), self._habit(self.style.habitat, 3 * label + 5))
        second = surface(y, x, self.draws(DRAWS))
        angle, bend, frequency, phase, calm, air, hue = self.draws(7)
        border = self._ramp(angle) + 0.15 * bend * np.sin((6 + 12 * frequency) * (x - y) + 2 * math.pi * phase)
        first += (second - first) * np.clip(border * self.side + 0.5, 0, 1)
        mean = first.mean(axis=(1, 2), keepdims=True)
        self.colours = mean + (first - mean) * (0.35 + 0.4 * calm)
        if air < self.style.air:
            _tint(self.colours, 0.3 * label + 0.2 * hue, _AIR)
        self.colours += (float(not self.lit) - self.colours) * 0.25
        for _ in range(int(self.draw() * (_MAX_STROKES + 1))):
            self._paint_stroke()
        if self.style.ground_colour < 1:
            grey = self.colours.mean(axis=0, keepdims=True)
            self.colours += (grey - self.colours) * (1 - self.style.ground_colour)

    def paint_object(self, number: int, label: int, pose: Pose) -> None:
        """Paint one object of class `label` and claim its pixels for `number`."""
        numbers, habit = self.draws(DRAWS), self._habit(self.style.pattern, label)
        tinted, hue = self.draws(2)
        rows, columns = self._window(pose.y, pose.radius, self.height), self._window(pose.x, pose.radius, self.width)
        y, x = self._axes()
        y, x = y[rows], x[:, columns]  # [h, 1], [1, w]
        if not y.size or not x.size:
            return
        cos, sin = math.cos(pose.angle) / pose.radius, math.sin(pose.angle) / pose.radius
        stretch = math.sqrt(pose.aspect)
        own_x = (cos * (x - pose.x) + sin * (y - pose.y)) * ((-1 if pose.mirrored else 1) / stretch)  # [h, w]
        own_y = (cos * (y - pose.y) - sin * (x - pose.x)) * stretch  # [h, w]
        depth = _OUTLINES[label](own_x, own_y) * -(pose.radius * self.side)  # [h, w], pixels inside the outline
        alpha = np.clip(depth + 0.5, 0, 1)  # [h, w]
        paint = surface(y, x, numbers, habit)  # [3, h, w]
        if tinted < self.style.tint:
            _tint(paint, 0.1 * label + self.style.tint_range * (hue - 0.5), self.style.tint_strength)
        paint += (float(self.lit) - paint) * 0.25
        paint *= 0.55 + 0.45 * np.clip(depth / (0.035 * self.side), 0, 1)  # a dark rim
        window = self.colours[:, rows, columns]
        window += (paint - window) * alpha
        self.owner[rows, columns][alpha >= 0.5] = number

    def finish(self) -> NDArray[np.uint8]:
        """Add one directed light, the exposure and the sensor's grain; return uint8 [3, H, W]."""
        angle, strength, exposure = self.draws(3)
        grain = self.rng.random(self.colours.shape, dtype=np.float32) - 0.5
        lighted = self.colours * (0.5 + 0.8 * exposure + 1.0 * strength * self._ramp(angle)) + 0.06 * grain
        return (np.clip(lighted, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _axes(self) -> tuple[Field, Field]:
        """Return the pixels' centres, rows [H, 1] and columns [1, W], in shorter sides."""
        rows, columns = np.arange(self.height, dtype=np.float32), np.arange(self.width, dtype=np.float32)
        return ((rows + 0.5) / self.side)[:, None], ((columns + 0.5) / self.side)[None, :]

    def _window(self, centre: float, radius: float, pixels: int) -> slice:
        """Return the pixels of one axis that an object can touch."""
        first, last = ((centre + way * 1.25 * radius) * self.side for way in (-1, 1))
        return slice(max(0, int(first)), max(0, min(pixels, int(last) + 1)))

    def _ramp(self, turns: float) -> Field:
        """Return a slope [H, W] through 0 in the middle that rises by one per shorter side."""
        y, x = self._axes()
        across, down = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
        ramp: Field = across * (x - x.mean()) + down * (y - y.mean())
        return ramp

    def _habit(self, share: float, number: int) -> Habit | None:
        """Return a habit in `share` of the draws, None (any look) in the others."""
        return habit_of(number) if self.draw() < share else None

    def _paint_stroke(self) -> None:
        """A straight or bent stroke of one colour."""
        angle, offset, width, bend, red, green, blue = self.draws(7)
        across, along = self._ramp(angle), self._ramp(angle + 0.25)
        distance = np.abs(across + (bend - 0.5) * along * along + offset - 0.5)
        alpha = np.clip((0.01 + 0.03 * width - distance) * self.side + 0.5, 0, 0.85)  # [H, W]
        colour = np.asarray([red, green, blue], dtype=np.float32).reshape(3, 1, 1)
        self.colours += (colour - self.colours) * alpha


def _tint(paint: Field, hue: float, strength: float) -> None:
    """Pull colours [3, h, w] a share of the way towards a hue (in turns), in place."""
    wheel = [0.5 + 0.4 * math.cos(2 * math.pi * (hue - third / 3)) for third in range(3)]
    paint += (np.asarray(wheel, dtype=np.float32).reshape(3, 1, 1) - paint) * strength
