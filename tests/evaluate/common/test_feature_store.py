"""Kept features equal computed ones, serve every task, and are never used for anything else."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.fakes import FakeBackbone, colour_images
from mst.data.sources import ImageIndex
from mst.errors import MstError, RunFailure, UsageError
from mst.evaluate.common import feature_store
from mst.evaluate.common.feature_store import FeatureSource, weights_hash
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.common.protocol import ImageTransform
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone
from mst.parallel.world import World
from parallel.processes import run_in_processes

QUIET = FeatureSettings(forward_batch=4, precision="fp32", progress=False, max_unreadable_share=0.5)
TRANSFORM = ImageTransform((16, 16))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    spec = BackboneSpec("vit_tiny_patch16_224", (16, 16), 3, 8, embed_dim=32, depth=3, num_heads=2)
    return build_backbone(spec, seed=3).eval()


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    pixels, labels = colour_images(10, 4, size=16)
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return ImageSet(ImageIndex.of(paths), torch.tensor(labels))


@pytest.mark.parametrize("blocks", [1, 2, 4, 7])
@pytest.mark.parametrize("chosen", [None, [0, 3, 4, 9]])
@pytest.mark.parametrize("broken", [(), (3, 7)])
def test_kept_features_are_those_of_the_backbone(  # noqa: PLR0917
    blocks: int, chosen: list[int] | None, broken: tuple[int, ...], backbone: Backbone, images: ImageSet, tmp_path: Path
) -> None:
    for index in broken:
        Path(images.name(index)).write_bytes(b"nothing")
    direct = FeatureSource(backbone, TRANSFORM, QUIET).read("training", images, chosen, blocks=blocks)
    source = FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "kept")
    for found in (source.read("training", images, chosen, blocks=blocks) for _ in range(2)):
        torch.testing.assert_close(found.features, direct.features, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.labels, direct.labels)
        assert (found.names, found.positions, found.unreadable) == (direct.names, direct.positions, direct.unreadable)


def test_one_file_serves_all_blocks_without_the_backbone(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FeatureSource(backbone, TRANSFORM, QUIET, tmp_path)
    one = source.read("training", images)
    (file,) = tmp_path.glob("training-*.npy")
    assert np.load(file).shape == (3, 10, 32)
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "extract_features", None)
        assert torch.equal(source.read("training", images).features, one.features)
        four = source.read("training", images, blocks=4).features
    assert torch.equal(four[:, -32:], one.features)
    torch.testing.assert_close(one.features, torch.cat([backbone(TRANSFORM(images.read(i))[None]) for i in range(10)]))


def changed_weights(source: FeatureSource, images: ImageSet) -> tuple[FeatureSource, ImageSet]:
    other = build_backbone(source.backbone.spec, seed=4).eval()
    return replace(source, backbone=other), images


def changed_size(source: FeatureSource, images: ImageSet) -> tuple[FeatureSource, ImageSet]:
    return replace(source, transform=ImageTransform((8, 8))), images


def changed_precision(source: FeatureSource, images: ImageSet) -> tuple[FeatureSource, ImageSet]:
    return replace(source, settings=replace(QUIET, precision="bf16")), images


def fewer_images(source: FeatureSource, images: ImageSet) -> tuple[FeatureSource, ImageSet]:
    return source, images.subset(range(5))


def touched_image(source: FeatureSource, images: ImageSet) -> tuple[FeatureSource, ImageSet]:
    Image.new("RGB", (16, 16), (200, 0, 0)).save(images.name(2))
    return source, images


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (changed_weights, "another backbone"),
        (changed_size, "another size"),
        (changed_precision, "another precision"),
        (fewer_images, "other images"),
        (touched_image, "other images"),
    ],
)
def test_what_differs_is_computed_anew_and_said(  # noqa: PLR0917
    change: object, word: str, backbone: Backbone, images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "kept")
    source.read("training", images)
    assert callable(change)
    other, wanted = change(source, images)
    capsys.readouterr()
    found = other.read("training", wanted)
    assert f"was made with {word}" in " ".join(capsys.readouterr().err.split())
    direct = replace(other, folder=None).read("training", wanted)
    torch.testing.assert_close(found.features, direct.features)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 1


def test_damaged_files_are_computed_anew(
    backbone: Backbone, images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "kept")
    first = source.read("training", images).features.clone()
    note = tmp_path / "kept" / "training.json"
    name = json.loads(note.read_text())["file"]
    for damage in (
        lambda: note.write_text("{"),
        lambda: note.write_text("[]"),
        lambda: (note.parent / name).write_bytes((note.parent / name).read_bytes()[:-100]),
        lambda: note.write_text(note.read_text().replace('"unreadable": []', '"unreadable": [[1e999, 1]]')),
        lambda: (note.parent / name).write_bytes((note.parent / name).read_bytes().replace(b"}", b"(", 1)),
        (note.parent / name).unlink,
    ):
        damage()
        capsys.readouterr()
        assert torch.equal(source.read("training", images).features, first)
        assert "computed anew" in capsys.readouterr().err


def test_mistakes(
    backbone: Backbone,
    images: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: name a folder"):
        FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "file")
    memory = ImageSet.from_tensors(*colour_images(4, 2, size=16))
    FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "kept").read("training", memory)
    assert "are not kept: these images are no files" in " ".join(capsys.readouterr().err.split())
    usage = feature_store.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunFailure, match=r"needs 0.\d MB, 0.0 MB are free: free space"):
        FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "kept").read("training", images)
    assert not list((tmp_path / "kept").iterdir())
    assert isinstance(RunFailure("x"), MstError)


def test_the_hash_sees_every_weight() -> None:
    one, other = FakeBackbone(), FakeBackbone()
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other.scale[1] += 1e-6
    assert weights_hash(one) != weights_hash(other)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_altered_features_are_computed_anew(
    backbone: Backbone, images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    source = FeatureSource(backbone, TRANSFORM, QUIET, tmp_path)
    right = source.read("training", images, blocks=3).features.clone()
    (file,) = tmp_path.glob("training-*.npy")
    content = bytearray(file.read_bytes())
    content[128 + place * (len(content) - 129) // 3] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert torch.equal(source.read("training", images, blocks=3).features, right)
    assert "is not what was written" in " ".join(capsys.readouterr().err.split())
    source.read("training", images, blocks=3)
    assert "computed anew" not in capsys.readouterr().err


def test_other_contents_of_the_same_size_and_time_are_other_images(
    backbone: Backbone, images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FeatureSource(backbone, TRANSFORM, QUIET, tmp_path / "kept")
    source.read("training", images)
    file = Path(images.name(4))
    state, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 255
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    capsys.readouterr()
    source.read("training", images)
    assert "other contents of the images" in " ".join(capsys.readouterr().err.split())


def test_what_a_kill_left_is_deleted_and_what_is_being_written_is_not(
    backbone: Backbone, images: ImageSet, tmp_path: Path
) -> None:
    (tmp_path / ".training-0123456789abcdef.npy.4194301.tmp").write_bytes(b"x" * 1000)
    (tmp_path / "training-0123456789abcdef.npy").write_bytes(b"x" * 1000)
    (tmp_path / "training-notes.txt").write_text("mine")
    busy = tmp_path / ".training-fedcba9876543210.npy.1.tmp"
    with feature_store._claimed(busy):
        FeatureSource(backbone, TRANSFORM, QUIET, tmp_path).read("training", images)
        assert busy.exists()
    found = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png")
    assert len(found) == 3
    assert found[0].startswith("training-")
    assert found[1:] == ["training-notes.txt", "training.json"]


def test_writers_side_by_side_all_get_their_features(backbone: Backbone, images: ImageSet, tmp_path: Path) -> None:
    def read(size: int) -> torch.Tensor:
        source = FeatureSource(backbone, ImageTransform((size, size)), QUIET, tmp_path / "kept")
        return source.read(f"part{size}", images).features.clone()

    sizes = [8, 16, 8 * 3, 8 * 4] * 2
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(read, sizes))
    for size, features in zip(sizes, found, strict=True):
        direct = FeatureSource(backbone, ImageTransform((size, size)), QUIET).read("x", images).features
        torch.testing.assert_close(features, direct)


def test_files_of_other_names_are_the_users(backbone: Backbone, images: ImageSet, tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("training-clip.npy", "training-2024-05.npy", ".training-notes.tmp")]
    for path in mine:
        path.write_bytes(b"mine")
    FeatureSource(backbone, TRANSFORM, QUIET, tmp_path).read("training", images)
    assert [path.read_bytes() for path in mine] == [b"mine"] * 3


def kept_by_two(folder: str) -> None:
    """Keep, read, and compute anew where one process cannot use what is kept."""
    rank, root = World.current().rank, Path(folder)
    spec = BackboneSpec("vit_tiny_patch16_224", (16, 16), 3, 8, embed_dim=32, depth=3, num_heads=2)
    network = build_backbone(spec, seed=3).eval()
    paths = sorted((root / "images").glob("*.png"))
    some = ImageSet(ImageIndex.of(paths), torch.zeros(len(paths), dtype=torch.int64))
    direct = FeatureSource(network, TRANSFORM, QUIET).read("training", some, blocks=2)
    source = FeatureSource(network, TRANSFORM, QUIET, root / "kept")
    for turn in range(3):
        if turn == 2 and rank == 1:
            source = replace(source, folder=root / "elsewhere")  # as a disk that shows files late
        found = source.read("training", some, blocks=2)
        torch.testing.assert_close(found.features, direct.features, rtol=1e-5, atol=1e-6)
    assert len(list((root / "kept").glob("training-*.npy"))) == 1
    assert not (root / "elsewhere").exists()


def test_processes_agree_on_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index, image in enumerate(colour_images(5, 4, size=16)[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{index}.png")
    run_in_processes("evaluate.common.test_feature_store:kept_by_two", 2, str(tmp_path))
