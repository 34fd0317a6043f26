"""Whether the first step of a run fits into memory: known before the networks are built, said in one line.

Most runs are told to fit by a sum of sizes (`bounds`), which costs nothing: it is 1.5 to 5 times what is taken, and
half of the available memory has to hold it. Where that leaves it open, a step without arithmetic counts
(`mst.planning.simulation`), 0.5 to 3 seconds on an idle core whatever the batch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

from mst.engine.fitting import (
    COMFORT,
    REFUSED,
    Fit,
    MicrobatchSize,
    counted_fit,
    heed,
    of_interest,
)
from mst.engine.footprint import Counted
from mst.model.bounds import most_of_scores, most_of_tokens
from mst.model.build import own_sizes
from mst.model.decoder import PIXEL_WIDTH
from mst.planning.estimate import networks_memory
from mst.planning.setup import Setup
from mst.runtime.device import free_memory
from mst.train.state import replica_count

TOKENS_COUNTED, LOGITS_COUNTED = 2**22, 2**28
"""Of the largest step that is counted: the draws of its masks are real numbers. Beyond, a line goes on."""
BLOCKS_COUNTED = 6, 12
"""Of a deep network: each block takes as much as any other."""
MAPS_A_PIXEL = 10
"""Most numbers that the decoder keeps for each channel of a pixel's map."""


def check_fits(setup: Setup) -> None:
    """Refuse a run whose first step cannot fit into the memory of its device; warn where it is tight.

    Raises:
        UsageError: it cannot; says what is needed and available, and which setting to change to what.
    """
    heed(fit(setup), microbatch_of(setup))


def microbatch_of(setup: Setup) -> MicrobatchSize:
    """Return what a microbatch of a run is."""
    return MicrobatchSize(
        setup.plan.batch_size_per_pass,
        setup.plan.batch_size,
        setup.config.train.accumulate,
        setup.device,
        smaller="smaller crops (--views.global-size, --views.local-size, --views.local-crops)",
        network="a smaller network (--model.backbone, --model.prototypes)",
        section="--train.",
    )


def fit(setup: Setup) -> Fit | None:
    """Return what the first step takes, or None where it fits."""
    available = free_memory(setup.device)
    least, most = bounds(setup)
    if most <= COMFORT * available:
        return None
    if least > REFUSED * available and bounds(with_images(setup, 1))[0] > REFUSED * available:
        return Fit(least, available, 0)
    interest = of_interest(available)
    counted = Counted(partial(counted_bytes, setup, interest), largest=_largest(setup), most=interest)
    return counted_fit(microbatch_of(setup), available, counted, least=least)


def with_images(setup: Setup, images: int) -> Setup:
    """Return a run with so many images in a microbatch."""
    return replace(setup, plan=setup.plan.model_copy(update={"batch_size_per_pass": images}))


def bounds(setup: Setup) -> tuple[int, int]:
    """Return bytes that the first step takes at least and at most, from the sizes of networks and crops alone.

    Both are coarse: they decide only where they are far from what is available. Letters: P parameters, D width of a
    token, N tokens, A heads, K prototypes.
    """
    config, plan, model = setup.config, setup.plan, setup.config.model
    own, views, images = own_sizes(setup.spec.name), config.views, plan.batch_size_per_pass
    wider = (model.embed_dim or own.embed_dim) / own.embed_dim
    width = own.width * wider
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
    of_tokens = most_of_tokens(setup.spec, kept=kept, seen=seen)
    scores = most_of_scores(setup.spec, tokens) * views.global_crops
    of_decoder = 4 * MAPS_A_PIXEL * PIXEL_WIDTH * prod(plan.global_size) * views.global_crops
    of_head = (24 * plan.prototypes + 60 * model.head_hidden) * (views.global_crops + views.local_crops)
    raw = 4 * config.data.channels * pixels
    least = 20 * (0.5 * backbone + 0.9 * (head + fixed)) + images * raw
    most = (36 + 4 * others) * (1.5 * backbone + head + fixed + decoder + embedding) + 2**28
    return round(least), round(most + images * (6 * raw + of_tokens + scores + of_decoder + of_head))


def counted_bytes(setup: Setup, most: int, images: int) -> int:
    """Return the memory of a microbatch of so many images; of a deep network by some of its blocks.

    Raises:
        TooManyBytes: more than `most`.
    """
    depth = setup.config.model.depth or own_sizes(setup.spec.name).depth
    if depth <= 2 * BLOCKS_COUNTED[1]:
        return _simulated(setup, most, images, {})
    shallow, deep = (_simulated(setup, most, images, {"depth": blocks}) for blocks in BLOCKS_COUNTED)
    return round(deep + (deep - shallow) / (BLOCKS_COUNTED[1] - BLOCKS_COUNTED[0]) * (depth - BLOCKS_COUNTED[1]))


def _simulated(setup: Setup, most: int, images: int, model: dict[str, int]) -> int:
    config = setup.config.model_copy(update={"model": setup.config.model.model_copy(update=model)})
    return networks_memory(replace(with_images(setup, images), config=config), most=most)


def _largest(setup: Setup) -> int:
    """Return how many images of a microbatch are counted at most."""
    views, plan = setup.config.views, setup.plan
    tokens = views.global_crops * (prod(plan.global_size) // setup.spec.patch_size**2 + 1)
    logits = (views.global_crops + views.local_crops) * plan.prototypes
    return max(1, min(TOKENS_COUNTED // tokens, LOGITS_COUNTED // logits, plan.batch_size_per_pass))
