"""A run whose first step cannot fit into memory is refused before anything is built, with what fits; no other is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from commands.calls import call, image_folder
from mst.config.load import override
from mst.engine.fitting import REFUSED, TIGHT
from mst.errors import UsageError
from mst.planning import fitting
from mst.planning.estimate import networks_memory
from mst.planning.fitting import bounds, check_fits, counted_bytes, fit
from mst.planning.measuring import prepare_without_images
from mst.planning.setup import Setup
from mst.recipes import base_config

GIB = 2**30
QUICK = ("--monitor.tensorboard", "false", "--runtime.precision", "fp32", "--runtime.workers", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 64)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets how much memory there is."""

    def has(size: float) -> None:
        monkeypatch.setattr(fitting, "free_memory", lambda device: int(size))

    return has


def setup(recipe: str, **changes: Any) -> Setup:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return prepare_without_images(override(base_config(recipe), {"runtime.precision": "fp32", **named}))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("debug", {"train__batch_size": 64}),
        ("debug", {"views__global_size": 256, "model__patch_size": 4, "runtime__precision": "bf16"}),
        ("vit-tiny-cifar10", {"model__head_norm": "batch"}),
        ("own-images", {"train__batch_size": 16, "model__prototypes": 1024}),
        ("swin-tiny-in1k-100ep", {"train__batch_size": 1}),
        ("own-images", {"model__backbone": "eva02_tiny_patch14_224", "views__local_size": 98, "train__batch_size": 8}),
    ],
)
def test_what_a_step_takes_lies_within_the_bounds(recipe: str, changes: dict[str, Any]) -> None:
    run = setup(recipe, **changes)
    least, most = bounds(run)
    assert least <= networks_memory(run) <= most


def test_the_batch_that_is_said_to_fit_does_and_no_much_larger_one(memory: Any) -> None:
    memory(0.5 * GIB)
    run = setup("debug", train__batch_size=4096)
    found = fit(run)
    assert found is not None
    assert found.needed > REFUSED * found.available
    takes = [networks_memory(fitting.with_images(run, count)) / found.available for count in (found.images, 4096)]
    assert 0.7 < takes[0] <= TIGHT < takes[1]
    with pytest.raises(UsageError) as refused:
        check_fits(run)
    parts = next(n for n in range(1, 4097) if 4096 % n == 0 and 4096 // n <= found.images)
    for said in ("a microbatch of 4096 images needs", "0.5 GiB are available on cpu: it does not fit"):
        assert said in str(refused.value)
    assert f"at most {found.images} do: --train.accumulate {parts} keeps the batch of 4096" in str(refused.value)


def test_a_deep_network_is_counted_by_some_of_its_blocks(memory: Any) -> None:
    memory(10 * GIB)
    run = setup("debug", model__depth=26, views__local_crops=0, train__batch_size=16)
    counted = counted_bytes(run, 10 * GIB, 16)
    assert counted == pytest.approx(networks_memory(run), rel=0.02)


def test_tight_runs_are_warned_of_and_run(memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = setup("debug", train__batch_size=64)
    memory(networks_memory(run))
    check_fits(run)
    assert "may not fit" in capsys.readouterr().err
    memory(4 * networks_memory(run))
    check_fits(run)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__batch_size": 2**20}, "keeps the batch of 1048576"),
        ({"views__global_size": 4096, "views__local_size": 4096, "views__local_crops": 32}, "not even one image"),
        ({"views__global_size": 4096, "model__patch_size": 1, "views__global_crops": 8}, "not even one image"),
        ({"model__depth": 512, "model__embed_dim": 2**14, "model__num_heads": 1024}, "a smaller network"),
        ({"model__head_hidden": 2**16, "model__prototypes": 2**22, "model__head_bottleneck": 2**16}, "not even one"),
    ],
)
def test_extremes_are_refused_at_once(changes: dict[str, Any], said: str, memory: Any) -> None:
    memory(4 * GIB)
    run = setup("debug", **changes)
    began = time.perf_counter()
    with pytest.raises(UsageError, match=said):
        check_fits(run)
    assert time.perf_counter() - began < 30


def test_commands_say_it_before_anything_is_written(
    images: Path, tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    memory(0.1 * GIB)
    words = ("debug", "--data.train", images, "--train.batch-size", "64", *QUICK)
    answer = call(capsys, "pretrain", *words, "--out", tmp_path / "run")
    assert answer.status == 2
    assert "not even one image" in answer.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    answer = call(capsys, "plan", *words)
    assert answer.status == 2
    assert "not even one image" in answer.line
    assert "total_steps" in answer.out
    answer = call(capsys, "plan", *words, "--no-probe")
    assert answer.status == 0
    assert "not even one image" in answer.err
    assert "not even one image" in call(capsys, "bench", "debug", *QUICK).line
