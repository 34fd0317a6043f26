"""The ladder of networks and crops: from a minute of one core to hours of a GPU, by what the time affords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mst.config.facts import SetFacts, Shape

SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
"""Sides of global crops in pixels."""
LOCAL_SHARE = 0.45
"""Side of a local crop over that of a global one, about (DINO: 96 / 224)."""
ENOUGH_IMAGES = 50_000
"""Images that the smallest network should see, before larger crops are worth their time: on 331 frames 24,000 images of
96 px taught half of what 47,000 of 64 px did, one run each (docs/recipes.md)."""
SMALL_SIDE = 64
"""Crops up to this side are taken wherever a pass fits: less shows too little of larger images, however often."""
ENOUGH_PASSES = 150
"""Passes over a small data set that are as good."""
SURE_PASSES = 1.5
"""Passes that must fit by the rules' count of operations, so that one fits when the chosen run is measured."""


@dataclass(frozen=True)
class Network:
    """A rung of the ladder of networks: its cost, and what it needs to learn."""

    name: str
    timm: str
    width: int
    depth: int
    heads: int
    images: int
    different: int
    lr: float
    """Peak rate at a batch of 64; it grows with the root of the batch."""

    @property
    def small(self) -> bool:
        """Whether it is narrower than any published network."""
        return self.width < 192 or self.depth < 12


LADDER = (
    Network("ViT 128 wide, 4 blocks", "vit_tiny_patch16_224", 128, 4, 4, 0, 0, 1e-3),
    Network("ViT 192 wide, 6 blocks", "vit_tiny_patch16_224", 192, 6, 3, 400_000, 400, 1e-3),
    Network("ViT-Ti", "vit_tiny_patch16_224", 192, 12, 3, 1_500_000, 1_000, 4e-4),
    Network("ViT-S", "deit_small_patch16_224", 384, 12, 6, 4_000_000, 2_000, 2.5e-4),
)
"""From a minute of one core to hours of a GPU: `images` seen and `different` ones that a network needs."""


def patch_for(side: int) -> int:
    """Return a patch that cuts a crop into 36 to 256 tokens."""
    return 4 if side < 48 else 8 if side <= 128 else 16


def shape_for(network: Network, side: int, patch: int, local_crops: int) -> Shape:
    """Return what the cost of square crops depends on."""
    local = local_side(side, patch)
    return Shape(network.width, network.depth, (side // patch) ** 2, (local // patch) ** 2, local_crops=local_crops)


def local_side(side: int, patch: int) -> int:
    """Return the side of local crops: a multiple of the patch, at least two and fewer than a global crop has."""
    return max(min(max(round(LOCAL_SHARE * side / patch), 2), side // patch - 1), 1) * patch


def wanted_side(images: SetFacts) -> int:
    """Return the smallest side that keeps the images' fine structure, no larger than they are."""
    most = min(images.side, max(images.detail, SIDES[0]), SIDES[-1])
    return max((side for side in SIDES if side <= most), default=SIDES[0])


@dataclass(frozen=True)
class Chosen:
    """A network with the crops that it learns from."""

    network: Network
    side: int
    patch: int
    local_crops: int

    @property
    def cost(self) -> float:
        """Operations of a step for one image."""
        return shape_for(self.network, self.side, self.patch, self.local_crops).step_flops


def affordable(images: SetFacts, budget: float, networks: Sequence[Network] = LADDER) -> Chosen:
    """Return the largest crops, then the largest network, that see enough images in the time.

    Args:
        images: the data set.
        budget: operations that the device can do in the time.
        networks: to choose among, the smallest first.
    """
    passes = SURE_PASSES * images.count  # one pass is the least that a run takes
    enough = max(min(ENOUGH_IMAGES, ENOUGH_PASSES * images.different), passes)
    most = wanted_side(images)
    smallest = networks[0]
    # 64 px in patches of 8 are as many tokens as 32 px in patches of 4, and show more; 48 px are fewer.
    sides = [side for side in SIDES if side <= most and (side > SIDES[0] or most == SIDES[0])]
    chosen = Chosen(smallest, sides[0], patch_for(sides[0]), 4)
    for side in sides[1:]:
        larger = Chosen(smallest, side, patch_for(side), 4)
        if budget < (enough if side > SMALL_SIDE else passes) * larger.cost:
            break  # crops of 160 px cost less than those of 128, whose patches are smaller: they are worth more
        chosen = larger
    for network in networks[1:]:
        larger = Chosen(network, chosen.side, chosen.patch, 4 if network.small else 6)
        if images.different >= network.different and budget >= max(network.images, passes) * larger.cost:
            chosen = larger
    return chosen


def rung(width: int | None, depth: int | None) -> Network:
    """Return the largest network of the ladder that is no wider and no deeper; the largest for a published network."""
    if width is None:
        return LADDER[-1]
    fits = [own for own in LADDER if own.width <= width and own.depth <= (depth or own.depth)]
    return fits[-1] if fits else LADDER[0]
