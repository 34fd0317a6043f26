"""The chunked cross-entropy over prototypes against the definitions, whatever the size of a chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.objective import prototypes as module
from mst.objective.dino import self_distillation_loss, teacher_probabilities, view_targets
from mst.objective.prototypes import prototype_cross_entropy
from mst.runtime.seeding import generator
from reference import dino as reference


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 3), st.integers(0, 3), st.integers(1, 3), st.integers(2, 11)),
    chunk=st.sampled_from([1, 7, 30, 2**22]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_equal_the_definitions(shape: tuple[int, int, int, int], chunk: int, seed: int) -> None:
    crops, local_crops, images, count = shape
    source = generator("prototypes", seed)
    x, prototypes, teacher = (
        torch.randn(*size, generator=source, dtype=torch.float64)
        for size in ((crops + local_crops, images, 5), (count, 5), (crops, images, count))
    )
    probs = teacher_probabilities(teacher, torch.zeros(1, count, dtype=torch.float64), 0.3)
    losses, gradients = [], []
    for fast in (True, False):
        leaves = [x.clone().requires_grad_(), prototypes.clone().requires_grad_()]
        if fast:
            pairs = crops * (crops + local_crops - 1) * images
            own, others = view_targets(probs)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "CHUNK_LOGITS", chunk)
                loss = prototype_cross_entropy(leaves[0][:crops], leaves[1], own, 0.1) / pairs
                if local_crops:
                    loss = loss + prototype_cross_entropy(leaves[0][crops:], leaves[1], others, 0.1) / pairs
                loss.backward()
        else:
            loss = self_distillation_loss(leaves[0] @ leaves[1].t(), probs, 0.1)
            loss.backward()
        losses.append(loss.item())
        gradients.append([leaf.grad for leaf in leaves])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    logits = (x @ prototypes.t()).numpy()
    np.testing.assert_allclose(losses[0], reference.self_distillation_loss(logits, probs.numpy(), 0.1), rtol=1e-8)


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    x, prototypes = torch.randn(4, 3, 5).requires_grad_(), torch.randn(50, 5).requires_grad_()
    targets = torch.rand(1, 3, 50)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = prototype_cross_entropy(x, prototypes, targets, 0.1)
    assert max(tensor.numel() for tensor in kept) == prototypes.numel()
    assert not any(tensor.numel() == 4 * 3 * 50 for tensor in kept)
    loss.backward()


def test_products_run_in_the_autocast_type_and_the_rest_in_float32() -> None:
    x, prototypes, targets = (
        torch.randn(2, 3, 8).requires_grad_(),
        torch.randn(20, 8).requires_grad_(),
        torch.rand(2, 3, 20),
    )
    exact = prototype_cross_entropy(x, prototypes, targets, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = prototype_cross_entropy(x, prototypes, targets, 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    loss.backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_device_has_larger_chunks() -> None:
    """DINO's 65,536 prototypes and eight crops of 128 images: few kernels on a GPU, cached logits on a CPU."""
    counts = [len(list(module._chunks(torch.empty(1024, 1, device=place), 65536))) for place in ("cpu", "meta")]
    assert counts == [64, 4]
