"""Segmentation data from a folder: `images/`, `masks/`, split lists and class names, as people have them.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mst.data.files.kinds import COMMON, RARE
from mst.data.sources import ImageIndex
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.coco.records import whole
from mst.evaluate.common.orientation import Frame, mask_frames
from mst.evaluate.segmentation.data import SegmentationData, SegmentationSet, even_pairs
from mst.evaluate.segmentation.mask_files import Labels, mask_size, read_mask
from mst.evaluate.segmentation.names import MASK_EXTENSIONS, FileIndex, Pair, read_pairs_of
from mst.runtime.images import Header
from mst.runtime.names import shown

COLOUR_KEYS = ("colors", "colours", "palette", "color", "colour")
FARTHEST = 2**31 - 1
"""Largest number that is accepted as a value of masks."""


def segmentation_folder(
    root: Path,
    *,
    channels: int = 3,
    scale: Scale = BY_TYPE,
    annotations: Frame | None = None,
    limits: tuple[int | None, int | None] = (None, None),
) -> SegmentationData:
    """Return the sets of a folder with `images/`, `masks/`, `train.txt`, `val.txt` and `classes.json`.

    A list has one image name per line, with or without suffix and folders, or an image and its mask side by side.
    `classes.json` is a list of class names, or an object with `classes` and, where some pixels have no class,
    `ignore_index`; where masks are coloured also `colors`. CVAT's `labelmap.txt` may take its place.

    Args:
        root: the folder.
        channels: of the images.
        scale: turns values of images that are not stored in 8 bits into such.
        annotations: whether the masks of images with an EXIF orientation belong to the image as it is displayed or as
            it is stored; None = as their sizes tell.
        limits: at most this many training and validation pairs, at even distances; None = all.

    Raises:
        DataError: a part is missing or of another kind, a list is empty or names nothing that exists, or a name has
            two candidates.
    """
    for part in ("images", "masks", "train.txt", "val.txt"):
        if not (root / part).exists():
            raise DataError(f"{root} has no {part}: needed are images/, masks/, train.txt, val.txt and classes.json")
    labels = read_classes(root)
    arrays = () if channels in {1, 3} else ("npy",)
    images = FileIndex(root / "images", (*COMMON, *RARE, *arrays))
    masks = FileIndex(root / "masks", (*MASK_EXTENSIONS, "jpg", "jpeg"))
    listed = [read_pairs_of(root, root / f"{split}.txt", images, masks) for split in ("train", "val")]
    pairs = [even_pairs(found, limit) for (found, _), limit in zip(listed, limits, strict=True)]
    headers, frames = mask_frames([*pairs[0], *pairs[1]], mask_size, annotations)
    train, val = (
        SegmentationSet(
            ImageIndex.of(pair.image for pair in part),
            _masks(part, labels, headers, frames),
            channels,
            scale,
            tuple(pair.mask for pair in part),
            tuple(missing),
        )
        for part, (_, missing) in zip(pairs, listed, strict=True)
    )
    meaning: tuple[str, ...] = (repr(sorted(labels.colours.items())),) if labels.colours else ()
    meaning += (f"annotations {annotations}",) if annotations is not None and headers else ()
    return SegmentationData(labels.names, train, val, labels.ignore_index, meaning)


def _masks(
    pairs: Sequence[Pair],
    labels: Labels,
    headers: Mapping[Path, Header],
    frames: Mapping[tuple[Path, Path], Frame],
) -> Callable[[int, tuple[int, int]], Tensor]:
    """Return the function that reads the mask of a pair."""

    def mask(index: int, size: tuple[int, int]) -> Tensor:
        pair = pairs[index]
        header, frame = headers.get(pair.image), frames.get(pair, "displayed")
        return read_mask(pair.mask, size, labels, image=header, frame=frame)

    return mask


def read_classes(root: Path) -> Labels:
    """Return the classes of a folder: of `classes.json`, else of CVAT's `labelmap.txt`.

    Raises:
        DataError: none of them, or it cannot be understood.
    """
    path = root / "classes.json"
    if not path.exists():
        for name in ("labelmap.txt", "label_colors.txt"):
            if (root / name).is_file():
                return _label_map(root / name)
        raise DataError(f"{root} has no classes.json: needed are images/, masks/, train.txt, val.txt and classes.json")
    try:
        content = json.loads(path.read_bytes())  # UTF-8, 16 or 32, with or without a mark
        group: dict[str, Any] = {"classes": content} if isinstance(content, list) else content
        ignore = group.get("ignore_index")
        entries = group["classes"]
        if not isinstance(entries, list) or not entries:
            raise ValueError("no class names")
        names = [entry if isinstance(entry, str) else entry["name"] for entry in entries]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("no class names")
        given = next((group[key] for key in COLOUR_KEYS if group.get(key) is not None), None)
        if given is None and all(isinstance(entry, dict) for entry in entries):
            own = [next((entry[key] for key in COLOUR_KEYS if key in entry), None) for entry in entries]
            given = own if any(colour is not None for colour in own) else None
        return Labels(tuple(names), _void(ignore), _colours(names, given))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f'{path}: expected ["name", ...] or {{"classes": [...], "ignore_index": n, "colors": [[r, g, b], ...]}} '
            f"({error})"
        ) from error


def _void(given: Any) -> int | None:
    number = whole(given)
    if given is not None and (number is None or abs(number) > FARTHEST):
        raise ValueError(f"ignore_index {str(given)[:40]}: must be a whole number of -{FARTHEST} to {FARTHEST}")
    return number


def _colours(names: Sequence[str], given: Any) -> dict[int, int]:
    """Return packed colour -> class number, from a list in the order of the classes or an object name -> colour."""
    if given is None:
        return {}
    if isinstance(given, dict):
        given = [given[name] for name in names]
    if not isinstance(given, list) or len(given) != len(names):
        raise ValueError(f"{len(names)} classes, but not as many colours")
    found: dict[int, int] = {}
    for number, colour in enumerate(given):
        packed = _packed(colour)
        if packed in found:
            raise ValueError(f"classes {names[found[packed]]} and {names[number]} have the same colour {colour}")
        found[packed] = number
    return found


def _packed(colour: Any) -> int:
    """Return 65536 red + 256 green + blue of [r, g, b] or "#rrggbb"."""
    if isinstance(colour, str) and re.fullmatch(r"#?[0-9A-Fa-f]{6}", colour):
        return int(colour.lstrip("#"), 16)
    whole = isinstance(colour, list) and len(colour) == 3 and all(type(part) is int for part in colour)
    if not whole or not all(0 <= part <= 255 for part in colour):
        raise ValueError(f'{colour!r} is no colour [r, g, b] of 0..255 and no "#rrggbb"')
    return int(colour[0]) << 16 | int(colour[1]) << 8 | int(colour[2])


def _label_map(path: Path) -> Labels:
    """Read lines `name:r,g,b:parts:actions` (CVAT), or `r g b name` (CamVid)."""
    names: list[str] = []
    colours: list[list[int]] = []
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            cvat = re.match(r"(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?::|$)", line)
            camvid = re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)$", line)
            if cvat:
                names.append(cvat[1].strip())
                colours.append([int(cvat[part]) for part in (2, 3, 4)])
            elif camvid:
                names.append(camvid[4].strip())
                colours.append([int(camvid[part]) for part in (1, 2, 3)])
            else:
                raise ValueError(f"line {line!r}")
        if not names:
            raise ValueError("no classes")
        return Labels(tuple(names), None, _colours(names, colours))
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)}: expected lines name:r,g,b:: or r g b name ({error})") from error
