"""Families of twins that `mst ablate` runs one after another: the paper's ablations and this project's open choices."""

from __future__ import annotations

from collections.abc import Sequence

from mst.config.keys import suggestion
from mst.errors import ConfigError
from mst.recipes.variants import (
    BLOCK,
    BN,
    DINO,
    DINO_BN,
    DINO_PLAIN,
    FIXED,
    HIGH,
    HINT,
    MASKS_ONLY,
    MST,
    PLAIN,
    RANDOM,
    RESTORATION,
    UNMASKED,
    Variant,
)


def _grid(word: str, key: str, values: Sequence[float], what: str) -> tuple[Variant, ...]:
    """One twin per value of a setting."""
    return tuple(Variant(f"{word}-{value:g}", f"{what} {value:g}", {key: value}) for value in values)


FAMILIES: dict[str, tuple[Variant, ...]] = {
    "strategies": (MST, UNMASKED, RANDOM, BLOCK, HIGH, HINT, DINO),
    "evidence": (MST, DINO, UNMASKED, RANDOM, BLOCK, HIGH, HINT, MASKS_ONLY, RESTORATION),
    "weight": _grid("weight", "objective.restoration_weight", (0.2, 0.6, 1.8), "weight of the restoration"),
    "head": (PLAIN, BN),
    "heads": (PLAIN, BN, DINO_PLAIN, DINO_BN),
    "positions": (MST, FIXED),
    "decoder": (
        Variant("cnn", "convolutional image decoder", {"model.decoder": "cnn"}),
        Variant("linear", "linear image decoder", {"model.decoder": "linear"}),
        Variant("no-decoder", "masks without restoration", {"objective.restoration_weight": 0.0}),
    ),
    "eligible": _grid("eligible", "objective.eligible_fraction", (0.25, 0.5, 0.75, 1.0), "share of eligible tokens"),
    "probability": _grid("probability", "objective.mask_probability", (0.1, 0.3, 0.5, 0.7), "chance of a mask"),
    "share": _grid("share", "objective.masked_sample_share", (0.25, 0.5, 1.0), "share of crops with a mask"),
    "crops": _grid("crops", "views.local_crops", (0, 2, 4, 6, 8), "local crops"),
}
"""Name -> twins, the usual one among them."""


def find_family(name: str) -> tuple[Variant, ...]:
    """Return a family.

    Raises:
        ConfigError: there is none of this name; the nearest is named.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    raise ConfigError(f"unknown family {name}{suggestion(name, FAMILIES)} (all families: {', '.join(FAMILIES)})")
