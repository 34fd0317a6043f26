"""Textured pictures and ways to damage their files, for the tests of `mst.data`."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mst.data.decoding import UnreadableImage, decode_image


def by_sample(
    transform: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
) -> Callable[[Sequence[Tensor], Sequence[torch.Generator]], tuple[Tensor, ...]]:
    """Apply a transform of one image to several, and stack what it gives."""

    @functools.wraps(transform)
    def transform_all(images: Sequence[Tensor], draws: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
        samples = [transform(image, draw) for image, draw in zip(images, draws, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))

    return transform_all


def texture(seed: int = 0, height: int = 40, width: int = 56) -> Image.Image:
    """A smooth gradient with blobs and some noise: [height, width, 3]."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / (3 + 7 * draws.random()) + y / (2 + 9 * draws.random())) for _ in range(3)]
    pixels = np.stack(waves, axis=-1) + draws.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of the image's file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def write_textures(folder: Path, count: int, *, start: int = 0, size: int = 24, form: str = "JPEG") -> list[Path]:
    """Write small textured pictures img_000.jpg, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = {"JPEG": "jpg", "PNG": "png"}[form]
    paths = [folder / f"img_{start + i:03d}.{suffix}" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(texture(start + i, size, size), form))
    return paths


def claim_size(data: bytes, height: int, width: int) -> bytes:
    """The same JPEG, PNG, BMP or GIF file with another size in its header (checksums mended)."""
    changed = bytearray(data)
    if data[:2] == b"\xff\xd8":
        at = next(i for i in range(2, len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
        changed[at + 5 : at + 9] = struct.pack(">HH", height % 65536, width % 65536)
    elif data[:4] == b"\x89PNG":
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif data[:2] == b"BM":
        changed[18:26] = struct.pack("<ii", width, height)
    elif data[:3] == b"GIF":
        changed[6:10] = struct.pack("<HH", width % 65536, height % 65536)
    return bytes(changed)


DAMAGES = ("truncated", "bit_flipped", "zero_bytes", "wrong_extension", "huge_claim", "empty", "noise", "tail")


def damaged(data: bytes, kind: str, draws: np.random.Generator) -> bytes:
    """One damaged copy of a file's bytes (`wrong_extension` leaves them: the name does that)."""
    changed = bytearray(data)
    if kind == "truncated":
        return data[: int(draws.integers(1, len(data)))]
    if kind == "bit_flipped":
        for _ in range(int(draws.integers(1, 40))):
            changed[int(draws.integers(len(data)))] ^= 1 << int(draws.integers(8))
    elif kind == "zero_bytes":
        at = int(draws.integers(len(data)))
        span = int(draws.integers(1, 1 + len(data) // 2))
        changed[at : at + span] = bytes(len(changed[at : at + span]))
    elif kind == "huge_claim":
        return claim_size(data, int(draws.integers(20_000, 65_535)), int(draws.integers(20_000, 65_535)))
    elif kind == "empty":
        return b""
    elif kind == "noise":
        return draws.bytes(len(data))
    elif kind == "tail":
        return data[-int(draws.integers(1, len(data))) :]
    return bytes(changed)


def decode_or_refuse(path: Path, channels: int = 3) -> Tensor | None:
    """Decode and check what comes: a proper tensor, or None for an `UnreadableImage` of one line."""
    try:
        image = decode_image(path, channels=channels)
    except UnreadableImage as caught:
        refusal = caught
    else:
        assert image.dtype == torch.uint8
        assert image.ndim == 3
        assert image.shape[0] == channels
        assert image.numel() > 0
        return image
    assert refusal.name == str(path)
    assert refusal.reason
    assert "\n" not in str(refusal)
    return None
