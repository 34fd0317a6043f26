"""A backbone given what it cannot take says so in one line, in every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.test_layouts import DINO_3, SWIN, VIT, tiny
from mst.errors import UsageError
from mst.model.backbone import Backbone


@pytest.fixture(scope="module", params=[VIT, DINO_3, SWIN])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny(request.param, 0)


WRONG: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "no batch": (lambda x: x[0], r"images have shape \[3, 64, 64\], needed is \[B, C, H, W\]: images\.unsqueeze\(0\)"),
    "five dimensions": (lambda x: x[None], r"images have shape \[1, 2, 3, 64, 64\], needed is \[B, C, H, W\]$"),
    "a number": (lambda _: torch.ones(()), r"images have shape \[\], needed"),
    "uint8": (lambda x: x.byte(), r"of type uint8: give floats, normalised with the backbone's mean and std"),
    "bool": (lambda x: x > 0, "of type bool: give floats"),
    "int64": (lambda x: x.long(), "of type int64: give floats"),
    "complex": (lambda x: x.to(torch.complex64), "of type complex64: give floats"),
    "double": (lambda x: x.double(), "of type float64, the backbone of type float32: convert one"),
    "half": (lambda x: x.half(), "of type float16, the backbone of type float32: convert one"),
    "no images": (lambda x: x[:0], r"shape \[0, 3, 64, 64\]: give at least one image"),
    "grey": (lambda x: x[:, :1], "images have 1 channels, this backbone takes 3: convert them"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"have 64 channels, .* takes 3 \(channels come before height"),
    "odd size": (lambda x: x[:, :, :63], "image size 63x64 is not a multiple of the patch size"),
    "smaller than a patch": (lambda x: x[..., :4], "image size 64x4 is smaller than one"),
    "no height": (lambda x: x[:, :, :0], "image size 0x64 is smaller than one"),
    "other device": (lambda x: x.to("meta"), "images are on meta, the backbone is on cpu: move one of them"),
    "NaN": (
        lambda x: x.index_fill(0, torch.tensor([1]), float("nan")),
        "image 1 of 2 holds NaN: the features",
    ),
    "infinity": (lambda x: x / 0.0, "image 0 of 2 holds infinity"),
    "numpy": (lambda x: x.numpy(), r"images are ndarray: give a tensor \[B, C, H, W\]"),
    "a list": (lambda x: x.tolist(), "images are list: give a tensor"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_one_line(kind: str, backbone: Backbone) -> None:
    change, said = WRONG[kind]
    images = change(torch.rand(2, 3, 64, 64) + 0.1)
    with pytest.raises(UsageError, match=said) as caught:
        backbone(images)
    assert "\n" not in str(caught.value)
    if kind not in {"NaN", "infinity"}:  # `tokens` is the training's: it looks at no pixel
        with pytest.raises(UsageError, match=said):
            backbone.tokens(images)  # type: ignore[arg-type]


def test_autocast_takes_other_floats(backbone: Backbone) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone(torch.rand(1, 3, 64, 64).bfloat16()).isfinite().all()


def test_training_does_not_look_at_pixels(backbone: Backbone) -> None:
    backbone.train()
    assert backbone(torch.full((1, 3, 64, 64), float("nan"))).isnan().all()
    backbone.eval()
