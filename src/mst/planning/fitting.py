"""Whether the first step of a run fits into memory: known before the networks are built, said in one line.

Most runs are told to fit by a sum of sizes (`bounds`), which costs nothing. Where that leaves it open, a step without
arithmetic counts (`mst.planning.simulation`), at most a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from mst.errors import UsageError
from mst.model.build import own_sizes
from mst.model.decoder import PIXEL_WIDTH
from mst.planning.estimate import networks_memory
from mst.planning.setup import Setup
from mst.planning.simulation import TooManyBytes
from mst.runtime import logging
from mst.runtime.device import free_memory
from mst.train.state import replica_count

FAR = 2.5
"""Times the available memory from which it does not matter how much more is needed."""
COMFORT = 0.5
"""Share of the available memory up to which a bound decides that a run fits."""
TIGHT, REFUSED = 0.9, 1.25
"""Shares from which an estimate is a warning, and a refusal: it may be a fifth too high, and programs end."""
TOKENS_COUNTED, LOGITS_COUNTED = 2**22, 2**28
"""Of the largest step that is counted: the draws of its masks are real numbers. Beyond, a line goes on."""
BLOCKS_COUNTED = 6, 12
"""Of a deep network: each block takes as much as any other."""
BYTES_A_WIDTH = 120
"""Most bytes that a block keeps or uses at a time for each number of a token, with float32 and no recomputation."""
MAPS_A_PIXEL = 24
"""Most numbers that the decoder keeps for each channel of a pixel's map."""


@dataclass(frozen=True)
class Fit:
    """What the first step of a run takes, where it does not clearly fit.

    Attributes:
        needed: bytes of one pass with networks and optimizer, estimated; the least where it is far too much.
        available: bytes there are.
        images: of a pass that fit, about and at most; 0 = not even one does.
    """

    needed: int
    available: int
    images: int


def check_fits(setup: Setup) -> None:
    """Refuse a run whose first step cannot fit into the memory of its device; warn where it is tight.

    Raises:
        UsageError: it cannot; says what is needed and available, and which setting to change to what.
    """
    found = fit(setup)
    if found is None:
        return
    said = statement(setup, found)
    if found.needed > REFUSED * found.available:
        raise UsageError(said)
    logging.warn(said)


def fit(setup: Setup) -> Fit | None:
    """Return what the first step takes, or None where it fits."""
    available = free_memory(setup.device)
    least, most = bounds(setup)
    if most <= COMFORT * available:
        return None
    asked = setup.plan.batch_size_per_pass
    if least > REFUSED * available and bounds(with_images(setup, 1))[0] > REFUSED * available:
        return Fit(least, available, 0)
    needed = _Counted(setup, round(max(FAR * available, 2**30)))
    expected = least if least > FAR * available else needed.of(asked)
    if expected <= TIGHT * available:
        return None
    return Fit(expected, available, needed.most_images(TIGHT * available))


def statement(setup: Setup, found: Fit) -> str:
    """Return one line: what is needed and available, and what to change to what."""
    images, batch, passes = setup.plan.batch_size_per_pass, setup.plan.batch_size, setup.config.train.accumulate
    about = "at least" if found.needed > 2 * found.available else "about"
    verdict = "may not fit" if found.needed <= REFUSED * found.available else "does not fit"
    beginning = (
        f"a pass of {images} image{'s' * (images != 1)} needs {about} {_gib(found.needed)} of memory, "
        f"and {_gib(found.available)} are available on {setup.device}: it {verdict}"
    )
    smaller = "smaller crops (--views.global-size, --views.local-size, --views.local-crops)"
    network = "a smaller network (--model.backbone, --model.prototypes)"
    if not found.images:
        return f"{beginning}, and not even one image does: use {smaller} or {network}"
    if found.images >= images:
        return f"{beginning}: raise --train.accumulate, or use {smaller}"
    parts = next(n for n in range(passes, batch + 1) if batch % n == 0 and batch // n <= found.images)
    keeps = f"--train.accumulate {parts} keeps the batch of {batch}"
    return (
        f"{beginning}; at most {found.images} do: {keeps}, or use --train.batch-size {found.images * passes}, "
        f"{smaller} or {network}"
    )


def with_images(setup: Setup, images: int) -> Setup:
    """Return a run with so many images in a pass."""
    return replace(setup, plan=setup.plan.model_copy(update={"batch_size_per_pass": images}))


def bounds(setup: Setup) -> tuple[int, int]:
    """Return bytes that the first step takes at least and at most, from the sizes of networks and crops alone.

    Both are coarse: they decide only where they are far from what is available. Letters: P parameters, D width of a
    token, N tokens, A heads, K prototypes.
    """
    config, plan, model = setup.config, setup.plan, setup.config.model
    own, views, images = own_sizes(setup.spec.name), config.views, plan.batch_size_per_pass
    wider = (model.embed_dim or own.embed_dim) / own.embed_dim
    stages = 8 if own.width != own.embed_dim else 1  # Swin: tokens times width fall by two from stage to stage
    width, depth = own.width * wider, own.depth if model.depth is None else model.depth + stages
    backbone = own.parameters * wider**2 * (model.depth or own.depth) / own.depth
    head = (width + model.head_hidden + model.head_bottleneck) * model.head_hidden
    fixed = plan.prototypes * model.head_bottleneck
    patch, hidden = setup.spec.patch_size, PIXEL_WIDTH * setup.spec.patch_size
    decoder = (24 * hidden + width) * hidden if config.objective.restoration_weight else 0
    tokens = prod(plan.global_size) // patch**2 + 1
    embedding = width * (tokens + config.data.channels * patch**2)
    others = replica_count(config, plan, setup.device) - 1

    seen, local = tokens * views.global_crops, (prod(plan.local_size) // patch**2 + 1) * views.local_crops  # N of all
    kept = seen + local if model.head_norm == "batch" else max(tokens, local)  # at a time
    pixels = views.global_crops * prod(plan.global_size) + views.local_crops * prod(plan.local_size)
    of_tokens = stages * (kept * depth + seen) * width * BYTES_A_WIDTH
    scores = 16 * (model.num_heads or own.width // 32) * tokens**2 * views.global_crops
    of_decoder = 4 * MAPS_A_PIXEL * PIXEL_WIDTH * prod(plan.global_size) * views.global_crops
    of_head = (24 * plan.prototypes + 60 * model.head_hidden) * (views.global_crops + views.local_crops)
    raw = 4 * config.data.channels * pixels
    least = 20 * (0.5 * backbone + 0.9 * (head + fixed)) + images * raw
    most = (36 + 4 * others) * (1.5 * backbone + head + fixed + decoder + embedding) + 2**28
    return round(least), round(most + images * (6 * raw + of_tokens + scores + of_decoder + of_head))


def _gib(size: int) -> str:
    return f"{size / 2**30:,.{1 if size < 100 * 2**30 else 0}f} GiB"


class _Counted:
    """The memory of passes of any number of images: counted up to a size and a depth, beyond them a line goes on."""

    def __init__(self, setup: Setup, most: int) -> None:
        self._setup, self._most = setup, most
        self._known: dict[int, int] = {}
        views, plan = setup.config.views, setup.plan
        tokens = views.global_crops * (prod(plan.global_size) // setup.spec.patch_size**2 + 1)
        logits = (views.global_crops + views.local_crops) * plan.prototypes
        counted = min(TOKENS_COUNTED // tokens, LOGITS_COUNTED // logits)
        self._largest = max(1, min(counted, plan.batch_size_per_pass))

    def of(self, images: int) -> int:
        """Return the bytes that a pass of so many images takes; `most` where it is more than that."""
        if images > self._largest:
            half = max(1, self._largest // 2)
            at_half, at_largest = self.of(half), self.of(self._largest)
            each = (at_largest - at_half) / max(1, self._largest - half) or at_largest / self._largest
            return round(at_largest + each * (images - self._largest))
        if images not in self._known:
            self._known[images] = min(self._most, self._count(images))
        return self._known[images]

    def most_images(self, room: float) -> int:
        """Return how many images fit into so many bytes, by the line through two passes, one of which does; 0: none."""
        few = max((images for images, size in self._known.items() if size <= room), default=1)
        if self.of(few) > room:
            return 0
        more = min((images for images, size in self._known.items() if images > few and size < self._most), default=0)
        found = self._on_line(few, more or min(few + 7, self._largest), room)
        if few < found <= self._largest and self.of(found) > room:  # the line is a little too flat near its start
            found = self._on_line(few, found, room)
        return found

    def _on_line(self, few: int, more: int, room: float) -> int:
        if more == few or self.of(more) == self._most:
            return few
        each = max(1.0, (self.of(more) - self.of(few)) / (more - few))
        return few + int((room - self.of(few)) / each)

    def _count(self, images: int) -> int:
        depth = self._setup.config.model.depth or own_sizes(self._setup.spec.name).depth
        if depth <= 2 * BLOCKS_COUNTED[1]:
            return self._simulated(images, {})
        shallow, deep = (self._simulated(images, {"depth": blocks}) for blocks in BLOCKS_COUNTED)
        return round(deep + (deep - shallow) / (BLOCKS_COUNTED[1] - BLOCKS_COUNTED[0]) * (depth - BLOCKS_COUNTED[1]))

    def _simulated(self, images: int, model: dict[str, int]) -> int:
        setup = self._setup
        config = setup.config.model_copy(update={"model": setup.config.model.model_copy(update=model)})
        try:
            return networks_memory(replace(with_images(setup, images), config=config), most=self._most)
        except TooManyBytes:
            return self._most
