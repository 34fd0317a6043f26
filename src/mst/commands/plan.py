"""`mst plan`: what a run will do, before it does it: derived values with reasons, steps, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from mst.config.load import flatten, override, require_data, with_given
from mst.config.schema import RunConfig
from mst.errors import UsageError
from mst.paths import SourceText
from mst.recipes import base_config
from mst.runtime import logging
from mst.runtime.limits import check_numbers
from mst.terminal.minutes import timed
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_run_words

if TYPE_CHECKING:
    from mst.planning.estimate import Estimate
    from mst.planning.scaling import DevicePlan


@dataclass(frozen=True)
class PlanOptions:
    """What a run will do: derived values with reasons, steps, and time and memory from a few probe steps."""

    recipe: Annotated[tyro.conf.Positional[SourceText], tyro.conf.arg(metavar="RECIPE")] = ""
    """A recipe (see `mst recipes`) or a JSON file of settings."""
    minutes: float | None = None
    """How long the run may take: own-images chooses everything for it, any other recipe its epochs only."""
    probe: bool = True
    """Run a few steps for an estimate of time and memory."""
    devices: tuple[int, ...] | None = None
    """Numbers of GPUs, in hosts of 8: say what each holds and sends with DDP and FSDP2; nothing is run for it."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parsed = parse_run_words(PlanOptions, argv, prog="mst plan")
    if parsed is None:
        return 0
    options, words = parsed
    if not options.recipe:
        raise UsageError("name a recipe: mst plan RECIPE --data.train PATH (all recipes: mst recipes)")
    check_numbers(options, "devices", least=1)
    config = timed(with_given(override(base_config(options.recipe), words), words), options.minutes, words)
    require_data(config)

    from mst.engine.fitting import statement
    from mst.planning.fitting import check_fits, fit, microbatch_of
    from mst.planning.resolving import resolved
    from mst.planning.setup import describe_setup, prepare
    from mst.train.dynamics import tell_foreseen

    setup = prepare(resolved(config))
    choice = setup.config.choice
    if not options.json:
        emit(describe_setup(setup))
    tell_foreseen(setup.config, setup.plan)
    probed, plans = None, None
    if options.devices is not None:
        from mst.planning.scaling import device_plans

        plans = device_plans(setup, options.devices)
    elif options.probe:
        from mst.planning.estimate import estimate

        check_fits(setup)
        probed = estimate(setup)
    elif (found := fit(setup)) is not None:
        logging.warn(statement(found, microbatch_of(setup)))
    if options.json:
        emit_json(
            {
                "recipe": config.recipe,
                "device": str(setup.device),
                "precision": setup.precision_reason,
                "plan": setup.plan.model_dump(mode="json"),
                **({"choice": {**choice.model_dump(mode="json"), "settings": chosen(setup.config)}} if choice else {}),
                "estimate": asdict(probed) if probed else None,
                **({"devices": [asdict(plan) for plan in plans]} if plans is not None else {}),
            }
        )
    elif plans is not None:
        emit(describe_devices(plans))
    elif probed:
        emit(describe_estimate(probed))
    return 0


def chosen(config: RunConfig) -> dict[str, object]:
    """Return the settings that were chosen, by their dotted keys."""
    values = flatten(config)
    return {key: values[key] for key in config.choice.reasons} if config.choice else {}


def describe_estimate(estimate: Estimate) -> Table:
    """Return the estimate as a table."""
    table = Table("estimate", "", title="from a few steps on random crops", title_justify="left")
    table.add_row("time of a step", f"{estimate.step_seconds:.3g} s")
    table.add_row("images per second", f"{estimate.images_per_second:.3g}")
    table.add_row("images per second the loader can give", f"{estimate.data_images_per_second:.3g}")
    table.add_row("time of the run", duration(estimate.total_seconds))
    table.add_row("largest memory", f"{estimate.memory_bytes / 2**30:.2f} GiB")
    return table


def describe_devices(plans: Sequence[DevicePlan]) -> Table:
    """Return the plans for several devices as a table, one a column."""
    from mst.planning.scaling import PARTS

    title = "GB on each GPU, without CUDA's own; and GB that it sends in a step"
    table = Table("", title=title, title_justify="left")
    for plan in plans:
        blocks = "recomputed" if plan.activation_checkpointing else ""
        table.add_column(f"{plan.sharding}\n{plan.devices} GPUs\n{blocks}", justify="right")
    table.add_row("images of a pass", *(str(plan.images) for plan in plans))
    for part in (*PARTS, "total"):
        table.add_row(part.replace("_", " "), *(_gigabytes(getattr(plan, part)) for plan in plans))
    table.add_row("sent in a step", *(_gigabytes(sum(plan.sent.values())) for plan in plans))
    return table


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
