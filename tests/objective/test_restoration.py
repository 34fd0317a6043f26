"""Restoration loss, pixel masks and PSNR against the slow definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.errors import UsageError
from mst.objective.restoration import mean_absolute_error, pixel_mask, psnr, restoration_loss
from mst.runtime.seeding import generator
from reference import restoration as reference

STD = [0.229, 0.224, 0.225, 0.5]


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    patch_size=st.integers(1, 4),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_errors_equal_the_slow_definitions(
    *, images: int, channels: int, grid: tuple[int, int], patch_size: int, masked: float, seed: int
) -> None:
    source = generator("restoration", seed)
    shape = (images, channels, grid[0] * patch_size, grid[1] * patch_size)
    target = torch.randn(shape, generator=source)
    reconstruction = torch.randn(shape, generator=source)
    mask = torch.rand(images, grid[0] * grid[1], generator=source) < masked
    std = STD[:channels]

    hidden = pixel_mask(mask, grid, patch_size)
    assert hidden.shape == (images, 1, *shape[2:])
    slow_hidden = reference.pixel_mask(mask.numpy(), grid, patch_size)
    np.testing.assert_array_equal(hidden[:, 0], slow_hidden)
    pairs = [(None, None), (hidden, slow_hidden), (~hidden, ~slow_hidden)]
    for pixels, slow_pixels in pairs:
        np.testing.assert_allclose(
            psnr(reconstruction, target, pixels, std),
            reference.psnr(reconstruction.numpy(), target.numpy(), slow_pixels, std),
            rtol=1e-4,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            mean_absolute_error(reconstruction, target, pixels),
            reference.mean_absolute_error(reconstruction.numpy(), target.numpy(), slow_pixels),
            rtol=1e-4,
        )
    np.testing.assert_allclose(
        restoration_loss(reconstruction, target),
        reference.mean_absolute_error(reconstruction.numpy(), target.numpy()),
        rtol=1e-5,
    )


def test_gradient_equals_finite_differences() -> None:
    source = generator("restoration gradient")
    target = torch.randn(2, 3, 4, 4, generator=source, dtype=torch.float64)
    reconstruction = torch.randn(2, 3, 4, 4, generator=source, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: restoration_loss(x, target), reconstruction)


def test_loss_is_float32_for_a_bfloat16_reconstruction() -> None:
    target = torch.randn(2, 3, 8, 8, generator=generator("bf16"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = restoration_loss(target.bfloat16(), target)
    assert loss.dtype == torch.float32
    assert 0.0 < float(loss) < 0.01


def test_known_psnr() -> None:
    target = torch.zeros(1, 1, 4, 4)
    # A difference of 1 in normalised units is 0.1 in [0, 1] units: mean squared error 0.01, 20 dB.
    assert math.isclose(float(psnr(target + 1.0, target, None, [0.1])), 20.0, rel_tol=1e-6)
    assert math.isnan(float(psnr(target + 1.0, target, torch.zeros(1, 1, 4, 4, dtype=torch.bool), [0.1])))


def test_psnr_splits_masked_from_visible() -> None:
    target = torch.zeros(1, 3, 4, 4)
    reconstruction = target.clone()
    reconstruction[..., :2, :2] = 1.0
    hidden = pixel_mask(torch.tensor([[True, False, False, False]]), (2, 2), 2)
    assert float(psnr(reconstruction, target, hidden, [1.0] * 3)) == pytest.approx(0.0)
    assert float(psnr(reconstruction, target, ~hidden, [1.0] * 3)) == math.inf


def test_psnr_needs_one_deviation_per_channel() -> None:
    with pytest.raises(UsageError, match="std has 3 numbers for images of 1 channels"):
        psnr(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), None, [0.2] * 3)
