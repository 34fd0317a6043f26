"""One image of any kind to a backbone's input: what `backbone.transform` does, for users of the Python API."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from mst.data.decoding import decode_bytes, decode_image, read_image
from mst.data.sources.arrays import MemoryImages
from mst.data.value_range import BY_TYPE, ValueRanges, check_range
from mst.errors import UsageError
from mst.evaluate.common.protocol import ImageTransform, cover_size
from mst.model import backbone_file
from mst.model.backbone import Backbone
from mst.paths import user_path
from mst.runtime.images import upright
from mst.workflows.subject import ImageOptions, Subject

AnyImage = str | os.PathLike[str] | Image.Image | npt.NDArray[np.generic] | Tensor
AS_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
"""Pillow's modes that a PNG holds without loss."""


@dataclass(frozen=True)
class ImageInput:
    """A callable: an image to the backbone's input, resized, cut and normalised as its evaluation does it.

    Attributes:
        channels: C that the backbone takes.
        to_input: size, resizing, mean and deviation.
        ranges: which stored values are black and white, where not in 8 bits; None = each image decides (older files).
    """

    channels: int
    to_input: ImageTransform
    ranges: ValueRanges | None

    def __call__(self, image: AnyImage, *, value_range: tuple[float, float] | None = None) -> Tensor:
        """Return an image as float32 [C, H, W]; stack several to [B, C, H, W] for the backbone.

        Args:
            image: a path, an image of Pillow, or an array or tensor [H, W], [H, W, C] or [C, H, W]: uint8, or other
                numbers in the range that the backbone was trained with.
            value_range: black and white of this image, where it is not of 8 bits and of a kind the backbone never saw.

        Raises:
            UsageError: another number of channels, or a kind of numbers whose range is not known.
            DataError: a file that cannot be read as an image.
        """
        return self.to_input(self.pixels(image, value_range=value_range))

    def pixels(self, image: AnyImage, *, value_range: tuple[float, float] | None = None) -> Tensor:
        """Return an image as uint8 [C, h, w], before it is resized.

        Args and errors are those of the call.
        """
        check_range(value_range, "value_range")
        known = BY_TYPE if self.ranges is None else self.ranges
        scale = known if value_range is None else ValueRanges.given(value_range, "value_range")
        if isinstance(image, str | os.PathLike):
            return decode_image(user_path(image), channels=self.channels, scale=scale)
        if isinstance(image, Image.Image):
            name = getattr(image, "filename", "") or "the image"
            return decode_bytes(name, bytearray(_encoded(image)), channels=self.channels, scale=scale)
        array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        if array.ndim not in {2, 3}:
            raise UsageError(
                f"an array of shape {list(array.shape)}: one image [H, W], [H, W, C] or [C, H, W] is needed"
            )
        return read_image(MemoryImages([array], ["the array"]), 0, channels=self.channels, scale=scale)

    def explain(self, image: AnyImage, *, value_range: tuple[float, float] | None = None) -> str:
        """Return in words what the call does with this image."""
        channels, height, width = self.pixels(image, value_range=value_range).shape
        to, size = self.to_input, f"{self.to_input.size[0]}x{self.to_input.size[1]}"
        if to.whole_if_exact and (height, width) == to.size:
            changed = "taken whole"
        else:
            covered = cover_size((height, width), to.size, to.resize_ratio)
            changed = f"resized to {covered[0]}x{covered[1]}, its centre {size} cut"
        return f"{height}x{width} with {channels} channels, {changed}, {self._normalised}"

    @property
    def _normalised(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.to_input.mean, self.to_input.std))
        return f"normalised by mean {mean} and deviation {std}"

    def __str__(self) -> str:
        ranges = f", values of {self.ranges}" if self.ranges is not None and self.ranges.ranges else ""
        size = f"{self.to_input.size[0]}x{self.to_input.size[1]}"
        return f"images with {self.channels} channels{ranges} to {size} (H x W), {self._normalised}"


def _encoded(image: Image.Image) -> bytes:
    """Return an image of Pillow as a file's bytes, upright; then all that holds for files holds for it."""
    image = upright(image)
    if image.mode not in AS_PNG and image.mode not in {"I", "F"}:
        image = image.convert("RGB")
    content = io.BytesIO()
    if image.mode in {"I", "F"}:
        np.save(content, np.asarray(image))
    else:
        image.save(content, "PNG", compress_level=0, exif=b"")  # it is upright
    return content.getvalue()


def load_backbone(path: Path | str) -> Backbone:
    """Load a backbone in evaluation mode; `backbone.transform(image)` makes its input of a path, an image or an array.

    Args:
        path: the weights' file, or a run folder that holds `backbone.safetensors`.

    Raises:
        CheckpointError: as `mst.model.backbone_file.load_backbone`.
    """
    backbone = backbone_file.load_backbone(path)
    if "mean" in backbone.metadata or backbone.spec.channels == 3:
        backbone.transform = image_input(Subject(backbone, str(path), "", None))
    return backbone


def image_input(subject: Subject, options: ImageOptions | None = None) -> ImageInput:
    """Return what makes a loaded backbone's input of an image.

    Raises:
        UsageError, CheckpointError: its size is no multiple of its patch, or its description is damaged.
    """
    ranges = subject.known_ranges(None)
    if ranges is not None:
        ranges = replace(ranges, option="value_range")
    return ImageInput(subject.channels, subject.transform(options or ImageOptions()), ranges)
