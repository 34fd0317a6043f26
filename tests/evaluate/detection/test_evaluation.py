"""Mask R-CNN on this package's backbones: equal to torchvision, learns, resumes exactly, says what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from evaluate.coco_folders import coco_content, write_coco, write_scenes
from mst.data.sampler import Share
from mst.data.synthetic.scenes import SceneSet
from mst.engine.schedule import Checkpointing
from mst.engine.supervised import TrainContext, fit
from mst.errors import CheckpointError, DataError, Interrupted, MstError, UsageError
from mst.evaluate.coco.masks import mask_of, read_segmentation
from mst.evaluate.coco.reading import CocoSet, find_coco, read_coco
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.detection import training as detection_training
from mst.evaluate.detection.detector import (
    DetectorShape,
    build_detector,
    check_proportions,
    find_objects,
    flipped,
    training_target,
)
from mst.evaluate.detection.evaluation import DetectionData, DetectionProtocol, detect, evaluate_detection
from mst.evaluate.detection.file import load_detector
from mst.evaluate.detection.metrics import Detection, coco_metrics, detection_records
from mst.evaluate.detection.training import (
    TrainingSettings,
    batch_stream,
    detector_optimizer,
    trainable_images,
)
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone
from mst.runtime.seeding import generator

QUIET = FeatureSettings(precision="fp32", progress=False)
TINY = DetectorShape(short_sides=(48, 64), long_side=96, channels=16, head_dim=32, anchor_size=8)
SHORT = DetectionProtocol(TrainingSettings(epochs=2, batch_size=1, lr=1e-3, warmup_steps=1), TINY)
VIT = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
WIDE = BackboneSpec("swin_tiny_patch4_window7_224", (96, 128), 3, 32, embed_dim=32, depth=2, num_heads=1)
SWIN = BackboneSpec("swin_tiny_patch4_window7_224", (64, 64), 3, 32, embed_dim=16, depth=1, num_heads=1)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> CocoSet:
    return read_coco(*find_coco(write_coco(tmp_path_factory.mktemp("coco")), "train"))


def vit() -> Backbone:
    return build_backbone(VIT, seed=1).eval()


@pytest.mark.parametrize("spec", [VIT, dataclasses.replace(VIT, patch_size=8), SWIN], ids=["16", "8", "swin"])
def test_pyramid_has_the_strides_and_trains(spec: BackboneSpec) -> None:
    pyramid = Pyramid(build_backbone(spec, seed=0), channels=8, frozen=False, compute=torch.float32)
    levels = pyramid(torch.randn(2, 3, 64, 96))
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        name: (2, 8, 64 // stride, 96 // stride)
        for name, stride in zip(["0", "1", "2", "3"], (4, 8, 16, 32), strict=True)
    } | {"pool": (2, 8, 1, 2)}
    torch.stack([level.square().sum() for level in levels.values()]).sum().backward()
    missing = [n for n, p in pyramid.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_swin_stages_end_in_its_tokens() -> None:
    backbone = build_backbone(SWIN, seed=0).eval()
    images = torch.randn(2, 3, 64, 96)
    stages: list[Tensor] = backbone.stages(images)  # type: ignore[operator]
    assert [stage.shape[1] for stage in stages] == [16, 32, 64, 128]
    tokens = backbone.tokens(images, importance=False)
    torch.testing.assert_close(stages[-1].flatten(2).transpose(1, 2), tokens.patches)


def test_a_frozen_backbone_gets_no_gradient_and_stays_in_evaluation_mode() -> None:
    pyramid = Pyramid(vit(), channels=8, frozen=True, compute=torch.bfloat16).train()
    assert not pyramid.backbone.training
    levels = pyramid(torch.randn(1, 3, 32, 32))
    assert all(level.dtype == torch.float32 for level in levels.values())
    levels["0"].sum().backward()
    assert all(p.grad is None for p in pyramid.backbone.parameters())
    assert pyramid.levels.levels[0][0].weight.grad is not None


def test_losses_and_boxes_are_torchvisions_own() -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        features = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        theirs = MaskRCNN(features, 3, min_size=64, max_size=96, image_mean=[0.4] * 3, image_std=[0.2] * 3)
        shape = DetectorShape(short_sides=(64,), long_side=96)
        ours = build_detector(copy.deepcopy(features), 2, shape, mean=[0.4] * 3, std=[0.2] * 3)
        ours.load_state_dict(theirs.state_dict())
        image, mask = torch.rand(3, 40, 60), torch.zeros(1, 40, 60, dtype=torch.uint8)
        mask[0, 10:30, 20:50] = 1
        target = {"boxes": torch.tensor([[20.0, 10, 50, 30]]), "labels": torch.tensor([2]), "masks": mask}
        found: list[Any] = []
        for model in (theirs, ours):
            torch.default_generator.manual_seed(1)
            losses = model.train()([image], [target])
            with torch.no_grad():
                model.roi_heads.score_thresh = 0.0
                found.append((losses, model.eval()([image])[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)
    assert len(found[0][1]["boxes"])


def test_targets_and_mirroring(coco: CocoSet) -> None:
    target = training_target(coco.images[0])  # a disc, and a crowd that is no target
    assert target["boxes"].tolist() == [[4, 2, 14, 10]]
    assert target["labels"].tolist() == [2]
    empty = training_target(coco.images[2])
    assert (empty["boxes"].shape, empty["masks"].shape) == ((0, 4), (0, 24, 32))
    image = coco.images[0].read()
    mirrored, turned = flipped(image, target)
    x0, y0, x1, y1 = turned["boxes"][0].int().tolist()
    assert turned["masks"][0, y0:y1, x0:x1].all()
    assert turned["masks"].sum() == target["masks"].sum()
    assert (mirrored[:, y0:y1, x0:x1] == 220).all()
    again, back = flipped(mirrored, turned)
    assert torch.equal(again, image)
    assert torch.equal(back["boxes"], target["boxes"])


@torch.no_grad()
def test_what_is_found_is_what_torchvision_finds(coco: CocoSet) -> None:
    pyramid = Pyramid(vit(), channels=16, frozen=False, compute=torch.float32)
    detector = build_detector(pyramid, 2, TINY, mean=[0.5] * 3, std=[0.5] * 3).eval()
    detector.roi_heads.score_thresh = 0.0
    image = coco.images[0]
    pixels = image.read().float() / 255
    theirs = detector([pixels])[0]
    found = find_objects(detector, image, pixels)
    assert len(found) == len(theirs["boxes"]) > 10
    assert {item.image_id for item in found} == {1}
    assert [item.label + 1 for item in found] == theirs["labels"].tolist()
    assert [item.score for item in found] == theirs["scores"].tolist()
    assert [list(item.box) for item in found] == theirs["boxes"].tolist()
    for item, mask in zip(found, theirs["masks"], strict=True):
        assert (mask_of(read_segmentation(item.mask, image.size)) == (mask[0] > 0.5).numpy()).all()


def test_layers_have_their_rates() -> None:
    pyramid = Pyramid(vit(), channels=16, frozen=False, compute=torch.float32)
    detector = build_detector(pyramid, 2, TINY, mean=[0.5] * 3, std=[0.5] * 3)
    optimizer = detector_optimizer(detector, TrainingSettings(layer_decay=0.5))
    assert sorted({group["scale"] for group in optimizer.param_groups}) == [0.125, 0.25, 0.5, 1.0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in detector.parameters() if p.requires_grad}
    assert all(p.ndim > 1 for group in optimizer.param_groups if group["weight_decay"] for p in group["params"])


def test_schedule() -> None:
    plan = TrainingSettings(epochs=12, batch_size=2, lr=1.0, warmup_steps=4).loop(10)
    assert (plan.steps, plan.warmup_steps) == (60, 4)
    assert TrainingSettings(epochs=2, batch_size=3).loop(10).warmup_steps == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_what_their_definition_says(coco: CocoSet, processes: int) -> None:
    images = trainable_images(coco)
    plan = TrainingSettings(epochs=4, batch_size=2).loop(len(images))
    shares = [
        batch_stream(images, plan, 1, channels=3, seed=5, workers=2, share=Share(rank, processes))
        for rank in range(processes)
    ]
    mirrored = []
    for step in range(1, plan.steps):
        parts = [next(share) for share in shares]
        assert [position for part in parts for position in part.positions] == [0, 1]
        found = [(index, *pair) for part in parts for index, pair in zip(part.indices, part.examples, strict=True)]
        for position, (index, pixels, target) in enumerate(found):
            epoch, place = divmod(2 * step + position, len(images))
            assert index == torch.randperm(len(images), generator=generator(5, "detection-order", epoch))[place]
            mirror = bool(torch.rand(len(images), generator=generator(5, "detection-flip", epoch))[place] < 0.5)
            mirrored.append(mirror)
            expected = images[index].read().float() / 255, training_target(images[index])
            expected = flipped(*expected) if mirror else expected
            assert torch.equal(pixels, expected[0])
            assert all(torch.equal(value, expected[1][key]) for key, value in target.items())
    assert set(mirrored) == {False, True}


def data_of(coco: CocoSet) -> DetectionData:
    return DetectionData(coco, coco)


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> CocoSet:
    content = coco_content()
    change(content)
    return read_coco(*find_coco(write_coco(folder, content), "train"))


def _other_ids(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 40, "name": "box"}, {"id": 9, "name": "unused"}, {"id": 3, "name": "disc"}]
    for record in content["annotations"]:
        record["category_id"] = {7: 3, 3: 40}[record["category_id"]]


def _subset(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 3, "name": "disc"}]
    content["annotations"] = [{**content["annotations"][0], "category_id": 3}]


def test_classes_are_matched_by_their_names(coco: CocoSet, tmp_path: Path) -> None:
    for name, change, ids in (("ids", _other_ids, (40, 3)), ("subset", _subset, (1, 3))):
        data = DetectionData(coco, changed(tmp_path / name, change))
        assert (data.val.classes, data.val.category_ids) == (("box", "disc"), ids)
        objects = [item for image in data.val.images for item in image.objects]
        assert objects[0].label == coco.images[0].objects[0].label == 1
        perfect = [
            Detection(image.id, item.label, 0.9, item.box, None)
            for image in data.val.images
            for item in image.objects
            if not item.crowd
        ]
        assert coco_metrics(data.val, perfect, masks=False)["ap_box"] == pytest.approx(100)
        swapped = [found._replace(label=1 - found.label) for found in perfect]
        assert coco_metrics(data.val, swapped, masks=False)["ap_box"] == 0


@pytest.mark.parametrize("bare", ["train", "val"])
def test_boxes_without_masks(coco: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], bare: str) -> None:
    def change(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            record["segmentation"] = None

    other = changed(tmp_path / "boxes", change)
    data = DetectionData(other, coco) if bare == "train" else DetectionData(coco, other)
    written: list[list[Detection]] = []
    result, found = evaluate_detection(
        vit(), data, SHORT, settings=QUIET, save_to=tmp_path / "model", watch=lambda *a: written.append(a[2])
    )
    assert "ap_box" in result.metrics
    assert not [name for name in result.metrics if name.endswith("_mask")]
    assert math.isfinite(result.extra["final_loss"])
    assert all(item.mask is None for item in found)
    assert "objects have no masks, so that boxes only are learnt and scored" in " ".join(
        capsys.readouterr().err.split()
    )
    detector, description = load_detector(tmp_path / "model")
    assert not description.masks
    assert detect(detector, data.val, channels=3, progress=False) == found
    assert all("segmentation" not in record for record in detection_records(found, data.val, kind="both"))


def test_the_backbone_stays_as_it_is_and_runs_repeat(coco: CocoSet) -> None:
    backbone = vit()
    before = copy.deepcopy(backbone.state_dict())
    result, found = evaluate_detection(backbone, data_of(coco), SHORT, settings=QUIET)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())
    assert result.extra["steps"] == 4
    assert result.extra["skipped_steps"] == 0
    assert {"ap_box", "ap50_box", "ap_mask"} <= set(result.metrics)
    again, also = evaluate_detection(backbone, data_of(coco), SHORT, settings=QUIET)
    assert (again, also) == (result, found)


def test_swin_patches_of_8_grey_images_and_bfloat16(coco: CocoSet) -> None:
    settings = FeatureSettings(precision="bf16", progress=False)
    for spec in (SWIN, dataclasses.replace(VIT, patch_size=8, channels=1)):
        backbone, grey = build_backbone(spec, seed=0).eval(), spec.channels == 1
        values = {"mean": (0.5,), "std": (0.5,)} if grey else {}
        result, _ = evaluate_detection(backbone, data_of(coco), SHORT, settings=settings, **values)
        assert result.extra["skipped_steps"] == 0
        assert math.isfinite(result.extra["final_loss"])


def test_an_interrupted_training_resumes_exactly(
    coco: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = evaluate_detection(vit(), data_of(coco), SHORT, settings=QUIET)
    saving = Checkpointing(str(tmp_path / "checkpoints"), 1)
    own = detection_training.read_example
    calls: list[int] = []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(detection_training, "read_example", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_detection(vit(), data_of(coco), SHORT, settings=QUIET, saving=saving)
    monkeypatch.setattr(detection_training, "read_example", own)
    resumed, also = evaluate_detection(vit(), data_of(coco), SHORT, settings=QUIET, saving=saving)
    assert (resumed, also) == (whole, found)
    other = dataclasses.replace(SHORT, training=dataclasses.replace(SHORT.training, lr=0.5))
    with pytest.raises(UsageError, match="holds a training with other lr: name another folder"):
        evaluate_detection(vit(), data_of(coco), other, settings=QUIET, saving=saving)
    with pytest.raises(UsageError, match="holds a training with other weights: name another folder"):
        evaluate_detection(build_backbone(VIT, seed=2), data_of(coco), SHORT, settings=QUIET, saving=saving)


def test_a_signal_saves_and_says_how_to_go_on(coco: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = detection_training.read_example

    def signalled(*arguments: Any) -> Any:
        import signal

        signal.raise_signal(signal.SIGTERM)
        return own(*arguments)

    monkeypatch.setattr(detection_training, "read_example", signalled)
    saving = Checkpointing(str(tmp_path / "c"), 100)
    with pytest.raises(Interrupted, match="stopped at step 1 of 4; all is saved: the same command goes on"):
        evaluate_detection(vit(), data_of(coco), SHORT, settings=QUIET, saving=saving)
    assert (tmp_path / "c" / "step_1").is_dir()


def test_a_saved_detector_finds_the_same(coco: CocoSet, tmp_path: Path) -> None:
    training = TrainingSettings(epochs=1, batch_size=2, accumulate=2, drop_path=0.2, frozen=True)
    swin = build_backbone(SWIN, seed=0).eval()
    result, found = evaluate_detection(
        swin, data_of(coco), DetectionProtocol(training, TINY), settings=QUIET, save_to=tmp_path / "new" / "model"
    )
    assert (result.extra["steps"], result.protocol["drop_path"]) == (1, 0.2)
    detector, description = load_detector(tmp_path / "new" / "model")
    assert (description.classes, description.category_ids, description.shape) == (("box", "disc"), (3, 7), TINY)
    assert description.spec == SWIN
    assert detect(detector, coco, channels=3, progress=False) == found
    file = tmp_path / "new" / "model" / "detector.json"
    values = json.loads(file.read_text())
    for changed, message in (
        ({"classes": ["box"]}, "1 classes and 2 category ids"),
        ({"classes": ["box"], "category_ids": [3]}, r"detector\.safetensors does not fit its description"),
        ({"format": 2}, "format 2, this version reads 1"),
        ({"shape": {}}, r"cannot read .*detector\.json"),
        ({"spec": {}}, r"cannot read .*detector\.json"),
    ):
        file.write_text(json.dumps({**values, **changed}))
        with pytest.raises(CheckpointError, match=message):
            load_detector(file.parent)
    file.write_text(json.dumps(values))
    (file.parent / "detector.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"cannot read .*detector\.safetensors"):
        load_detector(file.parent)
    with pytest.raises(CheckpointError, match=r"has no detector\.json: give the --save-model"):
        load_detector(tmp_path)
    with pytest.raises(UsageError, match=r"--save-model .*detector\.json is a file"):
        evaluate_detection(swin, data_of(coco), SHORT, settings=QUIET, save_to=file)


def test_awkward_boxes_and_images(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [30, 2, 1e-6, 8]  # float32 cannot tell its sides apart
    content["annotations"][2]["bbox"] = [32.5, 8, 1, 4]  # beside its image, within the tolerance
    coco = read_coco(*find_coco(write_coco(tmp_path, content), "train"))
    assert [len(training_target(image)["boxes"]) for image in coco.images] == [0, 0, 0]
    result, _ = evaluate_detection(vit(), data_of(coco), SHORT, settings=QUIET)
    assert math.isfinite(result.extra["final_loss"])
    narrow = dataclasses.replace(coco.images[1], size=(1, 4000))
    with pytest.raises(DataError, match=r"b\.png: 1x4000 \(H x W\) is too narrow for --long-side 96"):
        check_proportions(narrow, TINY)


def test_bad_steps_are_skipped_and_too_many_end_it(coco: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {"loss": self.weight.sum() * math.nan}

    model = Bad()
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "scale": 1.0}])
    settings = TrainingSettings(epochs=20, batch_size=1)
    context = TrainContext(torch.device("cpu"), torch.float32, 0, Checkpointing(), {}, progress=False)
    with pytest.raises(MstError, match="11 steps in succession"):
        fit(
            *detection_training.detector_training(
                model, optimizer, trainable_images(coco), settings, context, channels=3, workers=1
            )
        )
    assert torch.equal(model.weight, torch.ones(2))


def test_what_is_refused(coco: CocoSet, tmp_path: Path) -> None:
    odd = build_backbone(dataclasses.replace(VIT, patch_size=14, image_size=(28, 28)), seed=0)
    with pytest.raises(UsageError, match="tokens of 14 px: detection needs patches of 4, 8, 16 or 32"):
        evaluate_detection(odd, data_of(coco), SHORT, settings=QUIET)
    for name, hint in (("ring", ""), ("Disc ", r" \(names count letter by letter: it has disc\)")):
        other = dataclasses.replace(coco, classes=("box", name))
        with pytest.raises(
            DataError, match=rf"1 objects are of categories that .* lacks \(1, the first: {name.strip()}.*{hint}"
        ):
            DetectionData(coco, other)
    nothing = dataclasses.replace(coco, images=coco.images[2:])
    with pytest.raises(DataError, match="no image has an object to be found, so there is nothing to score"):
        DetectionData(coco, nothing)
    with pytest.raises(DataError, match="no image has an object to learn from"):
        trainable_images(nothing)
    for wrong, message in (
        (lambda: TrainingSettings(epochs=0), "--epochs 0: must be at least 1"),
        (lambda: TrainingSettings(layer_decay=0), "--layer-decay 0: must be above 0"),
        (lambda: TrainingSettings(warmup_steps=-4), "--warmup-steps -4: must be at least 0"),
        (lambda: TrainingSettings(drop_path=1), "--drop-path 1: must be at least 0 and below 1"),
        (lambda: TrainingSettings(accumulate=17), "--accumulate 17: must be at most --batch-size 16"),
        (lambda: DetectorShape(short_sides=(8,)), "--short-sides 8: must be at least 32"),
        (lambda: DetectorShape(anchor_size=10**9), "--anchor-size 1000000000: must be at most 4096"),
        (lambda: Checkpointing("x", 0), "--checkpoint-every 0"),
    ):
        with pytest.raises(UsageError, match=message):
            wrong()
    (tmp_path / "step_1").mkdir()
    with pytest.raises(CheckpointError, match="none of 1 checkpoints can be used"):
        evaluate_detection(vit(), data_of(coco), SHORT, settings=QUIET, saving=Checkpointing(str(tmp_path)))
    write_coco(tmp_path / "d", coco_content())
    (tmp_path / "d" / "images" / "c.png").write_bytes(b"x")
    broken = read_coco(*find_coco(tmp_path / "d", "train"))
    with pytest.raises(DataError, match=r"an annotated image cannot be read: .*c\.png"):
        evaluate_detection(vit(), DetectionData(coco, broken), SHORT, settings=QUIET)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_learns_ten_images_by_heart(tmp_path: Path) -> None:
    coco = read_coco(*find_coco(write_scenes(tmp_path, SceneSet(0, 10, (96, 128))), "train"))
    training = TrainingSettings(epochs=60, batch_size=2, lr=1e-3, warmup_steps=20, layer_decay=1.0)
    shape = DetectorShape(short_sides=(96,), long_side=128, channels=48, head_dim=128, anchor_size=8)
    backbone = build_backbone(WIDE, seed=0, init="xavier_uniform").eval()
    result, _ = evaluate_detection(backbone, data_of(coco), DetectionProtocol(training, shape), settings=QUIET)
    # seeds 0, 1, 2 gave 68, 75, 100 with the lean Swin blocks and 97, 88, 88 with timm's own: rounding decides it
    assert result.metrics["ap50_box"] > 60
    assert result.metrics["ap50_mask"] > 60
