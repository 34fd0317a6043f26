"""Training of segmenters: loss against its definition, batches, rates, learning, resumption, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluate.segmenters import striped, striped_data, swin, vit
from mst.data.sampler import Share
from mst.engine.schedule import Checkpointing, LoopSettings
from mst.errors import CheckpointError, DataError, Interrupted, UsageError
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.segmentation import training as segmentation_training
from mst.evaluate.segmentation.augment import Augmentation
from mst.evaluate.segmentation.data import NO_CLASS, SegmentationData, SegmentationSet
from mst.evaluate.segmentation.evaluation import SegmentationProtocol, evaluate_segmentation
from mst.evaluate.segmentation.file import load_segmenter, save_segmenter
from mst.evaluate.segmentation.heads import HeadName, HeadShape
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.evaluate.segmentation.training import (
    Batch,
    HeadTraining,
    Task,
    batch_stream,
    class_weights,
    pixel_loss,
    segmentation_loss,
    segmenter_optimizer,
)
from mst.model.backbone import Backbone
from mst.runtime.storage.results import Result

CPU = torch.device("cpu")
QUIET = FeatureSettings(forward_batch=3, workers=2, precision="fp32", progress=False)
GENTLE = Augmentation(scales=(1.0, 1.25), max_class_share=1.0)


def protocol(head: HeadName = "setr-naive", *, steps: int = 40, **training: Any) -> SegmentationProtocol:
    return SegmentationProtocol(
        size=(32, 48),
        steps=steps,
        batch_size=4,
        lr=0.02,
        loss_stride=2,
        shape=HeadShape(head, 8),
        training=HeadTraining(**training),
        augmentation=GENTLE,
    )


def run(settings: SegmentationProtocol, backbone: Backbone | None = None, **more: Any) -> Result:
    return evaluate_segmentation(backbone or vit(), striped_data(void=9), settings, settings=QUIET, **more)


@pytest.mark.parametrize("weighted", [False, True])
def test_pixel_loss_is_the_mean_over_the_known_pixels(weighted: bool) -> None:
    logits = torch.randn(2, 3, 5, 4)
    target = torch.randint(-1, 3, (2, 5, 4))
    weights = torch.tensor([1.0, 0.0, 2.5]) if weighted else None
    total = count = 0.0
    for b, y, x in (target != NO_CLASS).nonzero().tolist():
        label = int(target[b, y, x])
        factor = float(weights[label]) if weights is not None else 1.0
        total -= factor * float(logits[b, :, y, x].log_softmax(0)[label])
        count += factor
    assert float(pixel_loss(logits, target, weights)) == pytest.approx(total / count, rel=1e-5)
    assert float(pixel_loss(logits, torch.full_like(target, NO_CLASS), weights)) == 0.0


class TwoHeads(nn.Module):
    """Logits that are given."""

    def __init__(self, logits: list[Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def all_logits(self, images: Tensor) -> list[Tensor]:
        return self.logits


def test_auxiliary_losses_count_four_tenths() -> None:
    logits = [torch.randn(1, 2, 8, 8), torch.randn(1, 2, 2, 2)]
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.randint(0, 2, (1, 8, 8)), [0], range(1))
    parts = [float(segmentation_loss(TwoHeads([part]), batch, 1, None, CPU)) for part in logits]
    both = float(segmentation_loss(TwoHeads(logits), batch, 1, None, CPU))
    assert both == pytest.approx(parts[0] + 0.4 * parts[1], rel=1e-5)


def task(batch_size: int = 4, steps: int = 6, accumulate: int = 1) -> Task:
    view = View((32, 32), (16, 16), (0.5,) * 3, (0.5,) * 3)
    loop = LoopSettings(steps=steps, batch_size=batch_size, lr=0.1, accumulate=accumulate)
    return Task(striped_data(), view, loop, 0.01, 1, augmentation=Augmentation())


def test_batches_depend_on_their_step_alone() -> None:
    whole, later = list(batch_stream(task(), 0, seed=3)), list(batch_stream(task(), 4, seed=3))
    assert len(whole) == 6
    for a, b in zip(whole[4:], later, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.masks, b.masks)
    halves = list(batch_stream(task(accumulate=2), 4, seed=3))
    assert torch.equal(torch.cat([part.images for part in halves[:2]]), whole[4].images)
    other = next(batch_stream(task(), 0, seed=4))
    assert not torch.equal(other.images, whole[0].images)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 3), (2, 1), (3, 1)])
def test_processes_share_a_batch(processes: int, accumulate: int) -> None:
    whole = list(batch_stream(task(), 0, seed=3))
    shares = [
        batch_stream(task(accumulate=accumulate), 0, 3, share=Share(rank, processes)) for rank in range(processes)
    ]
    for step in whole:
        parts = sorted(
            (next(share) for share in shares for _ in range(accumulate)), key=lambda part: part.positions.start
        )
        assert [place for part in parts for place in part.positions] == list(step.positions) == list(range(4))
        assert [index for part in parts for index in part.indices] == list(step.indices)
        assert torch.equal(torch.cat([part.images for part in parts]), step.images)
        assert torch.equal(torch.cat([part.masks for part in parts]), step.masks)


def test_rates_of_head_and_backbone() -> None:
    settings = replace(task(), training=HeadTraining(train_backbone=True, backbone_scale=0.1, layer_decay=0.5))
    segmenter = Segmenter(vit(), ("a", "b"), HeadShape("setr-naive", 8), frozen=False, seed=0)
    optimizer = segmenter_optimizer(segmenter, settings)
    scale = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: scale.get(id(p)) for name, p in segmenter.named_parameters()}
    assert named["head.main.classify.weight"] == 1.0
    last, first = (named[f"backbone.model.blocks.{block}.mlp.fc1.weight"] for block in (1, 0))
    assert last is not None
    assert first is not None
    assert last <= 0.1
    assert first == pytest.approx(0.5 * last)
    assert named["backbone.mask_token"] is None
    frozen = Segmenter(vit(), ("a", "b"), HeadShape("setr-naive", 8), frozen=True, seed=0)
    held = {id(p) for group in segmenter_optimizer(frozen, settings).param_groups for p in group["params"]}
    assert not held & {id(p) for p in frozen.backbone.parameters()}


@pytest.mark.parametrize(
    ("head", "backbone", "trained"),
    [("linear", vit, True), ("setr-naive", vit, False), ("setr-pup", vit, True), ("upernet", swin, False)],
)
def test_learns_stripes(head: HeadName, backbone: Callable[[], Backbone], trained: bool) -> None:
    network = backbone()
    before = [p.clone() for p in network.parameters()]
    settings = replace(protocol(head, train_backbone=trained), size=(32, 64))
    result = run(settings, network)
    assert result.task == "segmentation"
    assert result.metrics["aacc"] > 85
    assert (result.extra["steps"], result.extra["skipped_steps"]) == (40, 0)
    assert all(map(torch.equal, before, network.parameters()))
    assert all(p.requires_grad for p in network.parameters())


def test_windows_weights_and_sgd() -> None:
    settings = replace(
        protocol("setr-naive", optimizer="sgd", clip_norm=None),
        stride=(16, 24),
        size=(32, 32),
        class_weights=(1.0, 2.0),
        lr=0.1,
    )
    result = run(settings)
    assert result.metrics["aacc"] > 85
    assert result.protocol["stride"] == (16, 24)
    assert result.protocol["class_weights"] == (1.0, 2.0)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = protocol("setr-pup", steps=6, train_backbone=True)
    saved: dict[str, dict[str, Tensor]] = {}

    def keep(name: str) -> Callable[[Segmenter, View], None]:
        def store(segmenter: Segmenter, view: View) -> None:
            saved[name] = {key: value.clone() for key, value in segmenter.state_dict().items()}

        return store

    whole = run(settings, trained=keep("whole"))
    folder = Checkpointing(str(tmp_path / "c"), checkpoint_every=2)
    original, calls = segmentation_training.segmentation_loss, []

    def stops(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise Interrupted("power cut", 15)
        return original(*arguments)

    monkeypatch.setattr(segmentation_training, "segmentation_loss", stops)
    with pytest.raises(Interrupted, match="power cut"):
        run(settings, saving=folder)
    monkeypatch.undo()
    resumed = run(settings, saving=folder, trained=keep("resumed"))
    assert resumed.metrics == whole.metrics
    assert all(torch.equal(saved["whole"][key], value) for key, value in saved["resumed"].items())
    with pytest.raises(UsageError, match="holds a training with other seed"):
        run(settings, saving=folder, seed=1)
    with pytest.raises(UsageError, match="holds a training with other max_class_share"):
        run(replace(settings, augmentation=Augmentation((1.0, 1.25), 0.5)), saving=folder)


def test_saved_segmenters_say_the_same(tmp_path: Path) -> None:
    def save(segmenter: Segmenter, view: View) -> None:
        save_segmenter(tmp_path / "m", segmenter, view)
        images = torch.randn(1, 3, 32, 48)
        loaded = load_segmenter(tmp_path / "m", CPU)
        assert (loaded.view, loaded.segmenter.classes) == (view, segmenter.classes)
        with torch.no_grad():
            torch.testing.assert_close(loaded.segmenter(images), segmenter.eval()(images), rtol=0, atol=0)

    run(protocol(steps=2), trained=save)
    run(SegmentationProtocol(size=(32, 48), steps=2), trained=save)
    with pytest.raises(CheckpointError, match=r"has no segmenter.json: give the --save-model"):
        load_segmenter(tmp_path, CPU)
    description = tmp_path / "m" / "segmenter.json"
    description.write_text(description.read_text().replace('"dark"', '"dim", "dark"'))
    with pytest.raises(CheckpointError, match=r"segmenter.safetensors does not fit its description"):
        load_segmenter(tmp_path / "m", CPU)
    description.write_text("{}")
    with pytest.raises(CheckpointError, match=r"cannot read .*segmenter.json"):
        load_segmenter(tmp_path / "m", CPU)


def test_bad_pairs_stop_the_training_with_their_name() -> None:
    good = striped(2)
    for mask, message in ((torch.full((32, 48), 5), "5 is no class of 0..1"), (torch.zeros(8, 8), "differ")):
        wrong = SegmentationSet.from_tensors([good.read(0)[0]], [mask])
        for sets in ((wrong, good), (good, wrong)):
            with pytest.raises(DataError, match=f"image 0: .*{message}"):
                evaluate_segmentation(vit(), SegmentationData(("a", "b"), *sets), protocol(steps=1), settings=QUIET)
    nothing = SegmentationSet.from_tensors([], [])
    with pytest.raises(UsageError, match="at least one training and one validation image"):
        evaluate_segmentation(vit(), SegmentationData(("a", "b"), good, nothing), protocol(), settings=QUIET)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--class-weights has 3 numbers: give one for each of the 2 classes"):
        class_weights((1, 1, 1), 2)
    with pytest.raises(UsageError, match="--head upernet: a microbatch of 1 image has no statistics for batch norm"):
        SegmentationProtocol(batch_size=2, shape=HeadShape("upernet"), training=HeadTraining(accumulate=2))
    with pytest.raises(UsageError, match=r"--lr 0\.0: must be above 0"):
        SegmentationProtocol(lr=0.0)
    with pytest.raises(UsageError, match="--layer-decay"):
        HeadTraining(layer_decay=0.0)
    with pytest.raises(UsageError, match="--accumulate 0: must be at least 1"):
        HeadTraining(accumulate=0)
