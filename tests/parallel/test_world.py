"""Processes of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mst.parallel.world import World


def test_mean_over_one_process_is_the_value() -> None:
    value = torch.arange(3.0)
    assert World.current().mean(value) is value


def test_mean_over_two_processes_divides_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(other))
    assert World.current().mean(own).tolist() == [2.0, 5.0]
    assert own.tolist() == [1.0, 2.0]
    assert World.current() == World(rank=1, size=2)


CENTER_OF_ONE_PROCESS = """
import sys
import torch
import torch.distributed as dist
from mst.objective.dino import updated_center
from mst.parallel.world import World

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
center = torch.arange(8.0)[None]
teacher_logits = torch.arange(64.0).view(2, 4, 8).sin()
own = teacher_logits[:, 2 * rank : 2 * rank + 2]
together = World.current().mean(updated_center(center, own, 0.9))
torch.testing.assert_close(together, updated_center(center, teacher_logits, 0.9))
assert not torch.allclose(together, updated_center(center, own, 0.9))
dist.destroy_process_group()
"""


@pytest.mark.slow  # two processes that import torch
def test_center_of_two_processes_is_the_center_of_the_global_batch(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CENTER_OF_ONE_PROCESS, str(rank), str(tmp_path / "rendezvous")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
