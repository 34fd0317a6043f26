"""A downstream training that is stopped and resumed is the one that was not; whatever ends it, nothing is lost."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.checkpoint.store import CheckpointStore
from mst.engine.layer_decay import build_optimizer, parameter_groups
from mst.engine.schedule import Checkpointing, LoopSettings
from mst.engine.supervised import Outcome, TrainContext, Training, fit
from mst.errors import CheckpointError, DataError, Interrupted, RunFailure, UsageError
from mst.runtime.seeding import generator
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir


class Batch(NamedTuple):
    inputs: Tensor
    labels: Tensor
    indices: Sequence[int]
    positions: range


SETTINGS = LoopSettings(steps=7, batch_size=4, lr=0.05, warmup_steps=2, clip_norm=1.0, row_every=3, evaluate_every=2)
TIMES = ("seconds", "images_per_second", "data_wait", "memory_gb")
HERE = TrainContext(torch.device("cpu"), torch.float32, 1, Checkpointing(), {"a": 1}, progress=False)


def network() -> nn.Module:
    draw = generator(3)
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def batches(first: int, parts: int = 1) -> Generator[Batch, None, None]:
    for step in range(first, 100):
        draw = generator(5, step)
        inputs, labels = torch.randn(4, 6, generator=draw), torch.randint(3, (4,), generator=draw)
        for n in range(parts):
            some = range(4 * n // parts, 4 * (n + 1) // parts)
            chosen = slice(some.start, some.stop)
            yield Batch(inputs[chosen], labels[chosen], [10 * step + position for position in some], some)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def saving(folder: Path, every: int = 2) -> TrainContext:
    kept = Checkpointing(str(folder / "checkpoints"), every)
    return replace(HERE, saving=kept, run=RunDir(folder), resume="that command")


def train(
    context: TrainContext,
    settings: LoopSettings = SETTINGS,
    *,
    source: Callable[[int], Generator[Batch, None, None]] = batches,
    loss: Callable[[nn.Module, Batch], Tensor] = cross_entropy,
) -> tuple[nn.Module, Outcome]:
    model = network()

    def evaluate() -> Mapping[str, float]:
        model.eval()
        with torch.no_grad():
            return {"top1": float(model(torch.ones(1, 6)).sum())}

    optimizer = build_optimizer(parameter_groups(model, weight_decay=0.1))

    outcome = fit(Training("toy", model, optimizer, source, loss, evaluate), settings, context)
    return model, outcome


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in TIMES} for row in read_jsonl(RunDir(folder).metrics)
    ]


def test_rows_and_outcome(tmp_path: Path) -> None:
    model, outcome = train(saving(tmp_path))
    assert (outcome.steps, outcome.skipped_steps) == (7, 0)
    losses = [row for row in rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in losses] == [1, 3, 6, 7]
    assert outcome.final_loss == losses[-1]["loss"]
    assert losses[-1]["images"] == 28
    assert [row["step"] for row in rows(tmp_path) if "top1" in row] == [2, 4, 6, 7]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_6", "step_7"]
    assert model.training
    before = torch.random.get_rng_state()
    again, same = train(HERE)
    assert same == outcome
    assert_same(model, again)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_killed_and_resumed_is_bit_equal(tmp_path: Path, stop: int) -> None:
    """What a SIGKILL leaves is a copy of the folder; an interrupt saves the steps before it."""

    def copied(first: int) -> Generator[Batch, None, None]:
        for step, batch in enumerate(batches(first), first):
            if step == stop:
                shutil.copytree(tmp_path / "whole", tmp_path / "cut")
            yield batch

    whole, outcome = train(saving(tmp_path / "whole"), source=copied)

    def dying(first: int) -> Generator[Batch, None, None]:
        for step, batch in enumerate(batches(first), first):
            if step == stop + 1:
                raise KeyboardInterrupt
            yield batch

    if stop < 6:
        with pytest.raises(KeyboardInterrupt):
            train(saving(tmp_path / "cut"), source=dying)
        assert (tmp_path / "cut" / "checkpoints" / f"step_{stop + 1}").is_dir()
    resumed, same = train(saving(tmp_path / "cut"))
    assert same == outcome
    assert_same(whole, resumed)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    done, still = train(saving(tmp_path / "cut"))  # a finished one repeats nothing
    assert still == outcome
    assert_same(whole, done)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_an_evaluation_that_fails_costs_no_step_and_comes_again(tmp_path: Path) -> None:
    whole, _ = train(saving(tmp_path / "whole"))
    calls, stopped = 0, []
    while True:
        model = network()

        def evaluate(model: nn.Module = model) -> Mapping[str, float]:
            nonlocal calls
            calls += 1
            if calls % 2:
                raise DataError("a validation image")
            model.eval()
            with torch.no_grad():
                return {"top1": float(model(torch.ones(1, 6)).sum())}

        optimizer = build_optimizer(parameter_groups(model, weight_decay=0.1))
        try:
            fit(
                Training("toy", model, optimizer, batches, cross_entropy, evaluate),
                SETTINGS,
                saving(tmp_path / "cut", 100),
            )
        except DataError:
            stopped.append(max(int(path.name[5:]) for path in (tmp_path / "cut/checkpoints").iterdir()))
        else:
            break
    assert stopped == [2, 4, 6, 7]
    assert_same(whole, model)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["shape", "nan", "missing"])
def test_an_optimizer_s_state_that_does_not_fit_is_refused_before_it_is_used(tmp_path: Path, damage: str) -> None:
    """Fused kernels write past the end of a state of another shape; a digest does not tell."""
    train(saving(tmp_path))
    store = CheckpointStore(tmp_path / "checkpoints", keep=9)
    found = store.load_latest()
    state = found.parts["optimizer"]["state"][0]
    match damage:
        case "shape":
            state["exp_avg"] = torch.zeros(1)
        case "nan":
            state["exp_avg"][0] = math.nan
        case "missing":
            del state["exp_avg"]
    shutil.rmtree(found.path)
    store.save(found.step, found.parts, found.info)
    with pytest.raises(CheckpointError, match="does not fit this training: optimizer state of parameter 0"):
        train(saving(tmp_path))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(tmp_path: Path, signum: signal.Signals) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:

        def signalled(first: int) -> Generator[Batch, None, None]:
            for step, batch in enumerate(batches(first), first):
                if step == 2:
                    signal.raise_signal(signum)
                yield batch

        with pytest.raises(Interrupted, match="stopped at step 3 of 7; all is saved: that command goes on") as found:
            train(saving(tmp_path, every=100), source=signalled)
        assert found.value.exit_code == 128 + signum
        resumed, _ = train(saving(tmp_path, every=100))
        assert_same(resumed, train(HERE)[0])
        with pytest.raises(Interrupted, match="nothing was saved"):
            train(HERE, source=signalled)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts: int) -> None:
    def plain(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model[3](model[0](batch[0])), batch[1])  # type: ignore[index]

    whole, _ = train(HERE, loss=plain)
    settings = replace(SETTINGS, accumulate=parts)
    cut, _ = train(HERE, settings, source=lambda first: batches(first, parts), loss=plain)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, cut.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_bad_steps_change_nothing_and_too_many_end_it(tmp_path: Path) -> None:
    def source(first: int) -> Generator[Batch, None, None]:
        for step, batch in enumerate(batches(first), first):
            yield batch._replace(inputs=batch.inputs * math.inf) if step in {0, 4} else batch

    model, outcome = train(saving(tmp_path), source=source)
    assert (outcome.steps, outcome.skipped_steps) == (7, 2)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    listed = read_jsonl(tmp_path / "bad_steps.jsonl")
    assert [(row["step"], row["loss"], row["indices"]) for row in listed] == [
        (1, "nan", [*range(4)]),
        (5, "nan", [*range(40, 44)]),
    ]
    assert rows(tmp_path)[0]["loss"] is None
    with pytest.raises(RunFailure, match=r"4 steps in succession .* not finite \(at most 3\): start anew"):
        train(
            HERE, replace(SETTINGS, max_bad_steps=3), loss=lambda model, batch: cross_entropy(model, batch) * math.nan
        )
    with pytest.raises(RunFailure, match="all steps had a loss or gradient that is not finite: start anew"):
        train(
            HERE, replace(SETTINGS, max_bad_steps=99), loss=lambda model, batch: cross_entropy(model, batch) * math.nan
        )


def test_bad_data_saves_what_was_learnt(tmp_path: Path) -> None:
    def broken(first: int) -> Generator[Batch, None, None]:
        for step, batch in enumerate(batches(first), first):
            if step == 3:
                raise DataError("an image")
            yield batch

    with pytest.raises(DataError, match="an image"):
        train(saving(tmp_path, every=100), source=broken)
    assert (tmp_path / "checkpoints" / "step_3").is_dir()


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    context = saving(tmp_path)
    train(context)
    with pytest.raises(UsageError, match="holds a training with other a, b: name another folder"):
        train(replace(context, identity={"a": 2, "b": 3}))
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="does not fit this training"):
        fit(Training("toy", model, build_optimizer(parameter_groups(model, weight_decay=0)), batches, cross_entropy),
            SETTINGS, context)  # fmt: skip


def test_autocast_and_scales() -> None:
    seen: list[torch.dtype] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scores = model(batch[0])
        seen.append(scores.dtype)
        return F.cross_entropy(scores.float(), batch[1])

    model = network()
    groups: list[dict[str, Any]] = [
        {"params": list(model[0].parameters()), "scale": 0.0},  # type: ignore[index]
        {"params": list(model[3].parameters()), "scale": 1.0},  # type: ignore[index]
    ]
    before = network().state_dict()
    fit(
        Training("toy", model, build_optimizer(groups, "sgd"), batches, loss),
        SETTINGS,
        replace(HERE, dtype=torch.bfloat16),
    )
    assert set(seen) == {torch.bfloat16}
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(model.state_dict()["3.weight"], before["3.weight"])
