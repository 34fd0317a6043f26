"""What a choice of settings is made from: facts of the images and of the device, and the cost of a network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SetFacts:
    """A data set, most of it measured on a sample.

    Attributes:
        count: images.
        size: median (H, W) in pixels.
        channels: of the images as they are stored.
        grey: whether all colours of the sample are grey.
        detail: side in pixels at which an image keeps nine tenths of its fine structure (`mst.data.look.detail_side`).
        alike: share of the sample that is nearly the same as another image of it.
    """

    count: int
    size: tuple[int, int]
    channels: int = 3
    grey: bool = False
    detail: int = 224
    alike: float = 0.0

    @property
    def side(self) -> int:
        """The shorter side."""
        return min(self.size)

    @property
    def photographs(self) -> bool:
        """Whether colours tell the images apart, as they do photographs."""
        return self.channels in (1, 3) and not self.grey

    @property
    def different(self) -> int:
        """About how many images are not nearly the same as another one."""
        return max(1, round(self.count * (1 - 0.75 * self.alike)))


@dataclass(frozen=True)
class DeviceFacts:
    """A device.

    Attributes:
        kind: cpu or cuda.
        flops_per_second: of a training step of a small network, over all processes.
        memory_bytes: that a run can have.
        threads: compute threads of a CPU; 1 for a GPU.
        processes: that share a batch.
    """

    kind: str
    flops_per_second: float
    memory_bytes: int
    threads: int = 1
    processes: int = 1

    @property
    def name(self) -> str:
        """CPU or GPU."""
        return "GPU" if self.kind == "cuda" else "CPU"


@dataclass(frozen=True)
class Shape:
    """What the cost of one image depends on: D wide, `depth` blocks, tokens of each global and local crop."""

    width: int
    depth: int
    global_tokens: int
    local_tokens: int
    global_crops: int = 2
    local_crops: int = 4

    def forward(self, tokens: int) -> float:
        """Return the operations of the backbone on one crop: products of its layers and of attention."""
        return self.depth * tokens * (24 * self.width**2 + 4 * tokens * self.width)

    @property
    def step_flops(self) -> float:
        """Operations of a training step for one image: the student's three passes and the teacher's one."""
        large, small = (
            self.global_crops * self.forward(self.global_tokens),
            self.local_crops * self.forward(self.local_tokens),
        )
        return 3 * (large + small) + large

    @property
    def bytes_kept(self) -> float:
        """Memory that one image takes in a step, coarsely: what the blocks keep for the backward pass."""
        tokens = self.global_crops * self.global_tokens + self.local_crops * self.local_tokens
        return 40.0 * tokens * self.width * self.depth
