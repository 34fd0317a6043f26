"""Masks of images without labels, by a trained segmenter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mst.data.decoding import read_image
from mst.data.sources import ImageSource
from mst.data.unreadable import LeftOut, each_readable, tell_left_out
from mst.errors import CheckpointError, MstError
from mst.evaluate.common.features import progress_bar
from mst.evaluate.common.model_files import kept_ranges
from mst.evaluate.detection.pictures import png
from mst.evaluate.segmentation.file import described_view, load_segmenter
from mst.evaluate.segmentation.inference import View, predict_mask
from mst.evaluate.segmentation.pictures import index_picture, sheet
from mst.export.reading import graph_in
from mst.export.segmenter import load_exported_segmenter
from mst.model.backbone import BackboneSpec
from mst.paths import user_path
from mst.runtime.device import Precision, select_device
from mst.runtime.storage.outputs import Outputs
from mst.workflows.prediction.inputs import PredictionInput

STEM = "segmenter"
"""Stem of an exported file."""
MASKS, PICTURES = "masks", "pictures"
"""Folders in `--out`."""


@dataclass(frozen=True)
class SegmentedImages:
    """What was written.

    Attributes:
        masks: the files, in the order of the images.
        shares: class -> its share of all pixels, in percent.
        unreadable: "name: reason" for each image left out.
    """

    masks: tuple[Path, ...]
    shares: dict[str, float]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class TrainedSegmenter:
    """A segmenter, saved by its training or exported.

    Attributes:
        network: normalised images [B, C, H, W] -> logits [B, K, h, w]; in evaluation mode, on its device.
        classes: names; class number = position.
        spec: of its backbone.
        view: how it looks at images.
        value_ranges: of its images (`mst.data.value_range`); None = not known.
    """

    network: nn.Module
    classes: tuple[str, ...]
    spec: BackboneSpec
    view: View
    value_ranges: dict[str, list[float]] | None


def load_trained(folder: Path, device: torch.device) -> TrainedSegmenter:
    """Return the segmenter of a folder, or of a graph that `mst export --model` wrote.

    Raises:
        CheckpointError: there is none, or a damaged one.
        MissingExtra: the program that computes it is not installed.
    """
    file = graph_in(folder, STEM)
    if file is None:
        saved = load_segmenter(folder, device)
        network = saved.segmenter
        return TrainedSegmenter(network, network.classes, network.backbone.spec, saved.view, saved.value_ranges)
    exported = load_exported_segmenter(file)
    spec = exported.backbone.spec
    try:
        view, ranges = described_view(exported.said, spec), kept_ranges(exported.backbone.metadata)
    except (MstError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; export it again") from error
    return TrainedSegmenter(exported.to(device), exported.classes, spec, view, ranges)


def predict_segmentation(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    picture_limit: int | None = None,
    limit: int | None = None,
    value_range: tuple[float, float] | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> SegmentedImages:
    """Segment every image under `data`; write a mask and a picture of each into `out`, in sub-folders as in `data`.

    Args:
        model: folder of a trained segmenter, or what `mst export --model` made of it.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: folder for `masks/` and `pictures/`; those of an earlier prediction are replaced, other files never.
        picture_limit: at most this many pictures; None = all.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of the network.
        progress: show a bar.

    Raises:
        UsageError: no such images, `out` is a file, or holds a file of an output's name that no prediction wrote.
        CheckpointError: no segmenter in `model`, or a damaged one.
        DataError: no image can be read.
        RunFailure: the disk refused.
    """
    given = PredictionInput(
        str(model), str(data), str(out), limit, value_range, device, precision, progress, picture_limit
    )
    return segment(given)


def segment(given: PredictionInput) -> SegmentedImages:
    """Do what `predict_segmentation` says."""
    outputs = Outputs(user_path(given.out), "predict segmentation", "--out")
    trained = load_trained(user_path(given.model), select_device(given.device, flag="--device"))
    classes, channels = trained.classes, trained.spec.channels
    source = given.images(channels)
    names, drawn = target_names(source, user_path(given.data)), given.pictures(source)
    outputs.check(Path(part, name) for name in names for part in ([MASKS, PICTURES] if drawn else [MASKS]))
    written: list[Path] = []
    left_out, pixels = LeftOut(len(source)), Counter[int]()
    scale = given.scale(source, channels, trained.value_ranges)
    read = partial(read_image, source, channels=channels, scale=scale)
    with torch.inference_mode(), progress_bar("segmenting", len(source), shown=given.progress) as advance:
        for index, image in each_readable(read, range(len(source)), left_out.add):
            advance(1)
            if image is None:
                continue
            name = names[index]
            mask = predict_mask(trained.network, image, trained.view, given.precision, str(name))  # [H,W]
            outputs.write(Path(MASKS, name), png(index_picture(mask, len(classes))), flush=False)
            if len(written) < drawn:
                outputs.write(Path(PICTURES, name), png(sheet(image, [mask], classes)), flush=False)
            written.append(outputs.folder / MASKS / name)
            pixels.update(dict(enumerate(torch.bincount(mask.flatten(), minlength=len(classes)).tolist())))
    tell_left_out(left_out.lines, len(source))
    shares = {name: 100 * pixels[index] / pixels.total() for index, name in enumerate(classes)}
    return SegmentedImages(tuple(written), shares, tuple(left_out.lines))


def target_names(source: ImageSource, data: Path) -> list[Path]:
    """Return a name relative to `--out` for each image, `.png` in place of its suffix, all different.

    Images of a folder keep their place below it. If two names would be equal (they differ in the suffix only, or come
    from a list), the later one gets a number.
    """
    root = data.absolute()
    names: list[Path] = []
    taken: set[Path] = set()
    numbers: Counter[Path] = Counter()
    for path in map(Path, map(source.name, range(len(source)))):
        place = path.relative_to(root) if root.is_dir() and path.is_relative_to(root) else Path(path.name)
        name = first = place.with_suffix(".png")
        while name in taken:
            numbers[first] += 1
            name = place.with_name(f"{place.stem}-{numbers[first] + 1}.png")
        taken.add(name)
        names.append(name)
    return names
