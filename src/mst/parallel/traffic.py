"""Bytes that one device sends in a training step, by formula; a test compares them with what the collectives move.

Ring algorithms, which are optimal in bytes (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"): of W
devices each sends (W - 1) / W of a tensor to gather or reduce-scatter it, twice that to all-reduce it.

Letters: W devices, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mst.model.pair import TeacherStudent

Sharding = Literal["ddp", "fsdp2"]
SHARDINGS: tuple[Sharding, ...] = ("ddp", "fsdp2")
FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        learning: of student and decoder, those with gradients.
        frozen: of student and decoder, the others (the gain of the prototypes).
        teacher: of the teacher.
        group: of the largest part that FSDP2 gathers at a time: a block, or the head.
    """

    learning: int
    frozen: int
    teacher: int
    group: int

    @classmethod
    def of(cls, pair: TeacherStudent) -> ParameterCounts:
        """Count those of a pair, which may be on the meta device."""
        own = [*pair.student.parameters(), *(pair.decoder.parameters() if pair.decoder is not None else ())]
        groups = [*pair.student.backbone.blocks, pair.student.head]
        return cls(
            learning=sum(parameter.numel() for parameter in own if parameter.requires_grad),
            frozen=sum(parameter.numel() for parameter in own if not parameter.requires_grad),
            teacher=sum(parameter.numel() for parameter in pair.teacher.parameters()),
            group=max(sum(parameter.numel() for parameter in group.parameters()) for group in groups),
        )

    @property
    def student(self) -> int:
        """All of student and decoder."""
        return self.learning + self.frozen


def bytes_sent(
    counts: ParameterCounts, devices: int, sharding: Sharding, *, compute: int, prototypes: int
) -> dict[str, int]:
    """Return what a device sends in one step, by what it is for.

    Gradients are summed once a step and in float32, whatever the number of passes. FSDP2 gathers the student once,
    keeps it to the end of the step's last part, and gathers the teacher once, both in the compute type.

    Args:
        counts: of the networks.
        devices: W.
        sharding: the engine.
        compute: bytes of a number of the compute type.
        prototypes: K; their mean logits move the center.
    """
    share = (devices - 1) / devices
    center = 2 * share * FLOAT32 * prototypes
    if sharding == "ddp":
        sent = {"gradients": 2 * share * FLOAT32 * counts.learning, "weights": 0.0, "center": center}
    else:
        weights = share * compute * (counts.student + counts.teacher)
        sent = {"gradients": share * FLOAT32 * counts.learning, "weights": weights, "center": center}
    return {name: round(size) for name, size in sent.items()}
