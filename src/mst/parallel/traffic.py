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
HOST = 8
"""GPUs of a host, as NVIDIA's DGX and HGX machines have them."""


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


def held_by(devices: int, sharding: Sharding, *, host: int = HOST) -> int:
    """Return among how many devices a tensor is divided: those of a host, or all where hosts have one each."""
    if sharding == "ddp":
        return 1
    return host if devices > host and devices % host == 0 and host > 1 else devices


def bytes_sent(
    counts: ParameterCounts,
    devices: int,
    sharding: Sharding,
    *,
    compute: int,
    prototypes: int,
    microbatches: int = 1,
    host: int = HOST,
) -> dict[str, int]:
    """Return what a device sends in one step, by what it is for.

    Gradients are summed once a step, in float32. FSDP2 gathers the student once, keeping it to the end of the step's
    last part, and the teacher once a microbatch, both in the compute type. Of several hosts each has all parts:
    gradients are reduce-scattered inside, and their parts all-reduced between hosts. Left out are a few sums over the
    images (features [B, D]) and what FSDP2 sends of parameters whose rows no devices share out evenly.

    Args:
        counts: of the networks.
        devices: W.
        sharding: the engine.
        compute: bytes of a number of the compute type.
        prototypes: K; their mean logits move the center.
        microbatches: of a step.
        host: devices of a host.
    """
    parts = held_by(devices, sharding, host=host)
    inside, between = (parts - 1) / parts, (devices // parts - 1) / (devices // parts)
    sent = {
        "gradients": FLOAT32 * counts.learning * (inside + 2 * between / parts),
        "weights": inside * compute * (counts.student + microbatches * counts.teacher),
        "center": 2 * (devices - 1) / devices * FLOAT32 * prototypes,
    }
    return {name: round(size) for name, size in sent.items()}
