"""The Python API: names, callbacks, one image to a backbone's input, tables of features."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mst
from mst.config.schema import ModelConfig
from mst.data.synthetic.scenes import write_scene_folder
from mst.evaluate.common.features import Features
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.runtime.storage.outputs import Outputs
from mst.workflows.callbacks import Callbacks
from mst.workflows.embedding import write_features


def test_every_name_is_there_and_none_costs_time() -> None:
    assert all(getattr(mst, name) is not None for name in mst.__all__)
    code = "import sys, mst; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def backbone(folder: Path, channels: int = 3, **metadata: Any) -> Path:
    config = ModelConfig(backbone="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=1, num_heads=2)
    spec = backbone_spec(config, image_size=(32, 48), channels=channels)
    given = {"mean": [0.5] * channels, "std": [0.25] * channels, "value_ranges": {}, **metadata}
    save_backbone(folder / "backbone.safetensors", build_backbone(spec), given)
    return folder / "backbone.safetensors"


def test_one_image_of_any_kind(tmp_path: Path) -> None:
    network = mst.load_backbone(backbone(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    transform = network.transform
    first = transform(tmp_path / "a.png")
    assert (first.shape, first.dtype) == ((3, 32, 48), torch.float32)
    for same in (str(tmp_path / "a.png"), picture, pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels)):
        torch.testing.assert_close(transform(same), first, rtol=0, atol=0)
    exact = pixels[:32, :48]
    torch.testing.assert_close(transform(exact), (torch.from_numpy(exact).permute(2, 0, 1) / 255 - 0.5) / 0.25)
    assert "40x60 with 3 channels, resized to 37x55, its centre 32x48 cut, normalised" in transform.explain(pixels)
    assert "taken whole" in transform.explain(exact)
    assert transform(picture.convert("L")).shape == transform(picture.convert("CMYK")).shape == (3, 32, 48)
    assert network(torch.stack([first, first])).shape == (2, 32)


def test_what_is_no_image_for_a_backbone_is_refused(tmp_path: Path) -> None:
    transform = mst.load_backbone(backbone(tmp_path)).transform
    for wrong, message in (
        (np.zeros((32, 48, 6), np.uint8), "6"),
        (np.zeros((2, 32, 48, 3), np.uint8), r"an array of shape \[2, 32, 48, 3\]: one image"),
        (np.zeros((32, 48, 3), np.float32), "value_range"),
        (tmp_path / "no.png", "no.png"),
    ):
        with pytest.raises(mst.UsageError, match=message):
            transform(wrong)
    assert transform(np.ones((32, 48, 3), np.float32), value_range=(0, 1)).max() == 2
    fresh = build_backbone(mst.load_backbone(tmp_path / "backbone.safetensors").spec)
    with pytest.raises(mst.UsageError, match=r"load one by mst\.load_backbone"):
        fresh.transform(np.zeros((32, 48, 3), np.uint8))


def test_grey_and_other_value_ranges(tmp_path: Path) -> None:
    transform = mst.load_backbone(backbone(tmp_path, 1, value_ranges={"uint16": [0, 4095]})).transform
    deep = np.full((32, 48), 4095, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (deep, tmp_path / "deep.png", Image.open(tmp_path / "deep.png")):
        assert torch.equal(transform(image), torch.full((1, 32, 48), 2.0))


def test_features_as_tables(tmp_path: Path) -> None:
    names = ("a,b.jpg", 'c "d".jpg', "ü.jpg")
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    features = Features(features=values, labels=torch.zeros(3, dtype=torch.int64), names=names, positions=(0, 1, 2))
    outputs = Outputs(tmp_path, "embed", "--out")
    write_features(outputs, "f.csv", features)
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "f0", "f1", "f2", "f3"]
    assert tuple(row[0] for row in rows[1:]) == names
    assert torch.equal(torch.tensor([[float(cell) for cell in row[1:]] for row in rows[1:]]), values)
    parquet = pytest.importorskip("pyarrow.parquet")
    write_features(outputs, "f.parquet", features)
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert tuple(table["path"]) == names
    assert torch.equal(torch.tensor(table["feature"]), values)


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(mst.MissingExtra, match=r"pyarrow is not installed: pip install 'mst-pretrain\[data\]'"):
        mst.embed(tmp_path, tmp_path, out=tmp_path / "f.parquet")


class Noted(mst.Callback):
    def __init__(self, raises: BaseException | None = None) -> None:
        self.seen: list[str] = []
        self.rows: list[Mapping[str, Any]] = []
        self.raises = raises

    def on_start(self, folder: Path, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        self.seen.append(f"start {config['train']['epochs']} {plan['total_steps']}")

    def on_row(self, row: Mapping[str, Any]) -> None:
        self.seen.append("row")
        self.rows.append(row)
        if self.raises is not None:
            raise self.raises

    def on_end(self, backbone: Path, metrics: Mapping[str, float]) -> None:
        self.seen.append(f"end {backbone.name} {'loss' in metrics}")

    def on_stop(self, error: BaseException) -> None:
        self.seen.append(f"stop {error}")


class Threads(mst.Callback):
    """Ends a run at its start, and keeps the number of compute threads there."""

    def on_start(self, folder: Path, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        self.seen = torch.get_num_threads()
        raise mst.StopTraining


def test_a_run_gives_the_compute_threads_back(tmp_path: Path) -> None:
    write_scene_folder(tmp_path / "images", {"train": 16}, size=32)
    config = mst.load_recipe("debug", {"data.train": str(tmp_path / "images" / "train"), "runtime.threads": 1})
    before, inside = torch.get_num_threads(), Threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(mst.StopTraining):
            mst.pretrain(config, tmp_path / "run", callbacks=[inside], quiet=True)
        assert (inside.seen, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_callbacks_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene_folder(tmp_path / "images", {"train": 16}, size=32)
    settings = {"data.train": str(tmp_path / "images" / "train"), "train.epochs": 1, "monitor.every_steps": 1}
    config = mst.load_recipe("debug", settings)
    good, bad = Noted(), Noted(OSError("no\nnetwork"))
    run = mst.pretrain(config, tmp_path / "run", callbacks=[bad, good], quiet=True)
    assert good.seen == [f"start 1.0 {run.steps}", *["row"] * len(good.rows), "end backbone.safetensors True"]
    assert [row["step"] for row in good.rows if "loss" in row] == list(range(1, run.steps + 1))
    assert [seen.split()[0] for seen in bad.seen] == ["start", "row"]
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "callback" in line] == [
        "warning: callback Noted.on_row raised OSError: no network: it is not called any more, the training goes on"
    ]
    assert all(line.startswith("warning:") for line in said)

    stop = Noted(mst.StopTraining("enough"))
    with pytest.raises(mst.StopTraining, match="enough"):
        mst.pretrain(config, tmp_path / "other", callbacks=[stop], quiet=True)
    assert stop.seen[-1].startswith("stop ")
    again = mst.pretrain(config, tmp_path / "other", resume=True, quiet=True)
    assert again.backbone.read_bytes() == run.backbone.read_bytes()


def test_a_planned_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene_folder(tmp_path / "images", {"train": 16}, size=32)
    planned = mst.plan(mst.load_recipe("debug", {"data.train": str(tmp_path / "images" / "train")}))
    assert (planned.images, planned.estimate) == (16, None)
    assert planned.plan.reasons["lr"]
    assert capsys.readouterr().err == ""
    with pytest.raises(mst.UsageError, match=r"--data\.train is missing"):
        mst.plan(mst.load_recipe("debug"))


def test_no_callbacks() -> None:
    Callbacks([mst.Callback()]).on_row({"step": 1})
