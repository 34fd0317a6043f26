"""What a run takes on many devices: in proportion to what a step really holds, and known without its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.calls import call, image_folder
from mst.engine.footprint import LiveBytes
from mst.errors import ConfigError
from mst.parallel.traffic import ParameterCounts, bytes_sent, held_by
from mst.planning.scaling import PARTS, device_plans
from mst.planning.simulation import meta_pair, simulate_step
from planning.test_fitting import setup


@pytest.mark.parametrize(
    ("recipe", "again", "changes"),
    [
        ("own-images", False, {"model__backbone": "deit_tiny_patch16_224", "train__accumulate": 2, "model__depth": 6}),
        pytest.param(
            *("own-images", True, {"model__backbone": "deit_tiny_patch16_224", "model__prototypes": 65536}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("vit-tiny-cifar10", False, {"model__head_norm": "batch", "train__batch_size": 64, "model__depth": 6}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_device_holds_what_a_step_holds(recipe: str, again: bool, changes: dict[str, Any]) -> None:
    small = {"train__batch_size": 8, "model__prototypes": 1024, "runtime__precision": "bf16"}
    run = setup(recipe, **{**small, **changes, "runtime__activation_checkpointing": again, "runtime__replicas": 1})
    live = LiveBytes("cpu")
    simulate_step(run, live)
    plans = {(plan.sharding, plan.activation_checkpointing): plan for plan in device_plans(run, (1,), "cpu")}
    assert 0.8 * live.peak < plans["ddp", again].total < 1.3 * live.peak


def test_sizes_follow_from_the_number_of_devices() -> None:
    run = setup("own-images", model__depth=2, model__prototypes=1024, train__batch_size=64)
    pair, plans = meta_pair(run), device_plans(run, (1, 8, 64))
    learning = sum(p.numel() for p in (*pair.student.parameters(), *pair.decoder.parameters()) if p.requires_grad)
    assert ParameterCounts.of(pair).learning == learning
    for plan in plans:
        assert plan.total == sum(getattr(plan, part) for part in PARTS)
        assert plan.images == 64 // plan.devices
        assert plan.moments == pytest.approx(
            8 * learning / (1 if plan.sharding == "ddp" else min(8, plan.devices)), abs=1
        )
    one, eight, many = (next(p for p in plans if p.devices == count and p.sharding == "fsdp2") for count in (1, 8, 64))
    assert one.parameters > 7 * eight.parameters == 7 * many.parameters
    assert one.activations == 8 * eight.activations > 32 * many.activations
    assert sum(one.sent.values()) == 0 < sum(eight.sent.values()) < sum(many.sent.values())


def test_bytes_sent() -> None:
    counts = ParameterCounts(learning=1000, frozen=24, teacher=900, group=100)
    assert bytes_sent(counts, 1, "ddp", compute=2, prototypes=16) == {"gradients": 0, "weights": 0, "center": 0}
    assert bytes_sent(counts, 4, "ddp", compute=2, prototypes=16) == {"gradients": 6000, "weights": 0, "center": 96}
    sharded = bytes_sent(counts, 4, "fsdp2", compute=2, prototypes=16)
    assert sharded == {"gradients": 3000, "weights": round(0.75 * 2 * 1924), "center": 96}
    hosts = bytes_sent(counts, 4, "fsdp2", compute=2, prototypes=16, host=2)
    assert hosts == {"gradients": 2000 + 2000, "weights": 1924, "center": 96}
    assert [held_by(count, "fsdp2") for count in (2, 8, 12, 64)] == [2, 8, 12, 8]
    assert held_by(64, "ddp") == 1


def test_more_devices_than_images_are_refused() -> None:
    run = setup("debug", train__batch_size=64, train__accumulate=2)
    with pytest.raises(ConfigError, match=r"must be from 1 to 32: --train.batch-size 64 in 2 microbatches"):
        device_plans(run, (8, 33))


GIANT = """
import json, re
from dataclasses import asdict
from planning.test_fitting import setup
from mst.planning.scaling import device_plans

run = setup("own-images", model__backbone="vit_giant_patch14_clip_224", views__local_size=98, model__prototypes=65536,
            train__batch_size=1024, runtime__precision="bf16")
plans = [asdict(plan) for plan in device_plans(run, (8, 64))]
most = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # ru_maxrss is the parent's at first
print(json.dumps({"plans": plans, "memory": 1024 * int(most)}))
"""


def test_a_billion_parameters_are_planned_without_their_memory() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, "-c", GIANT], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    plans = {(p["sharding"], p["devices"], p["activation_checkpointing"]): p for p in found["plans"]}
    alone = plans["ddp", 8, False]
    held = sum(alone[part] for part in ("parameters", "gradients", "moments", "teacher"))
    assert 1.0e9 < alone["parameters"] / 4 < 1.1e9
    assert held > 20e9
    assert found["memory"] < 1.5e9
    assert plans["fsdp2", 64, False]["moments"] * 8 == pytest.approx(alone["moments"], rel=1e-6)
    assert plans["ddp", 8, True]["activations"] < 0.25 * alone["activations"]
    assert plans["fsdp2", 64, True]["total"] < 12e9 < alone["total"]


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "debug", "--data.train", image_folder(tmp_path / "set", 16), "--train.batch-size", 8)
    answer = call(capsys, *words, "--devices", 2, 4, "--json")
    assert answer.status == 0
    found = json.loads(answer.out)
    assert found["estimate"] is None
    assert {(plan["devices"], plan["sharding"]) for plan in found["devices"]} == {
        (count, engine) for count in (2, 4) for engine in ("ddp", "fsdp2")
    }
    answer = call(capsys, *words, "--devices", 2)
    assert answer.status == 0
    assert "sent in a step" in answer.out
    assert call(capsys, *words, "--devices", 0).line.endswith("--devices 0: must be at least 1")
    assert call(capsys, *words, "--devices").status == 2
    assert "must be from 1 to 8" in call(capsys, *words, "--devices", 9).line
