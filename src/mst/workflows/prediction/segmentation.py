"""Masks of images without labels, by a trained segmenter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mst.data.decoding import read_image
from mst.data.sources import ImageSource
from mst.data.unreadable import LeftOut, each_readable, tell_left_out
from mst.evaluate.common.features import progress_bar
from mst.evaluate.detection.pictures import png
from mst.evaluate.segmentation.file import load_segmenter
from mst.evaluate.segmentation.inference import predict_mask
from mst.evaluate.segmentation.pictures import index_picture, sheet
from mst.paths import user_path
from mst.runtime.device import Precision, select_device
from mst.runtime.storage.outputs import Outputs
from mst.workflows.prediction.inputs import PredictionInput

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
        model: folder of a trained segmenter.
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
    saved = load_segmenter(user_path(given.model), select_device(given.device, flag="--device"))
    classes, channels = saved.segmenter.classes, saved.segmenter.backbone.spec.channels
    source = given.images(channels)
    names, drawn = target_names(source, user_path(given.data)), given.pictures(source)
    outputs.check(Path(part, name) for name in names for part in ([MASKS, PICTURES] if drawn else [MASKS]))
    written: list[Path] = []
    left_out, pixels = LeftOut(len(source)), Counter[int]()
    scale = given.scale(source, channels, saved.value_ranges)
    read = partial(read_image, source, channels=channels, scale=scale)
    with torch.inference_mode(), progress_bar("segmenting", len(source), shown=given.progress) as advance:
        for index, image in each_readable(read, range(len(source)), left_out.add):
            advance(1)
            if image is None:
                continue
            name = names[index]
            mask = predict_mask(saved.segmenter, image, saved.view, given.precision, str(name))  # [H,W]
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
