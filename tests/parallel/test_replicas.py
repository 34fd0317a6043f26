"""Replicas divide a batch without changing what is computed."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch

from mst.model.pair import TeacherStudent
from mst.model.stochastic_depth import DropPath
from mst.objective.mst import mst_losses
from mst.objective.records import StepOutput
from mst.parallel.replicas import Replicas
from mst.runtime.seeding import drawn_from
from objective.test_mst import (
    VALUES,
    double_views,
    gradients,
    some_center,
    some_draws,
    some_views,
    sums_of,
    tiny_pair,
)

CPU = torch.device("cpu")


def losses_of(pair: TeacherStudent, replicas: Replicas | None) -> StepOutput:
    views, center = double_views(), some_center().double()
    return mst_losses(
        pair,
        views,
        center,
        VALUES,
        some_draws(len(views.indices)),
        backward=lambda loss: loss.backward(),
        replicas=replicas,
        keep=True,
    )


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_the_step_is_that_of_one_replica(count: int, drop_path: float) -> None:
    alone, divided = (tiny_pair(drop_path=drop_path).double() for _ in range(2))
    replicas = Replicas(divided, count)
    one, many = losses_of(alone, None), losses_of(divided, replicas)
    replicas.finish(torch.zeros(0))
    assert one.mask is not None
    assert many.mask is not None
    assert torch.equal(one.mask, many.mask)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)  # logits are float32 in any case
    for name in ("teacher_logits", "teacher_probs", "reconstruction"):
        close(getattr(one, name), getattr(many, name))
    for name in ("total", "self_distillation", "restoration"):
        close(getattr(one.losses, name), getattr(many.losses, name))
    close(one.teacher._asdict(), many.teacher._asdict())
    close(sums_of(one, double_views()), sums_of(many, double_views()))
    for module, other in ((alone.student, divided.student), (alone.decoder, divided.decoder)):
        assert module is not None
        assert other is not None
        close(gradients(module), gradients(other))


def test_two_runs_give_the_same_bits() -> None:
    outcomes = []
    for _ in range(2):
        pair = tiny_pair(drop_path=0.3)
        replicas = Replicas(pair, 3)
        views = some_views(batch=7)
        mst_losses(
            pair, views, some_center(), VALUES, some_draws(7), backward=lambda x: x.backward(), replicas=replicas
        )
        replicas.finish(torch.zeros(0))
        outcomes.append(gradients(pair.student))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_replicas_share_weights_and_not_gradients() -> None:
    pair = tiny_pair()
    replicas = Replicas(pair, 2)
    seen = replicas.run(lambda pair, _: pair, 2)
    assert seen[0] is pair
    assert seen[1].teacher is pair.teacher
    for mine, other in zip(pair.student.parameters(), seen[1].student.parameters(), strict=True):
        assert mine.data_ptr() == other.data_ptr()
        assert other.requires_grad == mine.requires_grad
        other.grad = torch.ones_like(other) if other.requires_grad else None
        assert mine.grad is None
    with torch.no_grad():
        next(pair.student.parameters()).add_(1.0)
    assert torch.equal(next(pair.student.parameters()), next(seen[1].student.parameters()))
    replicas.finish(torch.zeros(0))
    learnt = [p for p in pair.student.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.equal(p.grad, torch.ones_like(p)) for p in learnt)
    assert all(p.grad is None for p in seen[1].student.parameters())
    replicas.begin()
    assert all(p.grad is None for p in pair.student.parameters())


def test_every_image_has_one_share_and_the_modes_are_the_callers() -> None:
    replicas, together = Replicas(tiny_pair(), 3), threading.Barrier(3)

    def look(_: TeacherStudent, share: slice) -> tuple[int, int, bool, bool, torch.dtype, int, str]:
        if share.stop - share.start < 8:
            together.wait()
        return (
            *(share.start, share.stop, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
            *(torch.get_autocast_dtype("cpu"), torch.get_num_threads(), threading.current_thread().name),
        )

    own = torch.get_num_threads()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = replicas.run(look, 8)
    assert [s[:2] for s in seen] == [(0, 2), (2, 5), (5, 8)]
    assert {s[2:6] for s in seen} == {(False, True, torch.bfloat16, 1)}
    assert len({s[6] for s in seen}) == 3
    assert {s[2:4] for s in replicas.run(look, 8)} == {(True, False)}
    assert torch.get_num_threads() == own
    assert replicas.run(lambda _, share: share, 2) == [slice(0, 1), slice(1, 2)]
    assert Replicas(tiny_pair()).run(look, 8)[0][6] == threading.current_thread().name


def test_an_error_in_a_replica_is_the_callers() -> None:
    def fail(_: TeacherStudent, share: slice) -> None:
        if share.start:
            raise MemoryError(f"at {share.start}")

    with pytest.raises(MemoryError, match="at 2"):
        Replicas(tiny_pair(), 2).run(fail, 4)


def test_a_copy_has_its_own_pair() -> None:
    replicas = Replicas(tiny_pair(), 2)
    other = copy.deepcopy(replicas)
    assert len(other) == 2
    assert other.run(lambda pair, _: pair, 2)[0] is not replicas.run(lambda pair, _: pair, 2)[0]


@pytest.mark.parametrize("shape", [(64, 3), (64, 5, 2), (64, 2, 2, 3)])
def test_drop_path_zeroes_whole_samples_and_scales_the_others(shape: tuple[int, ...]) -> None:
    layer = DropPath(0.25)
    with drawn_from(CPU, "drop"):
        out = layer(torch.ones(shape)).flatten(1)
    assert torch.equal(out, out[:, :1].expand_as(out))
    dropped, kept = sorted(set(out[:, 0].tolist()))
    assert (dropped, kept) == (0.0, pytest.approx(1 / 0.75))
    assert torch.equal(layer.eval()(torch.ones(shape)), torch.ones(shape))
