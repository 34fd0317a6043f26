"""The twins of a run that ablations compare: each is named, and changes a few settings of any recipe.

The tokens' strategies are those of MST (Li et al. 2021), AttMask (Kakogeorgiou et al. 2022) and BEiT (Bao et al. 2022);
all of them hide the same number of tokens, see docs/deviations.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from mst.config.load import override
from mst.config.schema import RunConfig
from mst.recipes.record import DINO_CHANGES


@dataclass(frozen=True)
class Variant:
    """A named change of a run.

    Attributes:
        name: one word or two; ends the twin's name.
        summary: what is different, to follow the recipe's own summary.
        changes: dotted key -> value, as on the command line.
    """

    name: str
    summary: str
    changes: dict[str, object]

    def apply(self, config: RunConfig) -> RunConfig:
        """Return the twin of a configuration."""
        return override(config, self.changes)


def _masked(name: str, strategy: str, summary: str) -> Variant:
    return Variant(name, summary, {"objective.strategy": strategy})


MST = _masked("mst", "attention_low", "the least attended tokens may be hidden")
DINO = Variant("dino", "as DINO", DINO_CHANGES)
RANDOM = _masked("random", "random", "any token may be hidden")
BLOCK = _masked("block", "block", "rectangles are hidden")
HIGH = _masked("high", "attention_high", "the most attended tokens may be hidden")
HINT = _masked("hint", "attention_hint", "the most attended tokens may be hidden, some are revealed")
UNMASKED = _masked("unmasked", "none", "nothing is hidden, the image is still restored")
RESTORATION = Variant("restoration", "restoration alone, no self-distillation", {"objective.distillation_weight": 0.0})
MASKS_ONLY = Variant(
    "masks-only", "the least attended tokens may be hidden, nothing is restored", {"objective.restoration_weight": 0.0}
)
PLAIN = Variant("plain", "no normalisation in the head", {"model.head_norm": "none"})
DINO_PLAIN = Variant("dino-plain", "as DINO, no normalisation in the head", {**DINO_CHANGES, **PLAIN.changes})
FIXED = Variant("fixed", "position embeddings are fixed sines and cosines", {"model.positions": "fixed"})
BN = Variant("bn", "BatchNorm in the head", {"model.head_norm": "batch"})
DINO_BN = Variant("dino-bn", "as DINO, BatchNorm in the head", {**DINO_CHANGES, **BN.changes})

TWINS = (DINO, RANDOM, BLOCK, HIGH, HINT, BN)
"""What the recipes of the paper's two backbones come with, besides MST itself."""
