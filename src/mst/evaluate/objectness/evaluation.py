"""Objects from attention alone, without training: thresholded importance against object masks and boxes.

Source: the Jaccard of DINO (Caron et al. 2021, section 4.2.2 and appendix: the patches that hold 60 % of the
attention's mass) and the CorLoc of LOST (Simeoni et al. 2021, section 4: the box of the largest connected component,
right where its IoU with some object's box is at least 0.5). Differs from DINO: importance is the mean over heads (DINO
takes the best head of each image), and the truth is the union of all objects of any class.
Letters: N = h*w patch tokens, H W pixels, M objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mst.data.decoding import read_image
from mst.data.sources import ImageSource, even_positions
from mst.data.sources.arrays import MemoryImages
from mst.data.synthetic.scenes import SceneSet
from mst.data.unreadable import LeftOut, each_readable, tell_left_out
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError, UsageError
from mst.evaluate.coco.image import check_size
from mst.evaluate.coco.masks import mask_of
from mst.evaluate.coco.reading import CocoImage, CocoSet, images_of
from mst.evaluate.common.boxes import Box, box_iou, largest_component_box, to_pixel_box
from mst.evaluate.common.features import FeatureSettings, forward_batch, frozen, progress_bar, used_precision
from mst.evaluate.common.finite import check_finite
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, fitting_size, squash
from mst.evaluate.common.uncertainty import mean_se
from mst.runtime.identity import DataIdentity, annotated
from mst.runtime.limits import check_numbers
from mst.runtime.logging import warn
from mst.runtime.noise import accuracy_se
from mst.runtime.storage.results import Result

if TYPE_CHECKING:
    from mst.model.backbone import Backbone


@dataclass(frozen=True)
class ObjectnessProtocol:
    """Settings of the objectness evaluation that change its numbers.

    Attributes:
        mass: share of the importance that the chosen patches hold.
        size: (H, W) every image is resized to; None = its own, each side to the nearest multiple of the patch.
        corloc_iou: a box is right from this IoU on.
    """

    mass: float = 0.6
    size: tuple[int, int] | None = None
    corloc_iou: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "mass", "corloc_iou", above=0, most=1)


class ObjectImage(NamedTuple):
    """One image and its objects.

    Attributes:
        image: uint8 [C, H, W].
        masks: bool [M, H, W], one per object; None = they have boxes only.
        boxes: [M, 4].
        ignored: bool [H, W], pixels of crowds, which count for nothing.
    """

    image: Tensor
    masks: NDArray[np.bool_] | None
    boxes: NDArray[np.float64]
    ignored: NDArray[np.bool_]


Truth = tuple[NDArray[np.bool_] | None, NDArray[np.float64], NDArray[np.bool_]]
"""Masks, boxes and ignored pixels, as of `ObjectImage`."""


@dataclass(frozen=True)
class ObjectSet:
    """Images of any source, and the objects in each.

    Attributes:
        title: what the set is called.
        images: where their bytes are.
        truth: (index, (H, W) of the image) -> its objects.
        channels: C.
        scale: how values that are not stored in 8 bits become such.
        without_objects: images that were left out because nothing is annotated in them.
        annotations: what the objects come from, or None.
    """

    title: str
    images: ImageSource
    truth: Callable[[int, tuple[int, int]], Truth]
    channels: int = 3
    scale: Scale = BY_TYPE
    without_objects: int = 0
    annotations: CocoSet | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def name(self, index: int) -> str:
        """Return what messages call an image."""
        return self.images.name(index)

    def read(self, index: int) -> ObjectImage:
        """Return an image and its objects.

        Raises:
            UnreadableImage: its bytes give no image.
            DataError: it has another size than its annotations say.
        """
        image = read_image(self.images, index, channels=self.channels, scale=self.scale)
        return ObjectImage(image, *self.truth(index, (image.shape[1], image.shape[2])))

    def evenly(self, limit: int | None) -> ObjectSet:
        """Return at most `limit` of the images, spread evenly over the set; None = all."""
        if limit is None or limit >= len(self):
            return self
        chosen = even_positions(len(self), limit)
        return replace(self, images=self.images.only(chosen), truth=lambda i, size: self.truth(int(chosen[i]), size))

    def fingerprint(self) -> DataIdentity:
        """Return the identity of names and content; of sets without a file of annotations 8 images' truth is read."""
        if self.annotations is not None:
            return annotated(self.images.fingerprint(), self.annotations.described())
        read = (self.read(index) for index in even_positions(len(self), 8).tolist())
        told = (part.tobytes() for item in read for part in item[1:] if part is not None)
        return annotated(self.images.fingerprint(self.title), told)


class ImageScore(NamedTuple):
    """How well one image's importance finds its objects.

    Attributes:
        name: of the image.
        jaccard: IoU of the chosen patches with the union of the objects; None = they have no masks.
        best_jaccard: IoU with the object that fits best; None likewise.
        box: around the largest connected component.
        box_iou: the best IoU of that box with an object's box.
        area: share of the image that was chosen.
        jaccard_everything: the Jaccard of choosing the whole image; None without masks.
        jaccard_centre: that of a box in the middle, of the area that was chosen; None without masks.
    """

    name: str
    jaccard: float | None
    best_jaccard: float | None
    box: Box
    box_iou: float
    area: float
    jaccard_everything: float | None
    jaccard_centre: float | None


Watcher = Callable[[ObjectImage, Tensor, NDArray[np.bool_], ImageScore], None]
"""Called with each image, its importance [h, w], the chosen pixels [H, W] and the score: for pictures."""


def coco_objects(coco: CocoSet, *, channels: int = 3) -> ObjectSet:
    """Return the images that have objects; crowds are no objects, their pixels are ignored.

    Raises:
        DataError: there is none.
    """
    kept = [image for image in coco.images if any(not found.crowd for found in image.objects)]
    if not kept:
        raise DataError(f"{coco.file}: no image has an object")

    def truth(index: int, size: tuple[int, int]) -> Truth:
        check_size(kept[index].name, size, kept[index].size, kept[index].header)
        return _truth(kept[index], masks=coco.masks)

    if not coco.masks:
        warn(f"{coco.file}: objects have no masks, so that CorLoc is measured, which needs boxes, and no Jaccard")
    left_out = len(coco.images) - len(kept)
    return ObjectSet(coco.file.name, images_of(kept), truth, channels, kept[0].scale, left_out, coco)


def _truth(image: CocoImage, *, masks: bool) -> Truth:
    boxes = np.asarray([found.box for found in image.objects if not found.crowd], dtype=np.float64)
    ignored = np.zeros(image.size, dtype=np.bool_)
    if not masks:
        return None, boxes, ignored
    drawn = [(found.crowd, mask_of(found.segmentation)) for found in image.objects if found.segmentation is not None]
    for crowd, mask in drawn:
        ignored |= mask & crowd
    return np.stack([mask for crowd, mask in drawn if not crowd]), boxes, ignored


def scene_objects(scenes: SceneSet) -> ObjectSet:
    """Return synthetic scenes, drawn once into memory, with all their objects, small ones included."""
    drawn = list(scenes)

    def truth(index: int, size: tuple[int, int]) -> Truth:
        return drawn[index].instance_masks, drawn[index].boxes.astype(np.float64), np.zeros(size, dtype=np.bool_)

    title = (
        f"{scenes.style.name} of seed {scenes.seed}, {scenes.start}..{scenes.start + len(scenes) - 1}, {scenes.size} px"
    )
    names = [f"scene {scenes.start + number}" for number in range(len(scenes))]
    images = MemoryImages([scene.image.transpose(1, 2, 0) for scene in drawn], names)
    return ObjectSet(title, images, truth)


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
    """Score the importance of every image against its objects; nothing is trained.

    Returns:
        Result with `jaccard`, `best_jaccard` and `corloc` in percent, means over images with their standard errors
        (`_se`), and beside them the numbers to stay above: `jaccard_everything` of choosing the whole image, and
        `jaccard_centre` of a box in the middle, which in each image has the area that was chosen. Of objects without
        masks there is `corloc` only.

    Raises:
        UsageError: a size that is no multiple of the patch, or no images.
        DataError: an image does not fit its annotations, or too many are unreadable.
    """
    protocol, settings = protocol or ObjectnessProtocol(), settings or FeatureSettings()
    if len(objects) == 0:
        raise UsageError("objectness needs at least one image with an object")
    size, patch = protocol.size, backbone.patch_size
    if size is not None and (min(size) < patch or size[0] % patch or size[1] % patch):
        raise UsageError(f"--size {size[0]} {size[1]}: both must be multiples of the patch size {patch}")
    scores, unreadable = _score_all(backbone, objects, protocol, settings, mean=mean, std=std, watch=watch)
    return Result(
        task="objectness",
        metrics=_metrics(scores, protocol.corloc_iou),
        protocol={
            **asdict(protocol),
            "size": list(size) if size else None,
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
                transform = ImageTransform(protocol.size or fitting_size(item.image, backbone.patch_size), mean, std)
                importance = importance_map(backbone, squash(item.image, transform), settings.precision)
                check_finite(importance[None], backbone, [name], "attention weights")
                chosen, score = score_image(name, importance, item, protocol.mass)
                scores.append(score)
                if watch is not None:
                    watch(item, importance, chosen, score)
            advance(1)
    tell_left_out(left_out.lines, len(objects), "objectness")
    return scores, left_out.lines


def _metrics(scores: Sequence[ImageScore], corloc_iou: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("jaccard", "best_jaccard", "jaccard_everything", "jaccard_centre"):
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        if values:
            found[name] = _percent(values)
        if len(values) > 1:
            found[f"{name}_se"] = round(100 * mean_se(torch.tensor(values)), 6)
    corloc = _percent([score.box_iou >= corloc_iou for score in scores])
    return found | {"corloc": corloc, "corloc_se": round(accuracy_se(corloc, len(scores)), 6)}


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


def score_image(name: str, importance: Tensor, item: ObjectImage, mass: float) -> tuple[NDArray[np.bool_], ImageScore]:
    """Return the chosen pixels [H, W] and their score."""
    height, width = item.image.shape[-2:]
    patches = heaviest(importance, mass)  # [h, w]
    chosen = to_pixels(patches, (height, width))
    box = to_pixel_box(largest_component_box(patches), patches.shape, (height, width))
    counted = ~item.ignored
    seen, area = chosen & counted, float(chosen.mean())  # [H, W]
    truths = None if item.masks is None else item.masks & counted  # [M, H, W]
    union = None if truths is None else _union(truths)  # [H, W]
    middle = centred((height, width), area) & counted
    return chosen, ImageScore(
        name=name,
        jaccard=None if union is None else _iou(seen, union),
        best_jaccard=None if truths is None else max(_iou(seen, truth) for truth in truths),
        box=box,
        box_iou=max(box_iou(box, (x0, y0, x1, y1)) for x0, y0, x1, y1 in item.boxes.tolist()),
        area=area,
        jaccard_everything=None if union is None else _iou(counted, union),
        jaccard_centre=None if union is None else _iou(middle, union),
    )


def heaviest(importance: Tensor, mass: float) -> NDArray[np.bool_]:
    """Return the fewest patches that hold at least `mass` of the importance [h, w]; of equal ones, the earlier."""
    flat = importance.flatten().double()
    order = torch.argsort(flat, descending=True, stable=True)
    total = flat[order].cumsum(0)  # [N]
    reached = total >= mass * total[-1] * (1 - 1e-12)
    count = int(reached.long().argmax()) + 1
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.reshape(importance.shape).numpy()


def to_pixels(patches: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return patches [h, w] enlarged to pixels (H, W), each pixel that of its nearest patch."""
    maps = torch.from_numpy(patches)[None, None].float()
    return F.interpolate(maps, size, mode="nearest-exact")[0, 0].numpy() > 0


def centred(size: tuple[int, int], area: float) -> NDArray[np.bool_]:
    """Return a box in the middle, of the shape of (H, W) and with a share of its pixels, to whole rows and columns."""
    inside = np.zeros(size, dtype=np.bool_)
    spans = [max(1, round(math.sqrt(area) * pixels)) for pixels in size]
    (top, height), (left, width) = (((pixels - span) // 2, span) for pixels, span in zip(size, spans, strict=True))
    inside[top : top + height, left : left + width] = True
    return inside


def _union(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels [H, W] of any of the masks [M, H, W]."""
    return np.asarray(np.any(masks, axis=0))


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0
