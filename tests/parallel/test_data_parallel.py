"""The result of a training does not depend on the number of processes: 1, 2, 3 and 4 give the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mst.config.derive import derive
from mst.data.sampler import Share
from mst.engine.guard import StepGuard
from mst.parallel.world import World
from mst.runtime.seeding import generator
from mst.train.schedule import step_values
from mst.train.step import apply_step, step_gradients
from mst.views.record import Views
from parallel.processes import run_in_processes
from train.tiny_run import tiny_config, tiny_state

STEPS, BATCH = 20, 11
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "low": {},
    "low, accumulate 2": {"train": {"accumulate": 2}},
    "block": {"objective": {"strategy": "block"}},
    "block, accumulate 2": {"objective": {"strategy": "block"}, "train": {"accumulate": 2}},
    "random, half of the images": {"objective": {"strategy": "random", "masked_sample_share": 0.5}},
    "random, half, accumulate 2": {
        "objective": {"strategy": "random", "masked_sample_share": 0.5},
        "train": {"accumulate": 2},
    },
    "BatchNorm": {"model": {"head_norm": "batch"}},
    "BatchNorm, accumulate 2": {"model": {"head_norm": "batch"}, "train": {"accumulate": 2}},
    "BatchNorm, block": {"model": {"head_norm": "batch"}, "objective": {"strategy": "block"}},
    "none, drop path": {"objective": {"strategy": "none"}, "model": {"drop_path": 0.3}},
    "restoration only": {"objective": {"distillation_weight": 0.0}},
    "Swin": {
        "model": {"backbone": "swin_tiny_patch4_window7_224", "patch_size": 8, "depth": 2, "num_heads": 1},
        "views": {"global_size": 32, "local_size": 16},
    },
    "lanes": {"runtime": {"lanes": 4}},
    "lanes, accumulate 2": {"runtime": {"lanes": 4}, "train": {"accumulate": 2}, "model": {"drop_path": 0.2}},
}


def trained(sections: dict[str, dict[str, Any]], steps: int = STEPS) -> dict[str, Tensor]:
    """Train a tiny run on this process's share of each batch; return weights, center, features and losses."""
    world = World.current()
    sections = {**sections, "train": {"batch_size": BATCH, **sections.get("train", {})}}
    sections["runtime"] = {"replicas": 1, **sections.get("runtime", {})}
    config = tiny_config(**sections)
    plan = derive(config, 4 * BATCH, world.size).model_copy(update={"total_steps": steps, "warmup_steps": 2})
    state = tiny_state(config, plan)
    share = Share(world.rank, world.size, config.runtime.lanes)
    positions = share.microbatches(BATCH, config.train.accumulate)
    guard, history = StepGuard(state.buffers), []
    for step in range(steps):
        values = step_values(plan, config, step)
        parts = [views_of(config.views.global_size, config.views.local_size, step, places) for places in positions]
        report = guard.gradients(
            lambda parts=parts, values=values: step_gradients(  # type: ignore[misc]
                state, parts, values, config, plan, dtype=torch.float32, statistics=True
            )
        )
        apply_step(state, report, values, config)
        state.step += 1
        history.append([*report.scalars().values(), *report.statistics.values()])
    weights = {f"weight {name}": value for name, value in state.pair.state_dict().items()}
    return weights | {"center": state.center, "features": report.features, "history": torch.tensor(history)}


def views_of(size: int, small: int, step: int, places: range) -> Views:
    """Return crops of some images of a batch; the images of all shares make the batch."""
    draws = generator(3, step)
    large = torch.randn(2, BATCH, 3, size, size, generator=draws)
    local = torch.randn(2, BATCH, 3, small, small, generator=draws)
    own = slice(places.start, places.stop)
    return Views(large[:, own], local[:, own], torch.arange(BATCH)[own], places)


def train_all(folder: str, cases: str) -> None:
    """Train every case; the first process writes what came out, after a comparison with the others."""
    world = World.current()
    for number, case in enumerate(json.loads(cases)):
        outcome = trained(CASES[case])
        digests = world.collect({name: value.double().sum().item() for name, value in outcome.items()})
        assert all(digest == digests[0] for digest in digests), case
        if world.first:
            torch.save(outcome, Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Tensor]]]:
    """Return what each case gives with 1 to 4 processes."""
    found: dict[int, dict[str, dict[str, Tensor]]] = {}
    for size in (1, 2, 3, 4):
        folder = tmp_path_factory.mktemp(f"processes{size}")
        cases = [case for case in CASES if size != 3 or not case.startswith("lanes")]
        if size == 1:
            train_all(str(folder), json.dumps(cases))
        else:
            run_in_processes("parallel.test_data_parallel:train_all", size, str(folder), json.dumps(cases))
        found[size] = {case: torch.load(folder / f"{number}.pt") for number, case in enumerate(cases)}
    return found


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the length of the difference of all weights, over the length of the weights."""
    names = [name for name in one if name.startswith("weight")]
    before, after = (torch.cat([found[name].double().flatten() for name in names]) for found in (one, other))
    return float((before - after).norm() / before.norm())


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("lanes")])
def test_weights_do_not_depend_on_processes(
    outcomes: dict[int, dict[str, dict[str, Tensor]]], case: str, size: int
) -> None:
    alone, several = outcomes[1][case], outcomes[size][case]
    assert relative(alone, several) < 1e-5
    torch.testing.assert_close(several["center"], alone["center"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(several["features"], alone["features"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(several["history"], alone["history"], rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("lanes")])
def test_lanes_are_bit_equal(outcomes: dict[int, dict[str, dict[str, Tensor]]], case: str, size: int) -> None:
    alone, several = outcomes[1][case], outcomes[size][case]
    for name, value in alone.items():
        assert torch.equal(several[name], value) or name == "history", name


def test_lanes_are_the_batch_up_to_rounding(outcomes: dict[int, dict[str, dict[str, Tensor]]]) -> None:
    assert relative(outcomes[1]["low"], outcomes[1]["lanes"]) < 1e-5
