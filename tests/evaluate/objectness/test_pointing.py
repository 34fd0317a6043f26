"""Where attention points: its peak and its mass on objects, against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mst.evaluate.objectness.pointing import point
from reference.pointing import peak_pixel, share_inside


@settings(max_examples=150, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    seed=st.integers(0, 9999),
)
def test_peak_and_mass_are_those_of_the_slow_definitions(
    grid: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    importance = rng.integers(0, 4, grid).astype(np.float32)
    counted = rng.random(size) < 0.8
    objects = (rng.random(size) < 0.5) & counted
    assume(any(importance.flatten()) and counted.all() | (importance > 0).all() and counted.any())
    found = point(torch.from_numpy(importance), objects, counted)
    row, column = peak_pixel(importance.tolist(), *size)
    assert found.pointing == (bool(objects[row, column]) if counted[row, column] else None)
    assert found.mass_inside == pytest.approx(share_inside(importance.tolist(), objects.tolist(), counted.tolist()))
    even = np.ones(grid).tolist()
    assert found.mass_inside_even == pytest.approx(share_inside(even, objects.tolist(), counted.tolist()))


def test_the_middle_and_ignored_pixels() -> None:
    objects = np.zeros((4, 4), dtype=np.bool_)
    objects[2, 2] = True
    importance = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    found = point(importance, objects, np.ones((4, 4), dtype=np.bool_))
    assert found == (False, True, 0.0, pytest.approx(1 / 16))
    counted = np.ones((4, 4), dtype=np.bool_)
    counted[:2, 2:] = False
    assert point(importance, objects, counted) == (None, True, None, pytest.approx(1 / 12))
