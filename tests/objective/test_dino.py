"""The fast self-distillation loss, its gradients, the center and the entropies against the slow definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.errors import UsageError
from mst.objective.dino import (
    entropy,
    self_distillation_loss,
    teacher_probabilities,
    updated_center,
)
from mst.runtime.seeding import generator
from reference import dino as reference

# Global crops, local crops, images, prototypes; one or no local crop, one sample, more than two global crops.
SHAPES = st.tuples(st.integers(2, 4), st.integers(0, 4), st.integers(1, 4), st.integers(2, 9))


def draw_logits(shape: tuple[int, int, int, int], seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return student logits [G+L,B,K], teacher logits [G,B,K], center [1,K]."""
    crops, local_crops, images, prototypes = shape
    source = generator("logits", seed)
    return (
        torch.randn(crops + local_crops, images, prototypes, generator=source, dtype=dtype),
        torch.randn(crops, images, prototypes, generator=source, dtype=dtype),
        torch.randn(1, prototypes, generator=source, dtype=dtype),
    )


def pairwise_loss(student: torch.Tensor, probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """The loss as a plain mean over pairs, in torch so that it has gradients."""
    terms = [
        -(probs[i] * F.log_softmax(student[j] / temperature, dim=-1)).sum(-1).mean()
        for i in range(len(probs))
        for j in range(len(student))
        if i != j
    ]
    return torch.stack(terms).mean()


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10_000), student_temp=st.floats(0.05, 1.0), teacher_temp=st.floats(0.02, 1.0))
def test_loss_center_and_entropies_equal_the_slow_definitions(
    shape: tuple[int, int, int, int], seed: int, student_temp: float, teacher_temp: float
) -> None:
    student, teacher, center = draw_logits(shape, seed, torch.float64)
    probs = teacher_probabilities(teacher, center, teacher_temp)
    slow_probs = reference.teacher_probabilities(teacher.numpy(), center.numpy(), teacher_temp)
    np.testing.assert_allclose(probs, slow_probs, rtol=1e-9, atol=1e-12)
    loss = self_distillation_loss(student, probs, student_temp)
    slow_loss = reference.self_distillation_loss(student.numpy(), slow_probs, student_temp)
    np.testing.assert_allclose(loss, slow_loss, rtol=1e-9)
    np.testing.assert_allclose(
        updated_center(center, teacher, 0.9), reference.updated_center(center.numpy(), teacher.numpy(), 0.9), rtol=1e-9
    )
    np.testing.assert_allclose(entropy(probs).mean(), reference.mean_entropy(slow_probs), rtol=1e-7, atol=1e-9)
    mean = probs.mean(dim=(0, 1))
    np.testing.assert_allclose(entropy(mean), reference.marginal_entropy(slow_probs), rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10_000))
def test_gradients_equal_those_of_the_mean_over_pairs(shape: tuple[int, int, int, int], seed: int) -> None:
    student, teacher, center = draw_logits(shape, seed, torch.float64)
    probs = teacher_probabilities(teacher, center, 0.04)
    fast, slow = student.clone().requires_grad_(), student.clone().requires_grad_()
    self_distillation_loss(fast, probs, 0.1).backward()
    pairwise_loss(slow, probs, 0.1).backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-9, atol=1e-12)


def test_gradient_equals_finite_differences() -> None:
    student, teacher, center = draw_logits((2, 1, 2, 5), 0, torch.float64)
    probs = teacher_probabilities(teacher, center, 0.5)
    assert torch.autograd.gradcheck(lambda x: self_distillation_loss(x, probs, 0.3), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_everything_is_float32_inside_autocast(dtype: torch.dtype) -> None:
    student, teacher, center = draw_logits((2, 2, 3, 4096), 1, torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    wide = self_distillation_loss(student.double(), teacher_probabilities(teacher.double(), center, 0.04), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        probs = teacher_probabilities(teacher, center, 0.04)
        loss = self_distillation_loss(student, probs, 0.1)
        new_center = updated_center(center, teacher, 0.9)
    assert {probs.dtype, loss.dtype, new_center.dtype} == {torch.float32}
    torch.testing.assert_close(loss.double(), wide, rtol=1e-5, atol=0.0)


def test_extreme_logits_stay_finite() -> None:
    student, teacher, center = (1e4 * logits for logits in draw_logits((2, 1, 2, 8), 2, torch.float32))
    student.requires_grad_()
    loss = self_distillation_loss(student, teacher_probabilities(teacher, center, 0.04), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_known_values() -> None:
    uniform = torch.full((2, 3, 8), 1 / 8)
    assert math.isclose(float(self_distillation_loss(torch.zeros(5, 3, 8), uniform, 0.1)), math.log(8), rel_tol=1e-6)
    one_hot = F.one_hot(torch.arange(6).view(2, 3), 8).float()
    assert float(entropy(one_hot).sum()) == 0.0
    assert math.isclose(float(entropy(one_hot.mean(dim=(0, 1)))), math.log(6), rel_tol=1e-6)
    assert math.isclose(float(entropy(uniform).mean()), math.log(8), rel_tol=1e-6)


def test_inputs_are_left_alone() -> None:
    student, teacher, center = draw_logits((2, 1, 2, 8), 3, torch.float32)
    copies = [tensor.clone() for tensor in (student, teacher, center)]
    self_distillation_loss(student, teacher_probabilities(teacher, center, 0.04), 0.1)
    updated_center(center, teacher, 0.9)
    for tensor, copy in zip((student, teacher, center), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_center_over_accumulation_passes_is_the_center_of_the_whole_batch() -> None:
    _, teacher, center = draw_logits((2, 0, 4, 8), 4, torch.float64)
    passes = torch.stack([part.mean(dim=(0, 1)) for part in teacher.split(2, dim=1)])[None]  # [1,passes,K]
    torch.testing.assert_close(updated_center(center, passes, 0.9), updated_center(center, teacher, 0.9))


def test_one_view_makes_no_pair() -> None:
    with pytest.raises(UsageError, match="1 teacher and 1 student views make no pair"):
        self_distillation_loss(torch.zeros(1, 2, 4), torch.full((1, 2, 4), 0.25), 0.1)
