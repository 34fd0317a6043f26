"""The result of a training does not depend on the number of processes: 1, 2, 3 and 4 give the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

STEPS, SWIN_STEPS, BATCH = 20, 4, 11
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
        outcome = trained(CASES[case], SWIN_STEPS if case == "Swin" else STEPS)
        digests = world.collect({name: value.double().nan_to_num().sum().item() for name, value in outcome.items()})
        assert all(digest == digests[0] for digest in digests), case
        if world.first:
            torch.save(outcome, Path(folder) / f"{number}.pt")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with some number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Outcomes = dict[int, dict[str, dict[str, Tensor]]]


def trained_by(folders: pytest.TempPathFactory, sizes: Sequence[int], cases: Sequence[str]) -> Outcomes:
    """Return what each case gives with each number of processes."""
    found: Outcomes = {}
    for size in sizes:
        folder = folders.mktemp(f"processes{size}")
        own = [case for case in cases if size != 3 or not case.startswith("lanes")]
        if size == 1:
            with threads(1):  # as many as each of several has: bits depend on it
                train_all(str(folder), json.dumps(own))
        else:
            run_in_processes("parallel.test_data_parallel:train_all", size, str(folder), json.dumps(own), timeout=1500)
        found[size] = {case: torch.load(folder / f"{number}.pt") for number, case in enumerate(own)}
    return found


def without_zeros(name: str, value: Tensor) -> Tensor:
    """Leave out what has no gradient but rounding, which Adam blows up: biases of keys and before BatchNorm.

    A running mean holds the bias before it.
    """
    if name.endswith("qkv.bias"):
        return value.view(3, -1)[[0, 2]]
    return value[:0] if name.endswith(("head.mlp.0.bias", "head.mlp.3.bias", "running_mean")) else value


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the length of the difference of all weights, over the length of the weights."""
    names = [name for name in one if name.startswith("weight")]
    before, after = (
        torch.cat([without_zeros(name, found[name]).double().flatten() for name in names]) for found in (one, other)
    )
    return float((before - after).norm() / before.norm())


def compare(alone: dict[str, Tensor], several: dict[str, Tensor], *, bits: bool) -> None:
    """Compare weights, center, features and the history of losses and statistics."""
    if bits:
        assert all(torch.equal(several[name], value) for name, value in alone.items() if name != "history")
    assert relative(alone, several) < 1e-6
    torch.testing.assert_close(several["center"], alone["center"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(several["features"], alone["features"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(several["history"], alone["history"], rtol=1e-3, atol=1e-4, equal_nan=True)


FEW = ["random, half, accumulate 2", "BatchNorm, accumulate 2", "none, drop path", "lanes"]


def test_two_processes_give_what_one_gives(tmp_path_factory: pytest.TempPathFactory) -> None:
    outcomes = trained_by(tmp_path_factory, (1, 2), FEW)
    for case in FEW:
        compare(outcomes[1][case], outcomes[2][case], bits=case == "lanes")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_weights_do_not_depend_on_processes(tmp_path_factory: pytest.TempPathFactory) -> None:
    outcomes = trained_by(tmp_path_factory, (1, 2, 3, 4), list(CASES))
    for size in (2, 3, 4):
        for case, several in outcomes[size].items():
            compare(outcomes[1][case], several, bits=case.startswith("lanes"))
    assert relative(outcomes[1]["low"], outcomes[1]["lanes"]) < 1e-6
