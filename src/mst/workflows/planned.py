"""What a run will do, before it does it, for users of the Python API: `mst plan` as a record."""

from __future__ import annotations

from dataclasses import dataclass

from mst.config.load import require_data
from mst.config.schema import RunConfig, RunPlan
from mst.planning.estimate import Estimate, estimate
from mst.planning.fitting import check_fits
from mst.planning.resolving import resolved
from mst.planning.setup import prepare
from mst.runtime import logging


@dataclass(frozen=True)
class PlannedRun:
    """A run that could be started.

    Attributes:
        config: what was asked for, or chosen for these images.
        plan: what follows from it; `plan.reasons` says of each value why.
        images: training images.
        device: where the networks go.
        precision: compute type, and why.
        estimate: time and memory from a few steps; None = not asked for.
    """

    config: RunConfig
    plan: RunPlan
    images: int
    device: str
    precision: str
    estimate: Estimate | None = None


def plan(config: RunConfig, *, probe: bool = False, quiet: bool = True) -> PlannedRun:
    """Check a configuration and its images, and say what would run; nothing is written.

    Args:
        config: see `mst.load_recipe`.
        probe: run a few steps for an estimate of time and memory.
        quiet: print warnings only.

    Raises:
        UsageError: the first thing that is wrong with settings or images, or (with `probe`) too little memory.
    """
    require_data(config)
    with logging.only_warnings(quiet):
        setup = prepare(resolved(config))
        probed = None
        if probe:
            check_fits(setup)
            probed = estimate(setup)
    return PlannedRun(setup.config, setup.plan, len(setup.images), str(setup.device), setup.precision_reason, probed)
