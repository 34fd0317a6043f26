"""What can be measured of a run without labels, on images that it does not learn from.

Two scores beside RankMe (`mst.train.monitors`): whether two crops of an image are found again among those of others,
and how much better hidden patches are restored than by one colour. What each is worth is measured: benchmarks/README.md
has the rank correlation with k-NN. Neither says that a backbone helps a task; only labels can.

Letters: N images, C channels, H W pixels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.model.backbone import Backbone
from mst.model.pair import TeacherStudent
from mst.objective.restoration import decibels, pixel_mask, squared_error
from mst.runtime.noise import accuracy_se
from mst.runtime.seeding import generator
from mst.views.normalise import normalise

TOGETHER = 64
"""Crops of a forward pass."""
GAIN, OFFSET = 0.4, 0.1
"""A crop is multiplied by 1 +- this, then this share of white is added or taken away, all channels alike: otherwise its
brightness alone would find an image again. Each channel by itself would leave small networks at chance."""
HIDDEN_SHARE = 0.3
"""Share of the patches that are hidden, drawn evenly: the same for all runs, whatever they were trained with."""
FIXED_SEED = 0
"""Of the draws, the same for all runs: other crops would be another exam."""


@torch.no_grad()
def label_free_scores(
    pair: TeacherStudent,
    pairs: Tensor,
    *,
    restores: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> dict[str, float]:
    """Return `retrieval_top1` with its standard error and number of images and, if it restores, `restore_gain`.

    Args:
        pair: left as it was.
        pairs: two crops of each of N images, uint8 [2, N, C, H, W], on any device.
        restores: whether the run learns to restore hidden patches.
        mean: of the normalisation, per channel.
        std: of the normalisation, per channel.
        dtype: compute type of the networks.
    """
    count = pairs.shape[1]
    pair.eval()
    try:
        found = augmentation_retrieval(pair.teacher.backbone, pairs, mean=mean, std=std, dtype=dtype)
        scores = {"retrieval_top1": found, "retrieval_top1_se": accuracy_se(found, count), "retrieval_images": count}
        gain = restoration_gain(pair, pairs[0], mean=mean, std=std, dtype=dtype) if restores else math.nan
        if math.isfinite(gain):  # it is not where all images are of one colour
            scores["restore_gain"] = gain
    finally:
        pair.train()
    return scores


def augmentation_retrieval(
    backbone: Backbone, pairs: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> float:
    """Return how often the other crop of an image is the nearest of all N other crops, in percent.

    Both directions count. Chance is 100 / N; features that are all the same reach no more than that.

    Args:
        backbone: in evaluation mode.
        pairs: uint8 [2, N, C, H, W].
        mean: of the normalisation, per channel.
        std: of the normalisation, per channel.
        dtype: compute type.
    """
    one, other = (
        F.normalize(_features(backbone, recoloured(crops, side), mean, std, dtype), dim=1)  # [N,D]
        for side, crops in enumerate(pairs)
    )
    similarity = one @ other.T  # [N,N]
    own = similarity.diagonal()
    among = torch.eye(len(own), dtype=torch.bool, device=own.device)
    others = similarity.masked_fill(among, -torch.inf)
    hits = torch.cat([own > others.amax(1), own > others.amax(0)])  # a tie is no hit
    return 100 * hits.double().mean().item()


def recoloured(crops: Tensor, side: int) -> Tensor:
    """Return uint8 crops [N, C, H, W], the brightness of each stretched and shifted by fixed draws of (side, N)."""
    draws = torch.rand(2, len(crops), 1, 1, 1, generator=generator(FIXED_SEED, "label-free brightness", side)) * 2 - 1
    gain, offset = (draws[0] * GAIN + 1).to(crops.device), (draws[1] * OFFSET * 255).to(crops.device)
    parts = zip(*(torch.split(each, TOGETHER) for each in (crops, gain, offset)), strict=True)
    return torch.cat([(part * times + plus).round().clamp(0, 255).to(torch.uint8) for part, times, plus in parts])


def restoration_gain(
    pair: TeacherStudent, images: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> float:
    """Return by how many decibels of PSNR hidden patches are restored better than by the mean colour of the others.

    0: no better than one colour an image. The error is over all hidden pixels of all images together.

    Args:
        pair: in evaluation mode, with a decoder.
        images: uint8 [N, C, H, W].
        mean: of the normalisation, per channel.
        std: of the normalisation, per channel.
        dtype: compute type.
    """
    if pair.decoder is None:
        raise ValueError("a pair without a decoder restores nothing")
    device = next(pair.decoder.parameters()).device
    errors, number = torch.zeros(2, device=device), torch.zeros((), device=device)
    for start, part in enumerate(torch.split(images, TOGETHER)):
        pixels = normalise(part.to(device), mean, std)  # [B,C,H,W]
        grid = pair.student.backbone.grid(pixels)
        mask = hidden_tokens(len(part), grid[0] * grid[1], start).to(device)  # [B,N]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            tokens = pair.student.backbone.tokens(pixels, mask, importance=False)
            restored = pair.decoder(tokens.patches, tokens.grid).float()  # [B,C,H,W]
        hidden = pixel_mask(mask, tokens.grid, pixels.shape[-2] // tokens.grid[0])  # [B,1,H,W]
        seen = (~hidden).float()
        filled = ((pixels * seen).sum((2, 3), True) / seen.sum((2, 3), True).clamp(min=1)).expand_as(pixels)
        for place, guess in enumerate((restored, filled)):
            error, count = squared_error(guess, pixels, hidden, std)
            errors[place] += error
        number += count
    by_network, by_colour = (decibels(error, number).item() for error in errors)
    return by_network - by_colour


def hidden_tokens(images: int, tokens: int, part: int) -> Tensor:
    """Return a mask [images, tokens] that hides `HIDDEN_SHARE` of each image's tokens, at least one and not all."""
    count = min(max(1, round(HIDDEN_SHARE * tokens)), max(tokens - 1, 1))
    draws = torch.rand(images, tokens, generator=generator(FIXED_SEED, "label-free mask", part))
    return torch.zeros(images, tokens, dtype=torch.bool).scatter_(1, draws.topk(count, dim=1).indices, True)


def _features(
    backbone: Backbone, crops: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """Return the global features [N, D], float32, of uint8 crops [N, C, H, W]."""
    device = next(backbone.parameters()).device
    found = []
    for part in torch.split(crops, TOGETHER):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found.append(backbone(normalise(part.to(device), mean, std)).float())
    return torch.cat(found)
