"""`mst bench`: a recipe's speed on this machine: step, loader and both, arithmetic and memory, and what limits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from mst.config.load import override
from mst.errors import UsageError
from mst.paths import SourceText
from mst.recipes import base_config
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_run_words

if TYPE_CHECKING:
    from mst.planning.measuring import Speed

GOOD_SHARE = 0.45
"""Share of the ceiling from which a step uses its device well."""
LONG_WAIT = 0.1
"""Share of the time spent waiting for data from which the loader is what limits a run."""


@dataclass(frozen=True)
class BenchOptions:
    """A recipe's speed on this machine: step, loader and both, arithmetic and memory, and what limits them."""

    recipe: Annotated[tyro.conf.Positional[SourceText], tyro.conf.arg(metavar="RECIPE")] = ""
    """A recipe (see `mst recipes`) or a JSON file of settings. Without --data.train the step alone is measured."""
    steps: int = 10
    """Most steps of each measurement."""
    seconds: float = 10.0
    """About how long each measurement may take; where few steps fit, they are done with fewer images."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parsed = parse_run_words(BenchOptions, argv, prog="mst bench")
    if parsed is None:
        return 0
    options, words = parsed
    if not options.recipe:
        raise UsageError("name a recipe: mst bench RECIPE [--data.train PATH] (all recipes: mst recipes)")
    if options.steps < 1:
        raise UsageError(f"--steps {options.steps}: at least 1")
    if options.seconds <= 0:
        raise UsageError(f"--seconds {options.seconds:g}: must be above 0")
    config = override(base_config(options.recipe), words)

    from mst.planning.measuring import measure, prepare_without_images
    from mst.planning.resolving import resolved
    from mst.planning.setup import loader_workers, prepare

    setup = prepare(resolved(config)) if config.data.train else prepare_without_images(config)
    speed = measure(setup, steps=options.steps, seconds=options.seconds)
    advice = bottleneck(speed, workers=loader_workers(config, setup.device), on_gpu=setup.device.type != "cpu")
    if options.json:
        machine = {"device": str(setup.device), "precision": setup.precision_reason}
        emit_json({"recipe": config.recipe, **machine, **asdict(speed), "bottleneck": advice})
    else:
        emit(describe_speed(speed, title=f"{config.recipe} on {setup.device}, {setup.precision_reason}"), advice)
    return 0


def bottleneck(speed: Speed, *, workers: int, on_gpu: bool) -> str:
    """Say in one line what limits a run, and what to change."""
    loader, step = speed.loader_images_per_second, speed.step_images_per_second
    arithmetic = f"the step does {speed.ceiling_share:.0%} of the FLOP/s of a large matrix product here"
    if loader is not None and (loader < step or (speed.data_wait or 0.0) > LONG_WAIT):
        more = "raise --runtime.workers" if workers else "--runtime.workers 1 or more, where there are cores for it"
        moved = " or --runtime.colour device" if on_gpu else ""
        return (
            f"bottleneck: the loader ({loader:.3g} images/s alone with {workers} workers; the step alone takes "
            f"{step:.3g}): {more}{moved}, fewer --views.local-crops, or images stored smaller"
        )
    if speed.ceiling_share >= GOOD_SHARE:
        return (
            f"bottleneck: the networks' arithmetic ({arithmetic}): only fewer or smaller crops or networks are faster"
        )
    small = "a larger --train.batch-size or a smaller --train.accumulate fills the device better"
    return f"bottleneck: the step, but not its matrix products ({arithmetic}): {small}"


def describe_speed(speed: Speed, *, title: str) -> Table:
    """Return the figures as a table."""
    table = Table("measured", "", title=title, title_justify="left")
    table.add_row("images per pass", f"{speed.images_per_pass} (the recipe's: {speed.recipe_images_per_pass})")
    table.add_row(
        "images/s of the step alone", f"{speed.step_images_per_second:.4g} ({speed.step_seconds:.3g} s a step)"
    )
    if speed.loader_images_per_second is not None:
        table.add_row("images/s of the loader alone", f"{speed.loader_images_per_second:.4g}")
    if speed.images_per_second is not None and speed.data_wait is not None:
        table.add_row("images/s of both together", f"{speed.images_per_second:.4g}")
        table.add_row("share of time waiting for data", f"{speed.data_wait:.1%}")
    table.add_row("arithmetic of the step", f"{speed.step_flops_per_second / 1e12:.3g} TFLOP/s")
    table.add_row("of a large matrix product", f"{speed.ceiling_flops_per_second / 1e12:.3g} TFLOP/s")
    table.add_row("share of that ceiling", f"{speed.ceiling_share:.0%}")
    table.add_row("largest memory", f"{speed.memory_bytes / 2**30:.2f} GiB")
    return table
