"""Standard errors of COCO's average precision, by bootstrap over images (Efron 1979).

AP ranks the detections of all images together, so it is no mean over images, and its error follows from no formula.
Detections are matched once, image by image; then images are drawn with replacement, and AP is taken of each draw with
the weights of its images. An image that is drawn twice counts twice, its detections at once.
Source of the rules: Lin et al. 2014, as pycocotools has them (faster-coco-eval keeps its matches to itself); with
weights of one the numbers are its own.

Letters: n images, M detections of a class, D and G detections and objects of an image, T thresholds of IoU, R levels of
recall, b draws at a time.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mst.errors import MissingExtra
from mst.evaluate.coco.masks import coco_mask_library
from mst.evaluate.common.uncertainty import resamples

Numbers = npt.NDArray[np.float64]
DRAWS = 200
"""Bootstrap samples: the standard error is then known to 5 %."""
ROOM = 1 << 22
"""Numbers that are held at a time for a class."""
RECALLS, THRESHOLDS = np.linspace(0.0, 1.0, 101), np.linspace(0.5, 0.95, 10)
MOST = 100
"""Detections of an image and class that count."""


@dataclass(frozen=True)
class Matches:
    """The detections of one class in all images, the highest score first.

    Attributes:
        image: place of the image of each [M].
        right: whether it is matched to an object at each threshold [T, M]; ignored ones are neither right nor wrong.
        wrong: whether it is a false alarm [T, M].
        objects: of the class in each image, without ignored ones [n].
    """

    image: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    wrong: npt.NDArray[np.bool_]
    objects: Numbers


def precision_errors(
    truth: Mapping[str, Any], records: Sequence[Mapping[str, Any]], *, kind: str, seed: int, draws: int = DRAWS
) -> dict[str, float]:
    """Return the standard errors of `ap`, `ap50` and `ap75` as shares; nothing for fewer than two images.

    Nor where all draws have the same number, as with an AP of 0: that would claim certainty.

    Args:
        truth: a COCO file, its images and categories numbered from 1 on.
        records: COCO results on it.
        kind: bbox or segm.
        seed: of the draws.
        draws: bootstrap samples.

    Raises:
        MissingExtra: faster-coco-eval is not installed.
    """
    count = len(truth["images"])
    if count < 2 or not records:
        return {}
    classes = matches(truth, records, kind=kind)
    weights = np.stack([each.numpy() for each in resamples(count, seed=seed, purpose=f"ap {kind}", draws=draws)])
    precisions = average_precisions(classes, weights)  # [draws,T]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any object has no AP
        found = {"ap": np.nanmean(precisions, axis=1)}
    for name, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        found[name] = precisions[:, int(np.argmin(np.abs(THRESHOLDS - threshold)))]
    values = {name: each[np.isfinite(each)] for name, each in found.items()}
    errors = {name: float(each.std(ddof=1)) for name, each in values.items() if len(each) > 1}
    return {name: error for name, error in errors.items() if error > 0}


def average_precisions(classes: Sequence[Matches], weights: Numbers) -> Numbers:
    """Return the average precision of draws of images [draws, T], mean of the classes with objects; nan without any.

    Args:
        classes: detections by class.
        weights: how often each draw has each image [draws, n].
    """
    thresholds = classes[0].right.shape[0]
    total, known = np.zeros((len(weights), thresholds)), np.zeros((len(weights), 1))
    for each in classes:
        size = max(1, ROOM // max(each.right.size, 1))
        for start in range(0, len(weights), size):
            part = slice(start, start + size)
            objects = weights[part] @ each.objects  # [b]
            known[part] += (objects > 0)[:, None]
            total[part] += np.where((objects > 0)[:, None], _precisions(each, weights[part], objects), 0.0)
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)


def _precisions(found: Matches, weights: Numbers, objects: Numbers) -> Numbers:
    """Return a class's average precision of draws [b, T] with so many objects [b]."""
    if not len(found.image):
        return np.zeros((len(weights), found.right.shape[0]))
    own = weights[:, None, found.image]  # [b,1,M]
    right, wrong = np.cumsum(own * found.right, axis=2), np.cumsum(own * found.wrong, axis=2)  # [b,T,M]
    recall = right / np.maximum(objects, 1e-9)[:, None, None]
    precision = right / np.maximum(right + wrong, np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    levels = np.zeros(right.shape[:2])
    for place in np.ndindex(*levels.shape):
        first = np.searchsorted(recall[place], RECALLS, side="left")  # [R]
        reached = first < recall.shape[2]
        levels[place] = precision[place][first[reached]].sum() / len(RECALLS)
    return levels


def matches(truth: Mapping[str, Any], records: Sequence[Mapping[str, Any]], *, kind: str) -> list[Matches]:
    """Return the detections of each class, matched to objects of all sizes.

    Raises:
        MissingExtra: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO
    except ImportError as error:
        raise MissingExtra("faster-coco-eval", "detection") from error
    ground, overlap = COCO(dict(truth)), coco_mask_library().iou
    places = {image["id"]: place for place, image in enumerate(truth["images"])}
    objects, found = (defaultdict[tuple[int, int], list[Any]](list) for _ in range(2))
    for each in truth["annotations"]:
        objects[each["category_id"], places[each["image_id"]]].append(each)
    for each in records:
        found[each["category_id"], places[each["image_id"]]].append(each)
    classes = []
    for category in (each["id"] for each in truth["categories"]):
        counts, parts = np.zeros(len(places)), list[_Part]()
        for place in range(len(places)):
            own = sorted(objects[category, place], key=lambda each: each.get("iscrowd", 0))  # crowds last
            crowd = np.array([bool(each.get("iscrowd", 0)) for each in own], dtype=np.bool_)
            counts[place] = np.count_nonzero(~crowd)
            best = sorted(found[category, place], key=lambda each: -each["score"])[:MOST]
            if not best:
                continue
            iou = np.zeros((len(best), 0))
            if own:
                shapes = [each["bbox"] if kind == "bbox" else ground.annToRLE(each) for each in own]
                given = [each["bbox"] if kind == "bbox" else each["segmentation"] for each in best]
                iou = np.asarray(overlap(given, shapes, crowd.astype(np.uint8).tolist())).reshape(len(best), len(own))
            scores = np.array([each["score"] for each in best])
            parts.append((np.full(len(best), place), scores, *_matched(iou, crowd)))
        classes.append(_together(parts, counts))
    return classes


_Part = tuple[npt.NDArray[np.int64], Numbers, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""Place [D], score [D], right and wrong [T, D] of an image's detections of a class."""


def _matched(iou: Numbers, crowd: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which detections are right and which are false alarms at each threshold [T, D].

    Each takes the object that it overlaps most and that none before it took; only where there is none it may fall into
    a crowd, which does not count.

    Args:
        iou: of each detection, the best score first, with each object [D, G].
        crowd: whether an object is one [G], those last.
    """
    right, ignored = (np.zeros((len(THRESHOLDS), len(iou)), dtype=np.bool_) for _ in range(2))
    if not iou.shape[1]:
        return right, ~right
    for row, threshold in enumerate(THRESHOLDS):
        free = ~crowd
        for number, overlaps in enumerate(iou):
            fits = overlaps >= min(threshold, 1 - 1e-10)
            if (fits & free).any():
                last = overlaps[::-1] == np.where(fits & free, overlaps, -1.0).max()  # of equal ones the last
                free[len(overlaps) - 1 - int(np.argmax(last & (fits & free)[::-1]))] = False
                right[row, number] = True
            else:
                ignored[row, number] = bool((fits & crowd).any())
    return right, ~right & ~ignored


def _together(parts: Sequence[_Part], objects: Numbers) -> Matches:
    """Return the detections of all images, the highest score first."""
    if not parts:
        none = np.zeros((len(THRESHOLDS), 0), dtype=np.bool_)
        return Matches(np.zeros(0, dtype=np.int64), none, none, objects)
    places, scores, right, wrong = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="mergesort")  # as COCO's code: of equal scores the earlier image's
    return Matches(places[order], right[:, order], wrong[:, order], objects)
