"""Synthetic scenes: determinism, consistency of the labels, balance, and the image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mst.data.synthetic.scenes import CLASSES, Scene, SceneSet, make_scene, write_scene_folder
from mst.data.synthetic.shapes import SHAPES
from mst.data.synthetic.styles import HABITATS, MUTED_GROUNDS
from mst.data.synthetic.textures import PATTERNS, Habit, surface
from mst.errors import UsageError

SIZES = [64, (48, 80), (33, 17), 16]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("index", [0, 7, 123])
def test_a_scene_is_consistent(size: int | tuple[int, int], index: int) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    scene = make_scene(3, index, size)
    count = len(scene.object_labels)
    assert scene.image.shape == (3, height, width)
    assert scene.image.dtype == np.uint8
    assert scene.instance_masks.shape == (count, height, width)
    assert scene.instance_masks.dtype == np.bool_
    assert scene.boxes.shape == (count, 4)
    assert scene.label == index % len(CLASSES) == scene.object_labels[-1]
    assert scene.instance_masks.sum(axis=0).max() <= 1, "visible pixels belong to one object"
    expected = np.zeros((height, width), dtype=np.uint8)
    for mask, label, (x0, y0, x1, y1) in zip(scene.instance_masks, scene.object_labels, scene.boxes, strict=True):
        expected[mask] = label + 1
        rows, columns = np.nonzero(mask)
        assert (rows.min(), rows.max() + 1) == (y0, y1)
        assert (columns.min(), columns.max() + 1) == (x0, x1)
    np.testing.assert_array_equal(scene.semantic_map, expected)


def test_a_scene_is_a_pure_function_of_seed_index_and_size() -> None:
    np.random.seed(0)
    first = make_scene(1, 5, 32)
    np.random.seed(1)
    make_scene(1, 6, 32)
    again, other_seed, other_index = make_scene(1, 5, 32), make_scene(2, 5, 32), make_scene(1, 15, 32)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.instance_masks, again.instance_masks)
    assert (first.image != other_seed.image).any()
    assert (first.image != other_index.image).any()


def test_a_scene_looks_the_same_at_another_size() -> None:
    small = np.stack([make_scene(0, index, 32).image for index in range(10)]).astype(float)
    large = np.stack([make_scene(0, index, 128).image for index in range(10)]).astype(float)
    shrunk = large.reshape(10, 3, 32, 4, 32, 4).mean(axis=(3, 5))
    assert np.abs(shrunk - small).mean() < 20
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.85


@pytest.mark.parametrize("index", range(20))
def test_the_main_object_is_large_enough_to_survive_a_crop(index: int) -> None:
    scene = make_scene(0, index, 64)
    x0, y0, x1, y1 = scene.boxes[-1]
    assert 0.15 < (x1 - x0) * (y1 - y0) / 64**2 < 0.9
    assert scene.instance_masks[-1].mean() > 0.04


@pytest.mark.parametrize("name", SHAPES)
def test_an_outline_is_closed_and_fills_its_circle(name: str) -> None:
    grid = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    inside = SHAPES[name](grid[None, :], grid[:, None]) < 0
    radius = np.hypot(grid[None, :], grid[:, None])
    assert not inside[radius > 1.15].any()
    assert 0.15 < inside.sum() / (radius < 1).sum() < 1


@pytest.mark.parametrize("pattern", range(len(PATTERNS)), ids=lambda i: PATTERNS[i].__name__)
def test_a_surface_stays_in_range(pattern: int) -> None:
    draws = np.random.default_rng(0)
    axis = np.linspace(0, 1, 40, dtype=np.float32)
    for _ in range(5):
        colours = surface(axis[:, None], axis[None, :], draws.random(48), Habit(pattern, 0.5))
        assert colours.shape == (3, 40, 40)
        assert colours.min() > -0.1
        assert colours.max() < 1.1


def test_colour_statistics_do_not_give_the_class_away() -> None:
    scenes = SceneSet(seed=0, count=700, size=32)
    images = np.stack([scene.image for scene in scenes]).reshape(700, 3, -1) / 255
    labels = np.arange(700) % len(CLASSES)
    features = np.concatenate([images.mean(axis=2), images.std(axis=2)], axis=1)
    distance = ((features[500:, None] - features[None, :500]) ** 2).sum(axis=2)
    nearest = labels[:500][np.argsort(distance, axis=1)[:, :20]]
    votes = np.stack([(nearest == label).sum(axis=1) for label in range(len(CLASSES))], axis=1)
    assert (votes.argmax(axis=1) == labels[500:]).mean() < 0.4


def test_muted_grounds_say_nothing_and_their_objects_lie_anywhere() -> None:
    drawn = {style: list(SceneSet(seed=0, count=60, size=48, style=style)) for style in (HABITATS, MUTED_GROUNDS)}

    def colourfulness(scenes: list[Scene]) -> float:
        spread = [np.ptp(scene.image.astype(float), axis=0)[scene.semantic_map == 0].mean() for scene in scenes]
        return float(np.mean(spread))

    def wandering(scenes: list[Scene]) -> float:
        boxes = np.stack([scene.boxes[-1] for scene in scenes])
        return float(((boxes[:, :2] + boxes[:, 2:]) / 2).std(axis=0).min())

    assert colourfulness(drawn[MUTED_GROUNDS]) < 0.7 * colourfulness(drawn[HABITATS])
    assert wandering(drawn[MUTED_GROUNDS]) > 1.3 * wandering(drawn[HABITATS])
    assert max(len(scene.object_labels) for scene in drawn[MUTED_GROUNDS]) == MUTED_GROUNDS.small + 1


def test_a_set_is_a_window_on_the_family() -> None:
    scenes = SceneSet(seed=4, count=20, size=16, start=30)
    assert len(scenes) == 20
    np.testing.assert_array_equal(scenes[2].image, make_scene(4, 32, 16).image)
    assert sorted(scene.label for scene in scenes) == sorted([*range(len(CLASSES))] * 2)
    with pytest.raises(IndexError):
        scenes[20]


def test_a_folder_holds_disjoint_balanced_splits_and_their_masks(tmp_path: Path) -> None:
    write_scene_folder(tmp_path, {"train": 20, "val": 10}, size=(16, 24), seed=1)
    assert sorted(folder.name for folder in (tmp_path / "train").iterdir()) == list(CLASSES)
    train, val = sorted((tmp_path / "train").rglob("*.png")), sorted((tmp_path / "val").rglob("*.png"))
    assert (len(train), len(val)) == (20, 10)
    assert not {path.name for path in train} & {path.name for path in val}
    for path in val:
        scene = make_scene(1, int(path.stem), (16, 24))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), scene.image.transpose(1, 2, 0))
        mask = tmp_path / "masks" / path.relative_to(tmp_path)
        np.testing.assert_array_equal(np.asarray(Image.open(mask)), scene.semantic_map)
        assert path.parent.name == CLASSES[scene.label]


def test_a_size_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match=r"8x64.*at least 16"):
        make_scene(0, 0, (8, 64))
