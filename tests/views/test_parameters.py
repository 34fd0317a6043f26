"""The drawn parameters follow DINO's distributions and torchvision's box sampling, for any image size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop

from mst.config.schema import Size, ViewsConfig
from mst.views.parameters import CropParameters, draw_parameters, draw_uniforms

SIZES = [(375, 500), (32, 32), (1, 1), (1, 700), (700, 1), (5, 3), (90, 100), (1000, 40)]


def draw(config: ViewsConfig, sizes: list[tuple[int, int]], *, channels: int = 3, seed: int = 0) -> CropParameters:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(sizes))]
    uniforms = draw_uniforms(config.global_crops + config.local_crops, generators)
    return draw_parameters(config, uniforms, np.array(sizes), channels=channels)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_lie_inside_the_image(size: tuple[int, int]) -> None:
    p = draw(ViewsConfig(), [size] * 100)
    assert (p.top >= 0).all()
    assert (p.left >= 0).all()
    assert (p.height >= 1).all()
    assert (p.width >= 1).all()
    assert (p.top + p.height <= size[0]).all()
    assert (p.left + p.width <= size[1]).all()


def test_boxes_have_the_configured_area_and_ratio() -> None:
    p = draw(ViewsConfig(), [(1000, 1000)] * 200)
    share, ratio = p.height * p.width / 1e6, p.width / p.height
    large = np.arange(len(p)) < 400
    assert share[large].min() > 0.39
    assert share[large].max() <= 1.0
    assert share[~large].min() > 0.049
    assert share[~large].max() < 0.41
    assert share[~large].mean() == pytest.approx(0.225, abs=0.02)
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert np.log(ratio[~large]).mean() == pytest.approx(0.0, abs=0.02)


def test_boxes_are_distributed_as_torchvisions() -> None:
    config = ViewsConfig(global_scale=(0.3, 1.0), local_crops=0)
    p = draw(config, [(300, 500)] * 1000)
    ours = np.stack([p.top, p.left, p.height, p.width], axis=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop, image = RandomResizedCrop(224, scale=config.global_scale), torch.empty(3, 300, 500)
        rows = [crop.make_params([image]) for _ in range(2000)]
    theirs = np.array([[row[name] for name in ("top", "left", "height", "width")] for row in rows])
    assert ours.mean(0) == pytest.approx(theirs.mean(0), abs=5)
    assert ours.std(0) == pytest.approx(theirs.std(0), abs=5)


def test_the_central_crop_is_the_last_resort() -> None:
    p = draw(ViewsConfig(global_scale=(1.0, 1.0), local_crops=0), [(100, 300), (300, 100), (100, 120)])
    boxes = [tuple(row) for row in np.stack([p.top, p.left, p.height, p.width], axis=1).tolist()]
    assert boxes[0] == boxes[3] == (0, 83, 100, 133)
    assert boxes[1] == boxes[4] == (83, 0, 133, 100)


def test_probabilities() -> None:
    B = 1000
    p = draw(ViewsConfig(), [(50, 50)] * B)
    first, second, local = (np.arange(8 * B) < B), (np.arange(8 * B) // B == 1), (np.arange(8 * B) >= 2 * B)
    assert p.flip.mean() == pytest.approx(0.5, abs=0.03)
    assert (p.order >= 0).all(1).mean() == pytest.approx(0.8, abs=0.03)
    assert ((p.order >= 0).all(1) | (p.order < 0).all(1)).all()
    assert p.grey.mean() == pytest.approx(0.2, abs=0.03)
    assert (p.sigma[first] > 0).all()
    assert (p.sigma[second] > 0).mean() == pytest.approx(0.1, abs=0.04)
    assert (p.sigma[local] > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert not p.solarize[first | local].any()
    assert p.solarize[second].mean() == pytest.approx(0.2, abs=0.05)


def test_ranges() -> None:
    config = ViewsConfig(brightness=1.5, local_size=(48, 112))
    p = draw(config, [(50, 50)] * 300)
    assert p.factors[:, 0].min() < 0.05
    assert p.factors[:, 0].max() == pytest.approx(2.5, abs=0.05)
    assert p.factors[:, 1].min() == pytest.approx(0.6, abs=0.01)
    assert p.factors[:, 2].max() == pytest.approx(1.2, abs=0.01)
    assert p.factors[:, 3].min() == pytest.approx(-0.1, abs=0.01)
    assert p.factors[:, 3].max() == pytest.approx(0.1, abs=0.01)
    assert p.sigma[:300].max() == pytest.approx(2.0, abs=0.05)
    assert p.sigma[600:].max() == pytest.approx(2.0, abs=0.05)  # local crops as global ones, whatever their size


@pytest.mark.parametrize(("size", "largest"), [(224, 2.0), (112, 1.0), ((32, 128), 2.0 * 64 / 224)])
def test_blur_is_that_of_dino_scaled_with_the_global_crops(size: Size, largest: float) -> None:
    """DINO's code (class GaussianBlur) draws 0.1 to 2 px for every crop of its 224 px recipe: on average 1.05."""
    p = draw(ViewsConfig(global_size=size, local_size=16, blur=(1.0, 1.0, 1.0)), [(50, 50)] * 400)
    assert p.sigma.min() == pytest.approx(0.05 * largest, rel=0.1)
    assert p.sigma.max() == pytest.approx(largest, rel=0.01)
    assert p.sigma[800:].mean() == pytest.approx(1.05 / 2.0 * largest, rel=0.03)


def test_local_crops_may_be_blurred_otherwise() -> None:
    base = ViewsConfig(blur=(1.0, 1.0, 1.0), local_size=16)
    same, other = (base.model_copy(update={"local_blur_sigma": sigma}) for sigma in (base.blur_sigma, (0.5, 1.0)))
    p, q, r = (draw(config, [(50, 50)] * 400) for config in (base, same, other))
    assert np.array_equal(p.sigma, q.sigma)
    assert np.array_equal(p.sigma[:800], r.sigma[:800])
    assert (r.sigma[800:].min(), r.sigma[800:].max()) == (pytest.approx(0.5, rel=0.02), pytest.approx(1.0, rel=0.01))


def test_every_order_of_the_jitter_is_as_likely() -> None:
    p = draw(ViewsConfig(jitter=1.0), [(50, 50)] * 600)
    orders, counts = np.unique(p.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 150
    assert counts.max() < 250


def test_a_setting_does_not_shift_the_draws_of_another() -> None:
    base, other = ViewsConfig(), ViewsConfig(flip=0.0, jitter=0.0, grey=1.0, blur=(0.0, 0.0, 0.0), solarize=1.0)
    p, q = draw(base, SIZES), draw(other, SIZES)
    for name in ("top", "left", "height", "width", "factors"):
        assert np.array_equal(getattr(p, name), getattr(q, name))
    assert not q.flip.any()
    assert (q.order == -1).all()


def test_an_operation_of_strength_zero_is_left_out() -> None:
    p = draw(ViewsConfig(jitter=1.0, contrast=0.0, hue=0.0), [(50, 50)] * 4)
    assert set(p.order.ravel().tolist()) == {-1, 0, 2}


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_needs_three_channels(channels: int) -> None:
    p, q = draw(ViewsConfig(), SIZES, channels=channels), draw(ViewsConfig(), SIZES)
    assert not p.grey.any()
    assert set(p.order.ravel().tolist()) == {-1, 0, 1}
    assert np.array_equal(p.top, q.top)
    assert np.array_equal(p.sigma, q.sigma)


def test_an_image_draws_alike_alone_and_in_a_batch() -> None:
    batch = draw(ViewsConfig(), SIZES)
    B = len(SIZES)
    for i, size in enumerate(SIZES):
        alone = draw(ViewsConfig(), [size], seed=i)
        for name in ("top", "left", "height", "width", "flip", "order", "factors", "grey", "sigma", "solarize"):
            assert np.array_equal(getattr(batch, name)[i::B], getattr(alone, name)), name
