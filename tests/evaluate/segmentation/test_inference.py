"""Windows over images: where they lie, and that they say what the whole image says where context does not matter."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from evaluate.segmenters import PixelBackbone, random_image, vit
from mst.errors import UsageError
from mst.evaluate.common.features import frozen
from mst.evaluate.segmentation.heads import HeadShape
from mst.evaluate.segmentation.inference import View, predict_mask, sliding_logits, window_starts
from mst.evaluate.segmentation.model import Segmenter

MEAN = STD = (0.5, 0.5, 0.5)
SIZES = [(8, 8), (17, 23), (9, 40), (5, 31), (3, 4), (24, 8)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [(8, 8), (5, 3), (1, 7)])
def test_windows_equal_the_whole_image_for_a_linear_head(size: tuple[int, int], stride: tuple[int, int]) -> None:
    segmenter = Segmenter(PixelBackbone(), tuple("abcde"), HeadShape("linear"), frozen=True, seed=3).eval()
    image = View((8, 8), None, MEAN, STD).normalise(random_image(size, seed=sum(size)))[None]
    with frozen(segmenter):
        whole = segmenter(image)
        windows = sliding_logits(segmenter, image, (8, 8), stride)
        torch.testing.assert_close(windows, whole)
        masks = [
            predict_mask(segmenter, random_image(size, seed=sum(size)), View(*how, MEAN, STD), "fp32")
            for how in (((8, 8), stride), (size, None))
        ]
    assert torch.equal(*masks)


def reference(forward: list[Tensor], image: Tensor, window: int, stride: int) -> Tensor:
    """The mean over all windows that see a pixel, pixel by pixel; one row high."""
    width = image.shape[-1]
    starts = []
    x = 0
    while x + window < width:
        starts.append(x)
        x += stride
    starts.append(width - window)
    out = torch.zeros(width)
    for pixel in range(width):
        seen = [
            part[0, 0, 0, pixel - start]
            for start, part in zip(starts, forward, strict=True)
            if start <= pixel < start + window
        ]
        out[pixel] = torch.stack(seen).mean()
    return out


@pytest.mark.parametrize(("width", "window", "stride"), [(10, 4, 3), (11, 4, 4), (4, 4, 2), (13, 5, 1)])
def test_overlaps_are_averaged(width: int, window: int, stride: int) -> None:
    draw = torch.Generator().manual_seed(width)
    answers = [torch.randn(1, 1, 1, window, generator=draw) for _ in window_starts(width, window, stride)]
    given = iter(answers)
    image = torch.zeros(1, 1, 1, width)
    found = sliding_logits(lambda crops: torch.cat([next(given) for _ in crops]), image, (1, window), (1, stride))
    torch.testing.assert_close(found[0, 0, 0], reference(answers, image, window, stride))


def test_window_starts() -> None:
    assert window_starts(2048, 768, 512) == [0, 512, 1024, 1280]
    assert window_starts(1024, 768, 512) == [0, 256]
    assert window_starts(768, 768, 512) == [0]


@pytest.mark.parametrize("stride", [None, (16, 16)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_answer_has_the_images_size(stride: tuple[int, int] | None, precision: Literal["fp32", "bf16"]) -> None:
    segmenter = Segmenter(vit(), ("a", "b"), HeadShape("setr-pup", 8), frozen=True, seed=0).eval()
    with torch.no_grad():
        mask = predict_mask(segmenter, random_image((37, 51), 0), View((32, 32), stride, MEAN, STD), precision)
    assert (mask.shape, mask.dtype) == ((37, 51), torch.int64)


def test_views_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--size 40x32 is not a multiple of the patch size 16"):
        View((40, 32), None, MEAN, STD).check(16)
    with pytest.raises(UsageError, match="--stride 0 8: must be between 1 and the window, 32 32"):
        View((32, 32), (0, 8), MEAN, STD).check(16)
    with pytest.raises(UsageError, match="--stride 8 33"):
        View((32, 32), (8, 33), MEAN, STD).check(16)
