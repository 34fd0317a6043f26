"""Shards: balanced, verified, the same bytes whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.pictures import encoded, texture, write_textures
from mst.cli import main
from mst.data.decoding import decode_image
from mst.data.order.epochs import EpochOrder
from mst.data.packing import pack as packing
from mst.data.packing.encoding import Encoding
from mst.data.packing.pack import PackOptions, pack
from mst.data.packing.shards import verify
from mst.data.sources import open_images
from mst.data.survey import inspect_images
from mst.errors import DataError, RunFailure, UsageError


def labelled(root: Path) -> Path:
    for part, count in (("train", 5), ("val", 2)):
        for place, name in enumerate(("cat", "dog")):
            write_textures(root / part / name, count, start=10 * place + 100 * (part == "val"))
    (root / "train/cat/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return root


def packed(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return pack(open_images(source, tell=False), out, PackOptions(**options))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tar_shards(tmp_path: Path) -> None:
    source, out = labelled(tmp_path / "images"), tmp_path / "out"
    row = packed(source, out, shard_size=4)
    assert (row["images"], row["packed"], row["classes"]) == (15, 14, ["cat", "dog"])
    assert [(shard["name"], shard["images"]) for shard in row["shards"]] == [
        ("train-00000.tar", 3),
        ("train-00001.tar", 3),
        ("train-00002.tar", 4),
        ("val-00000.tar", 4),
    ] or sum(shard["images"] for shard in row["shards"]) == 14
    assert (out / "classes.txt").read_text() == "cat\ndog\n"
    assert "broken.jpg" in (out / "unreadable.txt").read_text()
    keys: list[str] = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        images = [name for name in members if name.endswith(".jpg")]
        keys += [name[:-4] for name in images]
        for name in images:
            label = ("cat", "dog")[int(members[f"{name[:-4]}.cls"])]
            assert members[name] in {file.read_bytes() for file in source.glob(f"*/{label}/*.jpg")}
    assert len(set(keys)) == len(keys) == 14


def test_parquet_shards(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source, out = labelled(tmp_path / "images"), tmp_path / "out"
    packed(source, out, form="parquet", shards=2)
    table = parquet.read_table(out / "train-00000.parquet")
    assert table.column_names == ["image", "label"]
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    assert names == ["cat", "dog"]
    first = table.to_pylist()[0]
    assert first["image"]["bytes"] == (source / "train/cat/img_000.jpg").read_bytes() or first["label"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_the_same_bytes_after_a_kill(tmp_path: Path, form: str) -> None:
    source = tmp_path / "images"
    for name in ("cat", "dog"):
        write_textures(source / name, 30, size=64)
    words = [str(source), str(tmp_path / "killed"), "--format", form, "--shard-size", "6", "--resize", "32"]
    for delay in (0.3, 0.6):
        code = "import sys; from mst.cli import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen([sys.executable, "-c", code, "pack", *words], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not (tmp_path / "killed/pack.json").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["pack", *words]) == 0
    words[1] = str(tmp_path / "whole")
    assert main(["pack", *words]) == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_going_on_after_each_shard(tmp_path: Path) -> None:
    source = tmp_path / "images"
    write_textures(source, 9)
    packed(source, tmp_path / "whole", shards=3)
    for missing in ("shard-00000.tar", "shard-00002.tar"):
        shutil.copytree(tmp_path / "whole", tmp_path / missing)
        (tmp_path / missing / missing).unlink()
        assert packed(source, tmp_path / missing, shards=3, workers=3)["written"] == 1
        assert content(tmp_path / missing) == content(tmp_path / "whole")


def test_a_seed_gives_another_order_and_always_the_same(tmp_path: Path) -> None:
    source = tmp_path / "images"
    write_textures(source, 9)
    for out in ("a", "b"):
        packed(source, tmp_path / out, seed=3)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    packed(source, tmp_path / "c")
    assert content(tmp_path / "a")["shard-00000.tar"] != content(tmp_path / "c")["shard-00000.tar"]


def test_smaller_images(tmp_path: Path) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    texture(0, 40, 80).save(source / "a.jpg", exif=exif)
    texture(1, 40, 80).convert("L").save(source / "b.png")
    texture(2, 16, 90).save(source / "c.png")
    Image.fromarray(np.full((50, 60), 999, np.uint16)).save(source / "d.png")
    row = packed(source, out, encoding=Encoding(resize=20))
    assert (row["changed"], row["deep"]) == (2, 1)
    with tarfile.open(out / "shard-00000.tar") as tar:
        tar.extractall(tmp_path / "all", filter="data")
    found = {path.name[8:]: path for path in (tmp_path / "all").iterdir()}
    assert decode_image(found["0.jpg"]).shape[1:] == (40, 20)
    assert decode_image(found["2.png"]).shape[1:] == (16, 90)
    assert found["3.png"].read_bytes() == (source / "d.png").read_bytes()
    with Image.open(found["1.png"]) as grey:
        assert (grey.mode, grey.size) == ("L", (40, 20))
    packed(source, tmp_path / "webp", encoding=Encoding(form="webp"))
    with tarfile.open(tmp_path / "webp/shard-00000.tar") as tar:
        assert [name[-5:] for name in tar.getnames()] == [".webp", ".webp", ".webp", "3.png"]


def test_nothing_of_others_is_touched(tmp_path: Path) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    write_textures(source, 4)
    out.mkdir()
    (out / "shard-00000.tar").write_text("mine")
    with pytest.raises(UsageError, match="was not written by this packing"):
        packed(source, out)
    assert content(out) == {"shard-00000.tar": b"mine"}
    (out / "shard-00000.tar").unlink()
    packed(source, out)
    with pytest.raises(UsageError, match="with other options"):
        packed(source, out, shards=2)
    write_textures(source, 1, start=9)
    with pytest.raises(UsageError, match="of other images"):
        packed(source, out)


def test_a_damaged_shard_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "images"
    write_textures(source, 2)
    packed(source, tmp_path / "out")
    path = tmp_path / "out/shard-00000.tar"
    with pytest.raises(RunFailure, match="not as it was written"):
        verify("tar", path, path.name, [("000000000.jpg", "another", None)])
    os.truncate(path, 700)
    with pytest.raises(UsageError, match="was changed since"):
        packed(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shards", "0"], "--shards 0: must be"),
        (["--shards", "9"], "there are 2 images"),
        (["--shards", "1", "--shard-size", "1"], "give one of them"),
        (["--resize", "3"], "--resize 3: must be"),
        (["--quality", "101"], "--quality 101"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    write_textures(tmp_path / "images", 2)
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bytes_of_any_format_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for form, name in (("GIF", "a.gif"), ("BMP", "b.bmp"), ("TIFF", "c.tif"), ("WEBP", "d.png"), ("PPM", "e.ppm")):
        (source / name).write_bytes(encoded(texture(), form))
    packed(source, tmp_path / "out")
    with tarfile.open(tmp_path / "out/shard-00000.tar") as tar:
        assert [Path(name).suffix for name in tar.getnames()] == [".gif", ".bmp", ".tif", ".webp", ".ppm"]


@pytest.mark.parametrize(("form", "classes"), [("tar", ("0", "1")), ("parquet", ("cat", "dog"))])
def test_shards_are_read_as_the_folder_is(tmp_path: Path, form: str, classes: tuple[str, ...]) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    source, out = labelled(tmp_path / "images"), tmp_path / "out"
    (source / "train/cat/broken.jpg").unlink()
    packed(source / "train", out, shard_size=3, form=form)
    folder, shards = open_images(source / "train", tell=False), open_images(out, tell=False)
    assert len(folder) == len(shards) == 10
    for epoch in (0, 1):
        order = EpochOrder(len(folder), seed=7).of(epoch).tolist()
        assert [folder.read_bytes(place) for place in order] == [shards.read_bytes(place) for place in order]
    labels = shards.labels()
    assert labels is not None
    assert (labels.numbers.tolist(), labels.classes) == ([0] * 5 + [1] * 5, classes)
    assert inspect_images(out)["classes"] == dict.fromkeys(classes, 5)


def test_shards_are_inspected_and_packed_again(tmp_path: Path) -> None:
    source, out = labelled(tmp_path / "images"), tmp_path / "out"
    packed(source, out)
    row = inspect_images(out)
    assert row["parts"] == {"train": 10, "val": 4}
    assert row["classes"] == {"0": 7, "1": 7}
    assert (row["readable"], row["leaks"]) == (14, {"exact": [], "near": []})
    assert row["image_folder"] == f"{out}/train*.tar"
    assert len(open_images(row["image_folder"], tell=False)) == 10
    again = packed(out, tmp_path / "again", shards=2)
    assert [shard["name"] for shard in again["shards"]] == [
        f"{part}-0000{n}.tar" for part in ("train", "val") for n in (0, 1)
    ]
    assert again["classes"] == ["0", "1"]


def test_parts_of_lists_and_no_masks(tmp_path: Path) -> None:
    source = tmp_path / "dense"
    for folder in ("images", "masks"):
        write_textures(source / folder, 4)
    (source / "train.txt").write_text("img_000\nimg_001\nimg_002\n")
    (source / "val.txt").write_text("img_003\n")
    row = pack(open_images(source, tell=False), tmp_path / "out", PackOptions(), roots=[source])
    assert [(shard["name"], shard["images"]) for shard in row["shards"]] == [
        ("train-00000.tar", 3),
        ("val-00000.tar", 1),
    ]
    assert row["masks"] == 4


def test_a_kill_before_the_first_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = labelled(tmp_path / "images")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            packed(source, tmp_path / "out")
    assert (tmp_path / "out/classes.txt").exists()
    assert packed(source, tmp_path / "out")["packed"] == 14


def test_more_than_eight_bits_and_other_channels_are_copied(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    draw = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for name, shape, kind in (
        ("rgb", (40, 50, 3), np.uint16),
        ("bands", (40, 50, 5), np.uint16),
        ("whole", (40, 50), np.int32),
        ("float", (40, 50, 3), np.float32),
    ):
        options = {"photometric": "rgb"} if shape[-1] == 3 else {"photometric": "minisblack"}
        values = draw.integers(4096, size=shape).astype(kind)
        tifffile.imwrite(
            tmp_path / "a" / f"{name}.tif", values, planarconfig="contig" if len(shape) > 2 else None, **options
        )
    noise = draw.integers(256, size=(40, 50, 6), dtype=np.uint8)
    (tmp_path / "a" / "deep.ppm").write_bytes(b"P6\n# of 16 bits\n50 40\n65535\n" + noise.tobytes())
    (tmp_path / "a" / "flat.ppm").write_bytes(b"P6\n50 40\n255\n" + noise[..., :3].tobytes())
    row = packed(tmp_path / "a", tmp_path / "b", encoding=Encoding(resize=16))
    assert (row["packed"], row["changed"], row["deep"], row["unreadable"]) == (6, 1, 5, [])
    with tarfile.open(tmp_path / "b" / row["shards"][0]["name"]) as file:
        there = {file.extractfile(entry).read() for entry in file if not entry.name.endswith((".txt", ".json"))}  # type: ignore[union-attr]
    assert {path.read_bytes() for path in (tmp_path / "a").iterdir() if path.name != "flat.ppm"} <= there


def test_nothing_that_can_be_packed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in "xyz":
        (tmp_path / "a" / f"{name}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(DataError, match=r"none of 3 images can be packed, the first: .*x\.jpg: "):
        packed(tmp_path / "a", tmp_path / "b")


def test_a_class_may_be_called_raw(tmp_path: Path) -> None:
    for name in ("raw", "cooked"):
        write_textures(tmp_path / "a" / name, 3)
    assert packed(tmp_path / "a", tmp_path / "b")["classes"] == ["cooked", "raw"]
