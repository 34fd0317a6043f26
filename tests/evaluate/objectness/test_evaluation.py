"""Objectness: chosen patches, components and boxes against slow definitions; a perfect and a blind backbone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from evaluate.coco_folders import coco_content, write_coco
from evaluate.fakes import FakeBackbone
from mst.data.sources.arrays import MemoryImages
from mst.data.synthetic.scenes import SceneSet
from mst.errors import DataError, UsageError
from mst.evaluate.coco.reading import find_coco, read_coco
from mst.evaluate.common.boxes import box_iou, largest_component_box
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.objectness.choosing import by_mass
from mst.evaluate.objectness.evaluation import ObjectnessProtocol, evaluate_objectness
from mst.evaluate.objectness.objects import ObjectSet, Truth, coco_objects, scene_objects
from mst.evaluate.objectness.pictures import picture_writer
from mst.evaluate.objectness.scores import centred
from mst.model.tokens import Tokens
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.results import read_jsonl
from reference.components import components

QUIET = FeatureSettings(precision="fp32", progress=False)


class Looking(FakeBackbone):
    """Importance is the brightness of a patch, to a power."""

    power = 8.0

    def tokens(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Tokens:
        tokens = super().tokens(images, mask)
        weights = (tokens.patches.mean(-1) + 3).clamp(min=1e-3) ** self.power
        return tokens._replace(importance=weights / weights.sum(1, keepdim=True))


class Blind(Looking):
    power = 0.0


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any),
    mass=st.floats(0.01, 1.0),
)
def test_by_mass_is_the_smallest_set_with_the_mass(values: list[int], mass: float) -> None:
    importance = torch.tensor(values, dtype=torch.float32)[None] / sum(values)
    chosen = by_mass(importance, mass).patches[0]
    ordered = sorted(values, reverse=True)
    # Where a partial sum meets the mass exactly, rounding may ask for one more or less.
    assume(all(abs(sum(ordered[:n]) - mass * sum(values)) > 1e-3 for n in range(1, len(values))))
    needed = next(n for n in range(1, len(values) + 1) if sum(ordered[:n]) >= mass * sum(values) - 1e-6)
    assert chosen.sum() == needed
    assert sum(np.asarray(values)[chosen]) == sum(ordered[:needed])


@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 9999), share=st.floats(0.2, 0.9))
def test_largest_component_is_that_of_the_slow_definition(height: int, width: int, seed: int, share: float) -> None:
    patches = np.random.default_rng(seed).random((height, width)) < share
    patches[0, 0] |= not patches.any()
    sizes = [len(part) for part in components(patches)]
    part = components(patches)[sizes.index(max(sizes))]
    rows, columns = [y for y, _ in part], [x for _, x in part]
    assert largest_component_box(patches) == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)


def test_box_iou() -> None:
    assert box_iou((0, 0, 4, 4), (2, 2, 6, 6)) == pytest.approx(4 / 28)
    assert box_iou((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert box_iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1


def squares(count: int = 3) -> ObjectSet:
    """A bright square of 8 px in 16 x 24 px, and a crowd on the right."""

    masks = np.zeros((count, 1, 16, 24), dtype=np.bool_)
    for index in range(count):
        masks[index, 0, 4:12, 4 * index : 4 * index + 8] = True

    def truth(index: int, size: tuple[int, int]) -> Truth:
        ignored = np.zeros(size, dtype=np.bool_)
        ignored[:, 20:] = True
        return masks[index], np.asarray([[4 * index, 4, 4 * index + 8, 12]], dtype=np.float64), ignored

    images = [torch.from_numpy(40 + 200 * mask).to(torch.uint8).expand(3, 16, 24) for mask in masks]
    return ObjectSet("squares", MemoryImages.of_tensors(images, "square"), truth)


def test_too_many_patches_are_refused_before_the_first_image() -> None:
    def unread(index: int, size: tuple[int, int]) -> Truth:
        raise AssertionError(f"image {index} was read")

    sizes, protocol = [(16, 24), (4 * 129, 4 * 128 + 1), (16, 24)], ObjectnessProtocol(method="spectral")
    data = replace(squares(), truth=unread, sizes=sizes)
    with pytest.raises(UsageError, match=r"^square 1 has 129 x 128 = 16512 patches: "):
        evaluate_objectness(Looking(), data, protocol, settings=QUIET)
    large = ObjectnessProtocol(method="spectral", size=(4 * 256, 4 * 256))
    with pytest.raises(UsageError, match=r"^every image has 256 x 256 = 65536 patches: "):
        evaluate_objectness(Looking(), data, large, settings=QUIET)
    assert data.evenly(2).sizes == sizes[:2]


def test_a_backbone_that_looks_at_the_objects_is_right() -> None:
    result = evaluate_objectness(Looking(), squares(), settings=QUIET)
    assert result.metrics["jaccard"] == pytest.approx(75.0)  # 3 of the 4 equal patches hold 60 % of the mass
    assert result.metrics["corloc"] == 100.0  # and their box is the square's
    assert result.metrics["jaccard_everything"] == pytest.approx(100 * 64 / 320)
    assert result.metrics["jaccard_se"] == pytest.approx(0.0)
    assert result.metrics["corloc_se"] > 0
    assert result.metrics["pointing"] == 100.0
    assert result.metrics["mass_inside"] > 99  # the square is four patches, so bright that no other counts
    assert result.metrics["mass_inside_even"] == pytest.approx(100 * 64 / 320)
    assert result.metrics["pointing_centre"] == pytest.approx(100 / 3)  # only the third square reaches it
    full = evaluate_objectness(Looking(), squares(), ObjectnessProtocol(mass=0.99), settings=QUIET)
    assert full.metrics["jaccard"] == full.metrics["best_jaccard"] == 100.0
    assert full.extra["chosen_area"] == pytest.approx(100 * 64 / 384)


def test_a_blind_backbone_is_not() -> None:
    result = evaluate_objectness(Blind(), squares(), ObjectnessProtocol(mass=1.0), settings=QUIET)
    assert result.metrics["jaccard"] == pytest.approx(result.metrics["jaccard_everything"])
    assert result.metrics["corloc"] == 0.0


def test_a_box_in_the_middle_has_the_area_that_was_chosen() -> None:
    result = evaluate_objectness(Looking(), squares(), ObjectnessProtocol(mass=0.99), settings=QUIET)
    # 64 of 384 pixels were chosen: 7 rows (of 16) and 10 columns (of 24) from (4, 7) on, the squares at 0, 4 and 8.
    inside = [7 * columns for columns in (1, 5, 8)]
    shares = [shared / (64 + 70 - shared) for shared in inside]
    assert result.metrics["jaccard_centre"] == pytest.approx(100 * np.mean(shares))
    assert result.metrics["jaccard_centre_se"] == pytest.approx(100 * np.std(shares, ddof=1) / math.sqrt(3))
    assert centred((5, 4), 1.0).all()
    assert centred((5, 4), 0.0).sum() == 1


def test_patch_tokens_find_what_colours_find_in_a_network_of_colours() -> None:
    found = evaluate_objectness(FakeBackbone(), squares(), ObjectnessProtocol(method="spectral"), settings=QUIET)
    assert found.task == "patch_objectness"
    assert {found.metrics[name] for name in ("jaccard", "best_jaccard", "corloc")} == {100.0}
    assert (found.metrics["jaccard_colour"], found.metrics["corloc_colour"]) == (100.0, 100.0)
    assert found.metrics["corloc_colour_se"] > 0
    assert found.extra["chosen_area"] == pytest.approx(100 * 64 / 384)
    assert "mass" not in found.protocol
    attention = evaluate_objectness(Looking(), squares(), settings=QUIET)
    assert (attention.task, attention.protocol["mass"]) == ("objectness", 0.6)
    assert not [name for name in attention.metrics if "colour" in name]


class Inverted(FakeBackbone):
    """Patch tokens tell the left from the right of an image, and nothing of its colours."""

    def tokens(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Tokens:
        tokens = super().tokens(images, mask)
        side = (torch.arange(len(tokens.patches[0])) % tokens.grid[1] >= tokens.grid[1] - 2).float()  # [N]
        return tokens._replace(patches=torch.stack((side, 1 - side), 1).expand(len(images), -1, -1))


def test_patch_tokens_that_know_no_objects_stay_below_colours() -> None:
    found = evaluate_objectness(Inverted(), squares(), ObjectnessProtocol(method="spectral"), settings=QUIET).metrics
    assert found["jaccard_colour"] == 100.0
    assert found["jaccard"] < 10
    assert found["corloc"] == 0


def test_ignored_pixels_count_for_nothing() -> None:
    item = squares().read(0)
    flooded = item.image.clone()
    flooded[:, :, 20:] = 240  # bright, but in the crowd
    data = ObjectSet("one", MemoryImages.of_tensors([flooded]), squares().truth)
    assert evaluate_objectness(Looking(), data, ObjectnessProtocol(mass=0.99), settings=QUIET).metrics["jaccard"] == 100


def test_coco_and_scenes(tmp_path: Path) -> None:
    objects = coco_objects(read_coco(*find_coco(write_coco(tmp_path), "train")))
    assert (len(objects), objects.without_objects) == (2, 1)
    first = objects.read(0)
    assert (len(first.masks), first.ignored.sum()) == (1, 14 * 8)
    result = evaluate_objectness(Looking(), objects, ObjectnessProtocol(mass=0.9), settings=QUIET)
    assert result.metrics["corloc"] == 100.0
    assert result.metrics["jaccard"] > 60
    scenes = scene_objects(SceneSet(0, 5, 32)).evenly(2)
    assert [scenes.name(index) for index in range(2)] == ["scene 0", "scene 2"]
    assert math.isfinite(evaluate_objectness(Looking(), scenes, settings=QUIET).metrics["jaccard"])


def test_boxes_without_masks_have_a_corloc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    for record in content["annotations"]:
        record["segmentation"] = []
    objects = coco_objects(read_coco(*find_coco(write_coco(tmp_path / "c", content), "train")))
    watch = picture_writer(Outputs(tmp_path / "p", "evaluate objectness", "--pictures"), 2)
    result = evaluate_objectness(Looking(), objects, ObjectnessProtocol(mass=0.9), settings=QUIET, watch=watch)
    assert set(result.metrics) == {"corloc", "corloc_se"}
    assert result.metrics["corloc"] == 100.0
    assert "objects have no masks, so that CorLoc is measured" in " ".join(capsys.readouterr().err.split())
    rows = read_jsonl(tmp_path / "p" / "scores.jsonl")
    assert [row["jaccard"] for row in rows] == [None, None]
    spectral = evaluate_objectness(FakeBackbone(), objects, ObjectnessProtocol(method="spectral"), settings=QUIET)
    assert set(spectral.metrics) == {"corloc", "corloc_se", "corloc_colour", "corloc_colour_se"}


def test_pictures(tmp_path: Path) -> None:
    watch = picture_writer(Outputs(tmp_path / "p", "evaluate objectness", "--pictures"), 2)
    evaluate_objectness(Looking(), squares(), settings=QUIET, watch=watch)
    assert sorted(path.name for path in (tmp_path / "p").glob("[!.]*")) == ["0000.png", "0001.png", "scores.jsonl"]
    rows = read_jsonl(tmp_path / "p" / "scores.jsonl")
    assert [row["picture"] for row in rows] == ["0000.png", "0001.png", None]
    assert rows[0]["box_iou"] == 1.0
    spectral = ObjectnessProtocol(method="spectral")
    watch = picture_writer(Outputs(tmp_path / "s", "evaluate objectness", "--pictures"), 1)
    evaluate_objectness(FakeBackbone(), squares(), spectral, settings=QUIET, watch=watch)
    with Image.open(tmp_path / "s" / "0000.png") as picture:
        glow = np.asarray(picture)[:, picture.width // 3 : 2 * picture.width // 3].mean(2)
    bright = glow > glow.max() / 2
    assert 0.1 < bright.mean() < 0.3  # the square, 64 of 384 pixels, drawn softly
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: name a folder"):
        Outputs(tmp_path / "file", "evaluate objectness", "--pictures")


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="--mass 0: must be above 0"):
        ObjectnessProtocol(mass=0)
    with pytest.raises(UsageError, match="--method colour: must be attention or spectral"):
        ObjectnessProtocol(method="colour")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"--mass 0\.5: only attention has a mass, --method spectral divides by a cut"):
        ObjectnessProtocol(method="spectral", mass=0.5)
    with pytest.raises(UsageError, match="--size 9 8: both must be multiples of the patch size 4"):
        evaluate_objectness(Looking(), squares(), ObjectnessProtocol(size=(9, 8)), settings=QUIET)
    with pytest.raises(UsageError, match="at least one image"):
        evaluate_objectness(Looking(), squares(0), settings=QUIET)
    looking = FakeBackbone()
    object.__setattr__(looking.spec, "name", "fake")
    with pytest.raises(UsageError, match="fake gives no importance"):
        evaluate_objectness(looking, squares(), settings=QUIET)


def test_too_many_unreadable_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    objects = coco_objects(read_coco(*find_coco(tmp_path, "train")))
    with pytest.raises(DataError, match="1 of 2 images cannot be read, at most 5%"):
        evaluate_objectness(Looking(), objects, settings=QUIET)
    tolerant = FeatureSettings(precision="fp32", progress=False, max_unreadable_share=0.5)
    assert len(evaluate_objectness(Looking(), objects, settings=tolerant).extra["unreadable"]) == 1
