"""The value range of the images a backbone was trained on holds in every later command, or another is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mst
import mst.cli
from commands.calls import call
from mst.data.sources import ImageIndex, index_images
from mst.data.value_range import BY_TYPE, ValueRanges
from mst.errors import CheckpointError, UsageError
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.coco.reading import CocoImage, CocoSet
from mst.evaluate.common.features import FeatureSettings
from mst.model.backbone import Backbone
from mst.model.backbone_file import load_backbone, save_backbone
from mst.runtime.storage.results import Result
from mst.workflows.evaluation.segmentation import SegmentationOptions, _read
from mst.workflows.subject import ImageOptions, load_subject, prediction_scale

QUICK = ("--monitor.tensorboard", "false", "--runtime.precision", "fp32", "--runtime.workers", "0")


def write(folder: Path, count: int, top: int, dtype: Any = np.uint16, form: str = "png", *, low: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        share = np.random.default_rng(number).random((40, 40))
        share.flat[:2] = 0, 1
        values = np.rint(low + share * (top - low)).astype(dtype)
        Image.fromarray(values).save(folder / f"{number}.{form}")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 12 bits stored in 16."""
    root = tmp_path_factory.mktemp("range")
    images = write(root / "images", 16, 4095)
    words = ("pretrain", "debug", "--data.train", images, "--data.channels", 1, "--out", root / "run", *QUICK)
    assert mst.cli.main([str(word) for word in words]) == 0
    return root / "run"


def features(run: Path | Backbone, images: Path, **options: Any) -> torch.Tensor:
    return mst.embed(run, images, image=ImageOptions(**options)).features


def test_the_kept_range_is_used_for_other_images_of_the_kind(trained: Path, tmp_path: Path) -> None:
    dark = write(tmp_path / "dark", 6, 1000)
    as_trained = write(tmp_path / "grey", 6, round(1000 / 4095 * 255), np.uint8)
    far, near = features(trained, dark, value_range=(0, 1000)), features(trained, as_trained)
    found = features(trained, dark)
    assert (found - near).abs().max() < 0.2 * (far - near).abs().max()


def test_kinds_that_the_backbone_has_not_seen_are_measured(trained: Path, tmp_path: Path) -> None:
    wide = write(tmp_path / "wide", 6, 255, np.int32, "tif")
    plain = write(tmp_path / "plain", 6, 255, np.uint8, "tif")
    assert torch.equal(features(trained, wide), features(trained, plain))


def test_a_range_that_is_not_known_is_asked_for(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = write(tmp_path / "ct", 6, 3071, np.int32, "tif", low=-1024)
    words = ("embed", "--backbone", trained, "--data", scans, "--out", tmp_path / "a.npz")
    refused = call(capsys, *words)
    assert refused.status == 2
    assert "int32 pixels from -1024 to 3071" in refused.line
    assert "--value-range LO HI" in refused.line
    assert call(capsys, *words, "--value-range", -1024, 3071).status == 0
    for pair in ((1, 1), ("nan", 1), (3, 2)):
        refused = call(capsys, *words, "--value-range", *pair)
        assert refused.status == 2
        assert "--value-range" in refused.line


def test_images_outside_the_kept_range_are_left_out_with_the_reason(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bright = write(tmp_path / "bright", 4, 65535)
    refused = call(capsys, "embed", "--backbone", trained, "--data", bright, "--out", tmp_path / "a.npz")
    assert refused.status == 2
    assert "0 to 65535, outside the value range 0 to 4095" in refused.err
    assert "--value-range LO HI" in refused.err


def test_backbones_of_older_versions_decide_for_each_image(trained: Path, tmp_path: Path) -> None:
    backbone = load_backbone(trained)
    old = {key: value for key, value in backbone.metadata.items() if key != "value_ranges"}
    save_backbone(tmp_path / "old.safetensors", backbone, old)
    subject = load_subject(tmp_path / "old.safetensors")
    assert subject.known_ranges(None) is None
    assert subject.scale(index_images(write(tmp_path / "a", 2, 4095))) is BY_TYPE
    assert subject.known_ranges((0, 9)) == ValueRanges.given((0, 9))


@pytest.mark.parametrize("bad", [[1, 2], {"uint16": [1, 0]}, {"uint16": "a"}, {"float": [0, 1e40]}])
def test_damaged_ranges_are_refused(trained: Path, bad: Any, tmp_path: Path) -> None:
    backbone = load_backbone(trained)
    save_backbone(tmp_path / "a.safetensors", backbone, {**backbone.metadata, "value_ranges": bad})
    with pytest.raises(CheckpointError, match="value range"):
        features(tmp_path / "a.safetensors", write(tmp_path / "a", 2, 4095))


def test_fine_tuning_takes_it_over_and_keeps_it(trained: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            write(tmp_path / "data" / part / name, 4, 4000)
    words = ("finetune", "--data", tmp_path / "data", "--epochs", 1, "--batch-size", 4, "--workers", 0)
    assert mst.cli.main([str(word) for word in (*words, "--backbone", trained, "--out", tmp_path / "a")]) == 0
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert plan["value_ranges"] == {"uint16": [0, 4095]}
    assert load_backbone(tmp_path / "a").metadata["value_ranges"] == {"uint16": [0, 4095]}
    given = ("--backbone", trained, "--out", tmp_path / "b", "--value-range", 0, 5000)
    assert mst.cli.main([str(word) for word in (*words, *given)]) == 0
    assert load_backbone(tmp_path / "b").metadata["value_ranges"] == {"given": [0, 5000]}


def test_segmentation_and_objects_read_by_it(trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "images", 3, 1000)
    write(tmp_path / "masks", 3, 1, np.uint8)
    for part in ("train", "val"):
        (tmp_path / f"{part}.txt").write_text("0\n1\n2\n")
    (tmp_path / "classes.json").write_text('["a", "b"]')
    subject = load_subject(trained)
    data = _read(tmp_path, subject, SegmentationOptions())
    scale = data.val.scale
    assert scale == ValueRanges({"uint16": (0, 4095)})
    assert int(data.train.read(0)[0].max()) == 62
    given = _read(tmp_path, subject, SegmentationOptions(value_range=(0, 1000)))
    assert int(given.val.read(1)[0].max()) == 255
    image = CocoImage(1, ImageIndex.of([tmp_path / "images" / "0.png"]), 0, (40, 40), ())
    coco = CocoSet(tmp_path / "a.json", (), (), (image,), ()).with_scale(scale)
    assert int(coco.images[0].read(channels=1).max()) == 62


def in_row(result: Result) -> Any:
    return result.protocol.get("value_ranges")


def test_rows_name_the_ranges_of_their_images_and_no_others(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backbone of 12 bits on images of 12 and of 8 bits: other ranges are another measurement, 8 bits have none."""
    quick = FeatureSettings(progress=False, workers=1, precision="fp32")
    protocol = KnnProtocol(neighbors=(2,), headline=2)
    for bits, top, dtype in (("deep", 4000, np.uint16), ("plain", 250, np.uint8)):
        for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
            write(tmp_path / bits / place, 4 + number, top, dtype)

    def measured(bits: str, out: str, **options: Any) -> Result:
        image, place = ImageOptions(**options), tmp_path / out
        return mst.evaluate_knn(trained, tmp_path / bits, protocol=protocol, image=image, settings=quick, out=place)

    assert in_row(measured("deep", "one")) == {"uint16": [0, 4095]}
    assert in_row(measured("plain", "one")) is None
    assert in_row(measured("deep", "two", value_range=(0, 8000))) == {"given": [0, 8000]}
    assert in_row(measured("plain", "two")) is None
    table = call(capsys, "compare", tmp_path / "one", tmp_path / "two", "--json")
    lines = json.loads(table.out)["lines"]
    both = [line for line in lines if None not in line["values"]]
    assert [line["settings"]["data"] for line in both] == ["plain"]
    assert len(lines) == 3
    words = ("finetune", "--data", tmp_path / "deep", "--epochs", 1, "--batch-size", 4, "--workers", 0)
    assert call(capsys, *words, "--backbone", trained, "--out", tmp_path / "tuned").status == 0
    row = json.loads((tmp_path / "tuned" / "results.jsonl").read_text())
    assert row["protocol"]["value_ranges"] == {"uint16": [0, 4095]}


def test_a_segmentation_is_resumed_with_its_range_only(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "images", 6, 1000)
    write(tmp_path / "masks", 6, 1, np.uint8)
    (tmp_path / "train.txt").write_text("0\n1\n2\n3\n")
    (tmp_path / "val.txt").write_text("4\n5\n")
    (tmp_path / "classes.json").write_text('["a", "b"]')
    words = ("evaluate", "segmentation", "--backbone", trained, "--data", tmp_path, "--steps", 2, "--batch-size", 2)
    words += ("--train-backbone", "--checkpoints", tmp_path / "ck", "--no-progress", "--picture-limit", 0, "--json")
    first = call(capsys, *words, "--out", tmp_path / "out")
    assert first.status == 0, first.err
    assert json.loads(first.out)["protocol"]["value_ranges"] == {"uint16": [0, 4095]}
    kept = json.loads((tmp_path / "out" / "segmenter.json").read_text())["value_ranges"]
    assert kept == {"uint16": [0, 4095]}
    other = call(capsys, *words, "--value-range", 0, 1000)
    assert other.status == 2
    assert "holds a training with other value_ranges" in other.line
    assert call(capsys, *words).status == 0


def test_prediction_takes_the_range_of_training(tmp_path: Path) -> None:
    images = index_images(write(tmp_path / "a", 2, 1000))
    assert prediction_scale(images, 1, None, None) is BY_TYPE
    assert prediction_scale(images, 1, {"uint16": [0, 4095]}, None) == ValueRanges({"uint16": (0, 4095)})
    assert prediction_scale(images, 1, {}, None) == ValueRanges({"uint16": (0, 1023)})
    assert prediction_scale(images, 1, {}, (0, 1000)) == ValueRanges.given((0, 1000))
    with pytest.raises(UsageError, match="--value-range 2 1"):
        prediction_scale(images, 1, None, (2, 1))
