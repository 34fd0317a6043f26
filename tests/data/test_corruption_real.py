"""1,000 damaged copies of real images through the decoder and the loader; MST_REAL_IMAGES names their folder."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.pictures import by_sample, damaged, decode_or_refuse
from mst.data.loader import BatchLoader
from mst.data.sources import ImageIndex, index_images
from mst.errors import DataError

COPIES = 1000
KINDS = ("truncated", "bit_flipped", "zero_bytes", "wrong_extension", "huge_claim")
FOLDER = os.environ.get("MST_REAL_IMAGES")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="MST_REAL_IMAGES names no folder of real images"),
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """The damaged copies and what was done to each."""
    assert FOLDER is not None
    folder = tmp_path_factory.mktemp("damaged")
    draws = np.random.default_rng(0)
    originals = list(index_images(FOLDER, limit=COPIES))
    result: dict[Path, str] = {}
    for i in range(COPIES):
        kind = KINDS[i % len(KINDS)]
        source = originals[i % len(originals)]
        suffix = (".png", ".tif", ".bmp", ".webp")[i % 4] if kind == "wrong_extension" else source.suffix
        path = folder / f"{i:04d}_{kind}{suffix}"
        path.write_bytes(damaged(source.read_bytes(), kind, draws))
        result[path] = kind
    return result


@by_sample
def small(image: Tensor, draws: torch.Generator) -> tuple[Tensor, ...]:
    return (F.interpolate(image[None].float(), (32, 32)).byte()[0],)


def test_decoding_gives_a_tensor_or_unreadable(copies: dict[Path, str]) -> None:
    outcome: collections.Counter[tuple[str, str]] = collections.Counter()
    for path, kind in copies.items():
        outcome[kind, "unreadable" if decode_or_refuse(path) is None else "decoded"] += 1
    print("\n" + "\n".join(f"{kind:16s} {result:10s} {count}" for (kind, result), count in sorted(outcome.items())))
    assert outcome["truncated", "unreadable"] == outcome["huge_claim", "unreadable"] == COPIES // len(KINDS)
    assert outcome["wrong_extension", "decoded"] == COPIES // len(KINDS)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_goes_on_or_stops_with_one_line(copies: dict[Path, str], tmp_path: Path, workers: int) -> None:
    index = ImageIndex.of(copies)
    listing = tmp_path / "unreadable.txt"
    with BatchLoader(
        index,
        small,
        batch_size=50,
        seed=0,
        total_steps=40,
        workers=workers,
        max_unreadable_share=1.0,
        unreadable_file=listing,
    ) as loader:
        assert sum(len(batch.indices) for batch in loader) == 2000
        failed, read = loader.unreadable.count, loader.unreadable.files_read
    print(f"\nworkers {workers}: {failed} of {read} files unreadable")
    assert (read, len(listing.read_bytes().splitlines())) == (COPIES, failed)
    with BatchLoader(index, small, batch_size=50, seed=0, total_steps=40, workers=workers) as loader:
        with pytest.raises(DataError, match=r"of the \d+ images read so far are unreadable .*at most 5.0%") as caught:
            list(loader)
        assert "\n" not in str(caught.value)
