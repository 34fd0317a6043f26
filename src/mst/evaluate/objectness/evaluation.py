"""Objects from a backbone without training: the patches it chooses against object masks and boxes.

Sources: the Jaccard of DINO (Caron et al. 2021, section 4.2.2 and appendix) and the CorLoc of LOST (Simeoni et al.
2021, section 4: the box of the largest connected component, right where its IoU with some object's box is at least
0.5); how patches are chosen: `choosing`. Differs from DINO: importance is the mean over heads (DINO takes the best head
of each image), and the truth is the union of all objects of any class.
Letters: N = h*w patch tokens, H W pixels, M objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mst.data.unreadable import LeftOut, each_readable, tell_left_out
from mst.errors import UsageError
from mst.evaluate.common.features import FeatureSettings, forward_batch, frozen, progress_bar, used_precision
from mst.evaluate.common.finite import check_finite
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, fitting_size, squash
from mst.evaluate.common.uncertainty import mean_se
from mst.evaluate.objectness.choosing import Choice, by_cut, by_mass, check_count
from mst.evaluate.objectness.objects import ObjectImage, ObjectSet
from mst.evaluate.objectness.scores import ImageScore, Patches, score_image
from mst.runtime.limits import check_numbers
from mst.runtime.noise import accuracy_se
from mst.runtime.storage.results import Result

if TYPE_CHECKING:
    from mst.model.backbone import Backbone

Method = Literal["attention", "spectral"]
MASS = 0.6
"""DINO's share of the importance."""
TASKS: dict[Method, str] = {"attention": "objectness", "spectral": "patch_objectness"}
"""Method -> task of its row."""

MEANS = (
    "jaccard",
    "best_jaccard",
    "jaccard_everything",
    "jaccard_centre",
    "jaccard_colour",
    "mass_inside",
    "mass_inside_even",
)
"""Numbers of an image whose mean over images is reported."""
SHARES = {
    "corloc": "box_iou",
    "corloc_colour": "box_iou_colour",
    "pointing": "pointing",
    "pointing_centre": "pointing_centre",
}
"""Metric -> number of an image; reported is the share of images where it is right: true, or an IoU that is enough."""


@dataclass(frozen=True)
class ObjectnessProtocol:
    """Settings of the objectness evaluation that change its numbers.

    Attributes:
        mass: share of the importance that the chosen patches hold; none = 0.6. Of `--method attention` only.
        size: (H, W) every image is resized to; None = its own, each side to the nearest multiple of the patch.
        corloc_iou: a box is right from this IoU on.
        method: what chooses patches: attention (the fewest that hold a share of it), or spectral (the smaller side of a
            cut between patch tokens).
    """

    mass: float | None = None
    size: tuple[int, int] | None = None
    corloc_iou: float = 0.5
    method: Method = "attention"

    def __post_init__(self) -> None:
        check_numbers(self, "mass", "corloc_iou", above=0, most=1)
        if self.method not in TASKS:
            raise UsageError(f"--method {self.method}: must be attention or spectral")
        if self.method == "spectral" and self.mass is not None:
            raise UsageError(f"--mass {self.mass}: only attention has a mass, --method spectral divides by a cut")

    @property
    def task(self) -> str:
        """Name of the row's task, and of its folder of pictures."""
        return TASKS[self.method]

    @property
    def share(self) -> float:
        """Share of the importance that the chosen patches hold."""
        return MASS if self.mass is None else self.mass

    def row(self) -> dict[str, object]:
        """Return the settings that this method has."""
        own = {"mass": self.share} if self.method == "attention" else {}
        return {**own, "size": list(self.size) if self.size else None, "corloc_iou": self.corloc_iou}


Watcher = Callable[[ObjectImage, Choice, ImageScore], None]
"""Called with each image, what was chosen in it and the score: for pictures."""


def evaluate_objectness(
    backbone: Backbone,
    objects: ObjectSet,
    protocol: ObjectnessProtocol | None = None,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    settings: FeatureSettings | None = None,
    watch: Watcher | None = None,
) -> Result:
    """Score the patches that the backbone chooses in every image against its objects; nothing is trained.

    Returns:
        Result with `jaccard`, `best_jaccard` and `corloc` in percent, means over images with their standard errors
        (`_se`), and beside them the numbers to stay above: `jaccard_everything` of choosing the whole image,
        `jaccard_centre` of a box in the middle, which in each image has the area that was chosen, and with
        `--method spectral` `jaccard_colour` and `corloc_colour` of the same cut between the mean colours of the
        patches. Of attention also `pointing` and `mass_inside`, with `pointing_centre` and `mass_inside_even` beside
        them (see `Pointing`). Of objects without masks there are `corloc` and `corloc_colour` only.

    Raises:
        UsageError: a size that is no multiple of the patch, no images, no importance, or more patches than a cut takes.
        DataError: an image does not fit its annotations, or too many are unreadable.
    """
    protocol, settings = protocol or ObjectnessProtocol(), settings or FeatureSettings()
    if len(objects) == 0:
        raise UsageError("objectness needs at least one image with an object")
    size, patch = protocol.size, backbone.patch_size
    if size is not None and (min(size) < patch or size[0] % patch or size[1] % patch):
        raise UsageError(f"--size {size[0]} {size[1]}: both must be multiples of the patch size {patch}")
    if protocol.method == "spectral":
        _check_cuts(objects, size, patch)
    scores, unreadable = _score_all(backbone, objects, protocol, settings, mean=mean, std=std, watch=watch)
    return Result(
        task=protocol.task,
        metrics=_metrics(scores, protocol.corloc_iou),
        protocol={
            **protocol.row(),
            "data": objects.title,
            "mean": mean,
            "std": std,
            "precision": used_precision(settings, backbone),
        },
        extra={
            "val_images": len(scores),
            "without_objects": objects.without_objects,
            "left_out": dict(objects.annotations.left_out) if objects.annotations else {},
            "turned_by_exif": dict(objects.annotations.frames) if objects.annotations else {},
            "chosen_area": _percent([score.area for score in scores]),
            "unreadable": unreadable,
        },
    )


def _check_cuts(objects: ObjectSet, size: tuple[int, int] | None, patch: int) -> None:
    """Refuse the first image that has more patches than a cut takes, before the work begins.

    Raises:
        UsageError: names it.
    """
    sizes = [size] if size is not None else objects.sizes or ()
    for index, (height, width) in enumerate(fitting_size(each, patch) for each in sizes):
        check_count((height // patch, width // patch), "every image" if size else objects.name(index))


def _score_all(
    backbone: Backbone,
    objects: ObjectSet,
    protocol: ObjectnessProtocol,
    settings: FeatureSettings,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    watch: Watcher | None,
) -> tuple[list[ImageScore], list[str]]:
    """Return the score of every image, and the unreadable images."""
    scores: list[ImageScore] = []
    left_out = LeftOut(len(objects), settings.max_unreadable_share)
    each = each_readable(objects.read, range(len(objects)), left_out.add, workers=settings.workers)
    with frozen(backbone), progress_bar("objectness", len(objects), shown=settings.progress) as advance:
        for index, item in each:
            if item is not None:
                name = objects.name(index)
                size = protocol.size or fitting_size(item.image.shape[-2:], backbone.patch_size)
                transform = ImageTransform(size, mean, std)
                image = squash(item.image, transform)  # [C, H, W]
                choice, by_colour = _choose(backbone, image, protocol, settings.precision, name)
                importance = choice.shown if protocol.method == "attention" else None
                scored = score_image(name, choice.patches, item, by_colour=by_colour, importance=importance)
                scores.append(scored)
                if watch is not None:
                    watch(item, choice, scores[-1])
            advance(1)
    tell_left_out(left_out.lines, len(objects), "objectness")
    return scores, left_out.lines


def _choose(
    backbone: Backbone, image: Tensor, protocol: ObjectnessProtocol, precision: str, name: str
) -> tuple[Choice, Patches | None]:
    """Return the patches that the backbone chooses in an image [C, H, W], and those that colours would."""
    if protocol.method == "attention":
        importance = importance_map(backbone, image, precision)
        check_finite(importance[None], backbone, [name], "attention weights")
        return by_mass(importance, protocol.share), None
    patches = patch_map(backbone, image, precision)
    check_finite(patches[None], backbone, [name], "patch tokens")
    grid = (patches.shape[0], patches.shape[1])
    colours = F.adaptive_avg_pool2d(image, grid)  # [C, h, w]
    return by_cut(patches.flatten(0, 1), grid), by_cut(colours.flatten(1).T, grid).patches


def _metrics(scores: Sequence[ImageScore], corloc_iou: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in MEANS:
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        if values:
            found[name] = _percent(values)
        if len(values) > 1:
            found[f"{name}_se"] = round(100 * mean_se(torch.tensor(values)), 6)
    for name, of in SHARES.items():
        right = [value >= corloc_iou for score in scores if (value := getattr(score, of)) is not None]
        if right:
            found[name] = _percent(right)
            found[f"{name}_se"] = round(accuracy_se(found[name], len(right)), 6)
    return found


def _percent(values: Sequence[float | bool]) -> float:
    return 100 * float(np.mean(values))


def importance_map(backbone: Backbone, image: Tensor, precision: str) -> Tensor:
    """Return the importance [h, w] of a normalised image [C, H, W], on the CPU.

    Raises:
        UsageError: this backbone has no importance.
    """
    grid: list[tuple[int, int]] = []

    def function(network: Backbone, images: Tensor) -> Tensor:
        tokens = network.tokens(images)
        if tokens.importance is None:
            raise UsageError(f"{network.spec.name} gives no importance: objectness needs attention over patches")
        grid.append(tokens.grid)
        return tokens.importance

    importance = forward_batch(backbone, image[None], function, precision)  # type: ignore[arg-type]  # [1, N]
    return importance[0].cpu().reshape(grid[0])


def patch_map(backbone: Backbone, image: Tensor, precision: str) -> Tensor:
    """Return the patch tokens [h, w, D] of a normalised image [C, H, W], float32, on the CPU."""

    def function(network: Backbone, images: Tensor) -> Tensor:
        tokens = network.tokens(images, importance=False)
        return tokens.patches.reshape(len(images), *tokens.grid, -1)

    patches = forward_batch(backbone, image[None], function, precision)  # type: ignore[arg-type]  # [1, h, w, D]
    return patches[0].float().cpu()
