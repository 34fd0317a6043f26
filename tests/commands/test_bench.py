"""mst bench measures a recipe with and without images, and names what limits it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commands.calls import call, image_folder
from mst.commands.bench import bottleneck
from mst.planning.measuring import Speed

QUICK = ("--steps", "2", "--seconds", "1", "--runtime.precision", "fp32", "--runtime.workers", "0")
SPEED = Speed(
    images_per_pass=8,
    recipe_images_per_pass=8,
    step_seconds=0.1,
    step_images_per_second=80.0,
    loader_images_per_second=100.0,
    images_per_second=79.0,
    data_wait=0.01,
    step_flops=10**9,
    step_flops_per_second=1e10,
    ceiling_flops_per_second=1e11,
    ceiling_share=0.1,
    memory_bytes=10**9,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 17)


@pytest.mark.parametrize("colour", ["loader", "device"])
def test_with_images(images: Path, colour: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", "debug", "--data.train", images, "--train.accumulate", "2", "--runtime.colour", colour, "--json")
    done = call(capsys, *words, *QUICK)
    assert done.status == 0
    speed = json.loads(done.out)
    assert speed["images_per_pass"] == speed["recipe_images_per_pass"] == 4
    for key in ("step_seconds", "loader_images_per_second", "images_per_second", "ceiling_flops_per_second"):
        assert speed[key] > 0, key
    assert 0 <= speed["data_wait"] <= 1
    assert speed["memory_bytes"] > 10**7
    assert speed["bottleneck"].startswith("bottleneck: ")


def test_the_arithmetic_of_a_step_grows_with_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    flops = []
    for batch in ("2", "4"):
        done = call(capsys, "bench", "debug", "--train.batch-size", batch, "--json", *QUICK)
        assert done.status == 0
        speed = json.loads(done.out)
        assert speed["loader_images_per_second"] is speed["data_wait"] is None
        flops.append(speed["step_flops"])
    assert flops[1] == pytest.approx(2 * flops[0], rel=0.05)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "bench", "debug", *QUICK)
    assert done.status == 0
    assert "images/s of the step alone" in done.out
    assert "both together" not in done.out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("bench", "name a recipe"),
        ("bench debg", "did you mean debug?"),
        ("bench debug --steps 0", "--steps 0: at least 1"),
        ("bench debug --seconds nan", "--seconds nan: must be a finite number"),
        ("bench debug --seconds inf", "--seconds inf: must be a finite number"),
        ("bench debug --seconds -1", "--seconds -1: must be above 0"),
        ("bench debug --seconds 0", "--seconds 0: must be above 0"),
        ("bench debug --data.train nowhere", "nowhere does not exist"),
        ("bench debug --views.global-size 30", "30"),
    ],
)
def test_mistakes_are_one_line(words: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, *words.split())
    assert done.status == 2
    assert part in done.err
    assert done.err.count("\n") == 1


def test_what_limits_a_run() -> None:
    assert "bottleneck: the step, but not its matrix products" in bottleneck(SPEED, workers=2, on_gpu=False)
    assert "the networks' arithmetic" in bottleneck(replace(SPEED, ceiling_share=0.6), workers=2, on_gpu=False)
    slow = replace(SPEED, loader_images_per_second=20.0)
    assert "raise --runtime.workers or --runtime.colour device" in bottleneck(slow, workers=2, on_gpu=True)
    assert "--runtime.workers 1 or more" in bottleneck(slow, workers=0, on_gpu=False)
    assert "the loader" in bottleneck(replace(SPEED, data_wait=0.3), workers=2, on_gpu=False)
    without = replace(SPEED, loader_images_per_second=None, data_wait=None)
    assert "the step" in bottleneck(without, workers=2, on_gpu=False)
