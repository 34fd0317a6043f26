"""The bytes that a step sends are those of the formula: counted by the program's own collectives."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mst.config.derive import derive
from mst.data.sampler import Share
from mst.parallel.traffic import FLOAT32, SHARDINGS, ParameterCounts, bytes_sent
from mst.parallel.world import World
from mst.train.schedule import step_values
from mst.train.step import train_step
from parallel.processes import run_in_processes
from parallel.test_data_parallel import BATCH, views_of
from train.tiny_run import tiny_config, tiny_state

SIZE = 2
CONFIG: dict[str, dict[str, Any]] = {
    "model": {"embed_dim": 128, "depth": 4, "head_hidden": 256, "prototypes": 512},
    "train": {"batch_size": BATCH, "accumulate": 2},
}


class Sent(TorchDispatchMode):
    """Adds up what this process sends, by ring algorithms, for each kind of collective and type of number."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            size = World.current().size
            kind = name.removeprefix("c10d::").split(".")[0]
            given = args[1] if kind == "_reduce_scatter_base_" else args[0]
            tensor = given[0] if isinstance(given, list) else given
            share = (size - 1) / size * (2 if kind == "allreduce_" else 1)
            key = f"{kind} {str(tensor.dtype).removeprefix('torch.')}"
            self.bytes[key] += round(share * tensor.nbytes)
            self.calls[key] += 1
        return func(*args, **(kwargs or {}))


def count(folder: str) -> None:
    world, found = World.current(), {}
    for sharding in SHARDINGS:
        config = tiny_config(**CONFIG, runtime={"sharding": sharding})
        plan = derive(config, 4 * BATCH, world.size).model_copy(update={"total_steps": 5})
        state = tiny_state(config, plan)
        for step in range(3):
            places = Share(world.rank, world.size, 0).microbatches(BATCH, 2)
            parts = [views_of(config.views.global_size, config.views.local_size, step, each) for each in places]
            sent = Sent()
            with sent:
                train_step(state, parts, step_values(plan, config, step), config, plan, dtype=torch.float32)
            state.step += 1
        found[sharding] = [sent.bytes, sent.calls]
    if world.first:
        Path(folder, "sent.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sent")
    run_in_processes("parallel.test_traffic:count", SIZE, str(folder))
    found: dict[str, Any] = json.loads((folder / "sent.json").read_text())
    return found


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_count_and_formula(sent: dict[str, Any], sharding: Any) -> None:
    config = tiny_config(**CONFIG)
    plan = derive(config, 4 * BATCH)
    counts = ParameterCounts.of(tiny_state(config, plan).pair)
    settings = {"compute": FLOAT32, "prototypes": plan.prototypes, "microbatches": 2, "host": SIZE}
    formula = bytes_sent(counts, SIZE, sharding, **settings)
    found, calls = sent[sharding]
    sums = found["allreduce_ float32"]  # center, losses and features [B, D] besides the gradients of DDP
    features = FLOAT32 * BATCH * config.model.embed_dim
    if sharding == "ddp":
        assert found.keys() == {"allreduce_ float32"}
        assert sums == pytest.approx(formula["gradients"] + formula["center"] + features, rel=0.001)
        return
    # Devices send as many rows each, so a parameter of one row (position embedding, CLS token) is sent with zeros.
    padded = FLOAT32 * config.model.embed_dim * (17 + 1) * (SIZE - 1) / SIZE
    groups = config.model.depth + 2  # the blocks, the rest of the backbone, the head
    assert found["_allgather_base_ float32"] == pytest.approx(formula["weights"] + 3 * padded, rel=0.002)
    assert found["_reduce_scatter_base_ float32"] == pytest.approx(formula["gradients"] + padded, rel=0.002)
    assert sums == pytest.approx(formula["center"] + features, rel=0.01)
    assert calls["_allgather_base_ float32"] == (groups + 1) + 2 * groups  # the teacher once a pass, the student once
    assert calls["_reduce_scatter_base_ float32"] == groups + 1
