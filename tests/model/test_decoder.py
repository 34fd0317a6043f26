from __future__ import annotations

import pytest
import torch

from mst.errors import UsageError
from mst.model.decoder import build_decoder
from reference.module_reference import fill_with_nan


@pytest.mark.parametrize("kind", ["cnn", "linear"])
@pytest.mark.parametrize("patch_size", [1, 2, 4, 7, 8, 14, 16, 32])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_shape(kind: str, patch_size: int, channels: int) -> None:
    decoder = build_decoder(kind, embed_dim=12, patch_size=patch_size, channels=channels)
    reconstruction = decoder(torch.randn(2, 6, 12), (2, 3))
    assert reconstruction.shape == (2, channels, 2 * patch_size, 3 * patch_size)
    reconstruction.square().sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_linear_decoder_puts_each_token_in_its_patch() -> None:
    decoder = build_decoder("linear", embed_dim=8, patch_size=4, channels=3)
    patches = torch.randn(1, 6, 8)
    changed = patches.clone()
    changed[0, 4] += 1  # row 1, column 1 of a 2 x 3 grid
    difference = (decoder(changed, (2, 3)) - decoder(patches, (2, 3))).abs().sum((0, 1)) > 0
    assert difference[4:, 4:8].any()
    difference[4:, 4:8] = False
    assert not difference.any()


@pytest.mark.parametrize("kind", ["cnn", "linear"])
def test_learns_an_image_from_its_tokens(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 8, 12, generator=generator)
    tokens = image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 6, 48)
    decoder = build_decoder(kind, embed_dim=48, patch_size=4, channels=3)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (decoder(tokens, (2, 3)) - image).abs().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize("kind", ["cnn", "linear"])
def test_init_weights_writes_everything(kind: str) -> None:
    decoder = build_decoder(kind, embed_dim=8, patch_size=4, channels=3, seed=4)
    expected = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    fill_with_nan(decoder)
    decoder.init_weights(4)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_unknown_kind() -> None:
    with pytest.raises(UsageError, match="unknown decoder 'unet'"):
        build_decoder("unet", embed_dim=8, patch_size=4, channels=3)
