"""Synthetic scenes: textured shapes on cluttered, textured backgrounds, and all that is known about them.

A scene is a pure function of (seed, index, size, style), cheap enough to be drawn while training. Its class is that of
its main object. As with real things, a class has habits (a pattern, a tint, a background), which it keeps as often as
the style of the scenes says. Pose, colours, light, clutter and the small objects of other classes are random, so that
statistics of the whole image give a hint and the object gives the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mst.data.synthetic.paint import Painter, Pose
from mst.data.synthetic.shapes import SHAPES
from mst.data.synthetic.styles import HABITATS, Style
from mst.errors import UsageError
from mst.runtime.seeding import derive_seed

CLASSES = tuple(SHAPES)
"""Names of the labels 0, 1, ...; the semantic map uses label + 1, and 0 for the background."""
MIN_SIZE = 16
"""Pixels below which the shapes can no longer be told apart."""


@dataclass(frozen=True)
class Scene:
    """One image with everything that is known about it; M visible objects, the main one last.

    Attributes:
        image: uint8 [3, H, W], RGB.
        label: class of the main object, an index of `CLASSES`.
        object_labels: int64 [M].
        boxes: float32 [M, 4], (x0, y0, x1, y1) in pixels around the visible part, x1 and y1 exclusive.
        instance_masks: bool [M, H, W], visible pixels; they do not overlap.
        semantic_map: uint8 [H, W], 0 = background, label + 1 elsewhere.
    """

    image: NDArray[np.uint8]
    label: int
    object_labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    instance_masks: NDArray[np.bool_]
    semantic_map: NDArray[np.uint8]


@dataclass(frozen=True)
class SceneSet:
    """`count` scenes of one seed, from index `start` on; the classes take turns, so they are balanced."""

    seed: int
    count: int
    size: int | tuple[int, int] = 64
    start: int = 0
    style: Style = HABITATS

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Scene:
        if not 0 <= position < self.count:
            raise IndexError(position)
        return make_scene(self.seed, self.start + position, self.size, self.style)

    def __iter__(self) -> Iterator[Scene]:
        return (self[position] for position in range(self.count))


def make_scene(seed: int, index: int, size: int | tuple[int, int] = 64, style: Style = HABITATS) -> Scene:
    """Draw scene `index` of `seed`.

    Args:
        seed: which family of scenes.
        index: which scene; its label is `index % len(CLASSES)`.
        size: pixels, one number or (height, width).
        style: how scenes look.

    Raises:
        UsageError: a side is below `MIN_SIZE`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIZE:
        raise UsageError(f"scene size {height}x{width}: use at least {MIN_SIZE} pixels a side")
    rng = np.random.Generator(np.random.PCG64(derive_seed("scene", seed, index)))
    painter = Painter(height, width, rng, style)
    label = index % len(CLASSES)
    painter.paint_background(label)
    labels = []
    for _ in range(int(painter.draw() * (style.small + 1))):
        labels.append((label + 1 + int(painter.draw() * (len(CLASSES) - 1))) % len(CLASSES))
        painter.paint_object(len(labels), labels[-1], _small_pose(painter))
    labels.append(label)
    painter.paint_object(len(labels), label, _main_pose(painter))
    return _scene(painter.finish(), painter.owner, labels)


def write_scene_folder(
    root: Path,
    counts: Mapping[str, int],
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    style: Style = HABITATS,
) -> None:
    """Write disjoint sets of scenes: `root/<split>/<class>/<index>.png`.

    The semantic map of each lies at the same place under `root/masks/`, as a one-channel PNG of class numbers.

    Args:
        root: the folder, created if needed.
        counts: scenes per split, e.g. {"train": 2000, "val": 500}; the splits take consecutive indices.
        size: pixels, one number or (height, width).
        seed: which family of scenes.
        style: how scenes look.
    """
    start = 0
    for split, count in counts.items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            (root / "masks" / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            scene = make_scene(seed, index, size, style)
            place = Path(split, CLASSES[scene.label], f"{index:06d}.png")
            Image.fromarray(scene.image.transpose(1, 2, 0)).save(root / place, compress_level=1)
            Image.fromarray(scene.semantic_map).save(root / "masks" / place, compress_level=1)
        start += count


def _main_pose(painter: Painter) -> Pose:
    """Return the pose of the main object, leaning by up to a tenth of a turn."""
    dy, dx, radius, angle, aspect, mirror = painter.draws(6)
    least, most = painter.style.radius
    radius = least + (most - least) * radius
    height, width = painter.height / painter.side, painter.width / painter.side
    slack = (height - 1.9 * radius, width - 1.9 * radius) if painter.style.anywhere else (0.68 - radius,) * 2
    return Pose(
        y=height / 2 + slack[0] * (dy - 0.5),
        x=width / 2 + slack[1] * (dx - 0.5),
        radius=radius,
        angle=1.2 * (angle - 0.5),
        aspect=0.8 + 0.4 * aspect,
        mirrored=mirror < 0.5,
    )


def _small_pose(painter: Painter) -> Pose:
    """Return the pose of a small object anywhere, at any angle."""
    dy, dx, radius, angle, aspect, mirror = painter.draws(6)
    return Pose(
        y=painter.height / painter.side * dy,
        x=painter.width / painter.side * dx,
        radius=0.08 + 0.09 * radius,
        angle=2 * np.pi * angle,
        aspect=0.8 + 0.4 * aspect,
        mirrored=mirror < 0.5,
    )


def _scene(image: NDArray[np.uint8], owner: NDArray[np.uint8], labels: list[int]) -> Scene:
    """Collect the visible objects; the main one, last in `labels`, was painted last and is always among them."""
    visible = [number for number in range(1, len(labels) + 1) if (owner == number).any()]
    masks = np.stack([owner == number for number in visible])  # [M, H, W]
    classes = np.asarray([0, *(label + 1 for label in labels)], dtype=np.uint8)  # of each number in `owner`
    return Scene(
        image=image,
        label=labels[-1],
        object_labels=np.asarray([labels[number - 1] for number in visible], dtype=np.int64),
        boxes=np.stack([_box(mask) for mask in masks]),
        instance_masks=masks,
        semantic_map=classes[owner],
    )


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the smallest (x0, y0, x1, y1) around the true pixels of `mask` [H, W], ends exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.asarray([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)
