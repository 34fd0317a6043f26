"""What tells, without labels, whether a run is healthy: feature spread, RankMe, and a rule that recognises collapse.

Sources: RankMe is Garrido et al. 2023, section 3; the two ways to collapse are Caron et al. 2021 (DINO), section 5.3.
Differs from RankMe in that it runs on the teacher's latest training features, not on a held-out set.

Letters: R rows of a buffer, D embedding size, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.checkpoint.fit import Unfit, check_tensor, number, section, whole
from mst.runtime import advice

FEATURE_ROWS = 2048
"""Features that RankMe looks at; it can reach at most the smaller of this and D."""

UNIFORM_SHARE = 0.99
"""Share of ln K above which the teacher's entropy counts as uniform."""
CONSTANT_SHARE = 0.005
"""Share of ln K below which (marginal entropy - entropy) counts as the same output for every image."""
FLAT_STD = 0.01
"""Feature deviation below which all features count as equal; 1 is the deviation of directions drawn at random."""
COLLAPSE_ROWS = 3
"""Monitored rows in succession that must agree."""


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Return the mean deviation over rows of features [R, D] at unit length, times sqrt(D).

    0: all are equal. 1: their directions are spread evenly.
    """
    unit = F.normalize(features.float(), dim=-1)  # [R, D]
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])


@torch.no_grad()
def rankme(features: Tensor) -> Tensor:
    """Return the exponential of the entropy of the singular values of features [R, D]: their effective rank, from 1."""
    values = torch.linalg.svdvals(features.float())  # [min(R, D)]
    shares = values / values.sum().clamp(min=torch.finfo(torch.float32).tiny) + 1e-7  # as the paper has it
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


class FeatureBuffer:
    """The latest R features, overwritten in a ring."""

    def __init__(self, embed_dim: int, *, rows: int = FEATURE_ROWS, device: torch.device | None = None) -> None:
        self._rows = torch.zeros(rows, embed_dim, device=device)  # [R, D]
        self._seen = 0

    def push(self, features: Tensor) -> None:
        """Add features [B, D]; of a batch larger than the buffer, the last R."""
        size = len(self._rows)
        kept = features[-size:].detach().to(self._rows.dtype)
        places = (torch.arange(len(kept)) + self._seen) % size
        self._rows[places.to(self._rows.device, non_blocking=True)] = kept
        self._seen += len(kept)

    def features(self) -> Tensor:
        """Return what is there [<= R, D]; the order does not matter to any statistic."""
        return self._rows[: min(self._seen, len(self._rows))]

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs."""
        return {"rows": self._rows, "seen": self._seen}

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what `state_dict` of such a buffer cannot have returned.

        Raises:
            Unfit: other rows, or no count.
        """
        check_tensor(values.get("rows"), self._rows, "features rows", finite=False)
        whole(values, "seen")

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._rows.copy_(values["rows"])
        self._seen = int(values["seen"])


class RunningMeans:
    """Means of named numbers since the last time they were taken."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Count one value of every name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew; empty when nothing was added."""
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs."""
        return {"sums": dict(self._sums), "count": self._count}

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what `state_dict` cannot have returned.

        Raises:
            Unfit: no sums by name, or no count.
        """
        sums = section(values, "sums")
        for name in sums:
            number(sums, name)
        if whole(values, "count") == 0 and sums:
            raise Unfit(f"count is 0 beside {len(sums)} sums")

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._sums, self._count = dict(values["sums"]), int(values["count"])


def collapse_message(statistics: Mapping[str, float], *, prototypes: int) -> str | None:
    """Return what has collapsed and which knob to move, or None for healthy statistics.

    Args:
        statistics: `teacher_entropy`, `marginal_entropy` (nats) and `feature_std`.
        prototypes: K.
    """
    limit = math.log(prototypes)
    entropy, marginal, spread = (statistics[name] for name in ("teacher_entropy", "marginal_entropy", "feature_std"))
    if spread < FLAT_STD:
        return (
            f"the features of all images are equal (deviation {spread:.4f}, healthy is above {FLAT_STD}): {advice.FLAT}"
        )
    if entropy > UNIFORM_SHARE * limit:
        return (
            f"the teacher's output is uniform (entropy {entropy:.3f} of at most ln K = {limit:.3f}): {advice.UNIFORM}"
        )
    if marginal - entropy < CONSTANT_SHARE * limit:
        return (
            f"the teacher's output is the same for all images (entropy {entropy:.3f}, of the mean {marginal:.3f}): "
            f"{advice.CONSTANT}"
        )
    return None


class CollapseWatch:
    """Reports a collapse once it has lasted `COLLAPSE_ROWS` rows, and again only after a recovery."""

    def __init__(self) -> None:
        self._streak = 0

    def observe(self, message: str | None) -> str | None:
        """Count one monitored row's `collapse_message`; return it when it is time to speak."""
        self._streak = 0 if message is None else self._streak + 1
        return message if self._streak == COLLAPSE_ROWS else None

    @property
    def lasts(self) -> bool:
        """Whether the newest row is one of a collapse that has been reported."""
        return self._streak >= COLLAPSE_ROWS

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs."""
        return {"streak": self._streak}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._streak = int(values["streak"])
