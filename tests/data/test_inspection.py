"""A folder of planted faults of every kind: all are found, none is invented."""

from __future__ import annotations

import io
import json
import shutil
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from data.pictures import encoded, texture
from mst.cli import main
from mst.commands import inspect as command
from mst.data.inspection.facts import ImageFacts, ends_early
from mst.data.inspection.near import RADIUS, alike, distance, near_images
from mst.data.inspection.places import PlaceNotes
from mst.data.inspection.signature import LENGTH, hashes, signature
from mst.data.survey import SHAPES, inspect_images, shape_of
from mst.runtime.signals import GracefulStop
from mst.workflows.inspection import inspect

CLASSES = ("bolt", "nut")


def scene(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    """Blobs of several sizes and colours, another picture for each seed."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    pixels = np.full((height, width, 3), draws.uniform(60, 190, 3))
    for _ in range(80):
        centre, spread = draws.uniform(0, 1, 2), draws.uniform(0.03, 0.25)
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / spread**2)
        pixels += blob[..., None] * draws.uniform(-120, 120, 3)
    return Image.fromarray((pixels + draws.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))


def plant(root: Path) -> None:
    """Write sound images of two classes in two parts, and one fault of each kind."""
    seed = 0
    for part, count in (("train", 12), ("val", 4)):
        for name in CLASSES:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed += 1
                (folder / f"{number:02}.jpg").write_bytes(encoded(scene(seed), "JPEG", quality=92))
    bolt, nut, val = root / "train/bolt", root / "train/nut", root / "val/bolt"
    good = (bolt / "00.jpg").read_bytes()
    (bolt / "empty.jpg").touch()
    (bolt / "cut.jpg").write_bytes(good[: len(good) // 2])
    (bolt / "text.jpg").write_text("this is no image")
    (bolt / "no_end.png").write_bytes(encoded(scene(900), "PNG")[:-12])
    damaged = bytearray(encoded(scene(901), "PNG"))
    damaged[60:90] = bytes(30)
    (bolt / "damaged.png").write_bytes(damaged)
    shutil.copy(bolt / "01.jpg", bolt / "copy.jpg")
    (bolt / "again.jpg").write_bytes(encoded(ImageEnhance.Contrast(opened(bolt / "02.jpg")).enhance(0.85), "JPEG"))
    opened(bolt / "03.jpg").resize((32, 32), Image.Resampling.BILINEAR).save(bolt / "smaller.png")
    shutil.copy(bolt / "04.jpg", val / "leak.jpg")
    (val / "near_leak.webp").write_bytes(encoded(opened(bolt / "05.jpg"), "WEBP", quality=70))
    shutil.copy(bolt / "06.jpg", nut / "other_label.jpg")
    Image.new("RGB", (64, 64), (200, 200, 200)).save(nut / "blank.png")
    noise = np.random.default_rng(0).normal(17, 0.7, (64, 64)).round().astype(np.uint8)
    Image.fromarray(noise).save(nut / "nearly_blank.png")
    scene(902).convert("L").save(nut / "grey.png")
    scene(903).convert("L").convert("RGB").save(nut / "grey_in_colour.jpg")
    scene(904).save(nut / "moving.gif", save_all=True, append_images=[scene(905)])
    scene(906, 40, 160).save(nut / "wide.bmp")


def opened(path: Path) -> Image.Image:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("planted")
    plant(root)
    row = inspect(root).row
    text = json.dumps(row).replace(f"{root}/", "")
    return dict(json.loads(text))


def test_damage(found: dict[str, Any]) -> None:
    assert {Path(entry["path"]).name for entry in found["unreadable"]} == {
        "empty.jpg",
        "cut.jpg",
        "text.jpg",
        "damaged.png",
    }
    assert found["unreadable_kinds"] == {"empty": 1, "truncated": 1, "no image": 1, "damaged": 1}
    assert found["truncated"] == ["train/bolt/no_end.png"]
    assert found["moving"] == 1


def test_duplicates(found: dict[str, Any]) -> None:
    assert found["exact_duplicates"]["groups"] == [
        ["train/bolt/01.jpg", "train/bolt/copy.jpg"],
        ["train/bolt/04.jpg", "val/bolt/leak.jpg"],
        ["train/bolt/06.jpg", "train/nut/other_label.jpg"],
    ]
    assert found["near_duplicates"]["groups"] == [
        ["train/bolt/02.jpg", "train/bolt/again.jpg"],
        ["train/bolt/03.jpg", "train/bolt/smaller.png"],
        ["train/bolt/05.jpg", "val/bolt/near_leak.webp"],
    ]
    assert not found["near_duplicates_cut"]


def test_leaks_and_labels(found: dict[str, Any]) -> None:
    assert found["leaks"] == {
        "exact": [["train/bolt/04.jpg", "val/bolt/leak.jpg"]],
        "near": [["train/bolt/05.jpg", "val/bolt/near_leak.webp"]],
    }
    assert found["conflicts"] == [["train/bolt/06.jpg", "train/nut/other_label.jpg"]]
    assert found["parts"] == {"train": 39, "val": 10}
    assert found["classes"] == {"bolt": 26, "nut": 23}


def test_pixels(found: dict[str, Any]) -> None:
    assert found["blank"] == ["train/nut/blank.png", "train/nut/nearly_blank.png"]
    assert found["grey"] == 4  # the blank ones, too
    assert found["shapes"] == {"square": found["readable"] - 1, "wider than 2:1": 1}


def test_advice(found: dict[str, Any]) -> None:
    about = {entry["about"]: entry["text"] for entry in found["advice"]}
    expected = {"unreadable", "truncated", "frames", "exact duplicates", "near duplicates", "conflicts", "leaks"}
    assert set(about) == expected | {"blank", "few", "decoding", "grey"}
    assert found["next"].startswith("mst pretrain own-images --data.train train --out runs/first --monitor.knn-data ")


def test_nothing_is_invented(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(40):
            image = scene(zlib.crc32(f"{name} {number}".encode()) % 10**6)
            (tmp_path / name / f"{number}.jpg").write_bytes(encoded(image, "JPEG"))
    row = inspect(tmp_path).row
    assert [entry["about"] for entry in row["advice"] if entry["level"] == "bad"] == ["few"]
    assert (row["exact_duplicates"]["images"], row["near_duplicates"]["images"], row["blank"]) == (0, 0, [])
    assert (row["grey"], row["conflicts"], row["leaks"]) == (0, [], {"exact": [], "near": []})
    assert row["classes"] == {"bolt": 40, "nut": 40}


def test_grey_images_ask_for_one_channel(tmp_path: Path) -> None:
    for number in range(5):
        scene(number).convert("L").convert("RGB").save(tmp_path / f"{number}.png")
    row = inspect(tmp_path).row
    assert "All are grey: --data.channels 1" in next(one["text"] for one in row["advice"] if one["about"] == "grey")
    assert row["next"].endswith("--out runs/first --data.channels 1")
    assert inspect(tmp_path, channels=1, data_options="--data.channels 1").row["next"].count("--data.channels 1") == 1


@pytest.mark.parametrize("layout", ["images/{part}/{n}.jpg", "{part}/{n}.jpg", "lists", "coco"])
def test_parts(tmp_path: Path, layout: str) -> None:
    names = []
    for n in range(4):
        part = "train" if n < 2 else "val"
        path = tmp_path / (layout.format(part=part, n=n) if "{" in layout else f"images/{n}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(1 if n == 3 else n), "JPEG", quality=60 + 5 * n))
        names.append(path.name)
    if layout == "lists":
        (tmp_path / "train.txt").write_text("0\n1\n")
        (tmp_path / "val.txt").write_text("2\n3\n")
    if layout == "coco":
        (tmp_path / "annotations").mkdir()
        for part, some in (("train", names[:2]), ("val", names[2:])):
            content = {"images": [{"file_name": name} for name in some]}
            (tmp_path / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    row = inspect_images(tmp_path)
    assert row["parts"] == {"train": 2, "val": 2}
    assert [[Path(name).stem for name in group] for group in row["leaks"]["near"]] == [["1", "3"]]


def test_masks_are_no_images(tmp_path: Path) -> None:
    for number in range(3):
        for folder, image in (("images", scene(number)), ("masks", Image.new("L", (64, 64), 3))):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{number}.png")
    row = inspect_images(tmp_path)
    assert (row["pictures"], row["blank"], row["classes"]) == (3, [], {})
    assert row["mask_folders"] == [f"{tmp_path}/masks"]
    assert f"--data.train {tmp_path}/images " in inspect(tmp_path).row["next"]
    assert inspect_images(tmp_path / "masks")["pictures"] == 3


def test_validation_in_another_place(tmp_path: Path) -> None:
    for folder, seeds in (("mine", (1, 2, 3)), ("theirs", (3, 4))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            scene(seed).save(tmp_path / folder / f"{seed}.png")
    row = inspect_images(tmp_path / "mine", validation=[tmp_path / "theirs"])
    assert row["parts"] == {"train": 3, "val": 2}
    assert len(row["leaks"]["exact"]) == 1


def test_all_close_hashes_are_found() -> None:
    draws = np.random.default_rng(0)
    base = np.stack([np.frombuffer(signature(to_tensor(scene(seed))), np.uint8) for seed in range(60)])
    noisy = base.copy()
    noisy[:, :1024] = (base[:, :1024].astype(float) + draws.normal(0, 2, (60, 1024))).clip(0, 255)
    both = np.concatenate([base, noisy])
    found = near_images(both, np.arange(120))
    codes = hashes(both)
    slow = {
        (i, j)
        for i in range(120)
        for j in range(i + 1, 120)
        if bin(int(codes[i]) ^ int(codes[j])).count("1") <= RADIUS and bool(alike(both[i : i + 1], both[j : j + 1])[0])
    }
    assert {tuple(group) for group in found.groups} == slow == {(i, i + 60) for i in range(60)}
    assert distance(codes[:2], codes[1:3]).tolist() == [
        bin(int(codes[i]) ^ int(codes[i + 1])).count("1") for i in (0, 1)
    ]


def test_many_alike_end_in_time() -> None:
    one = np.frombuffer(signature(to_tensor(scene(5))), np.uint8)
    found = near_images(np.broadcast_to(one, (3000, LENGTH)), np.arange(3000))
    assert [len(group) for group in found.groups] == [3000]


def test_shapes() -> None:
    assert [shape_of(size) for size in ((10, 10), (300, 400), (400, 300), (480, 270), (100, 201), (100, 300))] == [
        SHAPES[3],
        SHAPES[4],
        SHAPES[2],
        SHAPES[1],
        SHAPES[5],
        SHAPES[6],
    ]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_ends(form: str) -> None:
    whole = encoded(texture(), form)
    assert not ends_early(whole)
    assert ends_early(whole[: len(whole) // 2])


def test_classes_below_a_folder_that_is_called_test() -> None:
    notes = PlaceNotes()
    for name in ("/a/test/pets/cat/1.jpg", "/a/test/pets/dog/1.jpg"):
        notes.add(name)
    assert notes.places([]).classes == ("cat", "dog")


def test_decoding_as_a_share_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        scene(number).save(tmp_path / f"{number}.png")
    cost = inspect(tmp_path).row["decoding"]
    assert cost["per_core"] == pytest.approx(1000 / cost["milliseconds"], rel=0.05)
    assert "share_of_step" not in cost
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert main(["inspect", str(tmp_path), "--run", str(run)]) == 2
    assert f"--run {run}: no row of its metrics has the speed of its steps" in capsys.readouterr().err
    rows = [{"step": step, "images_per_second": speed, "data_wait": 0.5} for step, speed in enumerate((2, 5, 50))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["inspect", str(tmp_path), "--run", str(run), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    cost = row["decoding"]
    assert cost["step_milliseconds"] == 100  # half of the 200 ms of an image
    assert cost["share_of_step"] == pytest.approx(cost["milliseconds"] / 100, abs=1e-3)
    text = next(one["text"] for one in row["advice"] if one["about"] == "decoding")
    assert f"A step of {run} takes 100 ms an image: decoding on one core is" in text


@pytest.mark.parametrize("place", ["/set", "http://127.0.0.1:80/set", "s3://bucket/set"])
@pytest.mark.parametrize(
    ("stems", "pattern"),
    [
        (["train-00000", "train-00001", "val-00000"], "train*.tar"),
        (["train-0", "train-1", "validation-0"], "train*.tar"),
        (["x-train-00000-of-00002", "x-train-00001-of-00002", "x-test"], "x-train*.tar"),
        (["train2017", "val2017"], "train*.tar"),
    ],
)
def test_shards_that_are_called_after_parts(place: str, stems: list[str], pattern: str) -> None:
    notes = PlaceNotes()
    for stem in stems:
        notes.add(f"{place}/{stem}.tar:0.jpg")
    found = notes.places([])
    assert [found.parts[part] == "train" for part in found.part] == ["train" in stem for stem in stems]
    assert found.image_folder == f"{place}/{pattern}"
    assert found.classes == ()


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, page = tmp_path / "images", tmp_path / "page.html"
    plant(root)
    assert main(["inspect", str(root), "--out", str(page)]) == 0
    text = page.read_text()
    assert "In several parts" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert main(["inspect", str(root), "--out", str(page), "--json"]) == 0
    page.write_text("mine")
    capsys.readouterr()
    assert main(["inspect", str(root), "--out", str(page)]) == 2
    assert page.read_text() == "mine"
    assert "was changed since" in capsys.readouterr().err


def test_ctrl_c_shows_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        scene(number).save(tmp_path / f"{number}.png")

    def stopped(facts: Iterator[ImageFacts], total: int, stop: GracefulStop) -> Iterator[ImageFacts]:
        for _ in range(3):
            yield next(facts)
        stop.signum = signal.SIGINT

    monkeypatch.setattr(command, "_shown_progress", stopped)
    assert main(["inspect", str(tmp_path), "--json"]) == 130
    row = json.loads(capsys.readouterr().out)
    assert (row["images"], row["of"], row["pictures"]) == (3, 9, 3)
    assert main(["inspect", str(tmp_path)]) == 130
    assert "3 of 9, stopped before the end" in capsys.readouterr().out


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_signatures_of_any_size_and_channels() -> None:
    for shape in ((1, 1, 1), (3, 2, 300), (6, 40, 50), (1, 500, 3)):
        assert len(signature(torch.zeros(shape, dtype=torch.uint8))) == LENGTH
