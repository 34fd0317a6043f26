"""Trained networks on disk: the same again, never half, and every refusal names file, problem and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evaluate.segmenters import vit
from mst.errors import CheckpointError, RunFailure
from mst.evaluate.common.model_files import ModelFiles
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.detection.detector import DetectorShape, build_detector
from mst.evaluate.detection.file import DetectorDescription, load_detector, save_detector
from mst.evaluate.segmentation.file import load_segmenter, save_segmenter
from mst.evaluate.segmentation.heads import HeadShape
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter

FILES = ModelFiles("thing", "mst make thing", version=3)
GREY, WHITE = (0.5,) * 3, (1.0,) * 3


def build(values: dict[str, Any]) -> tuple[nn.Module, str]:
    return nn.Linear(values["width"], 2).train(), values["name"]


def saved(folder: Path) -> nn.Linear:
    network = nn.Linear(3, 2)
    FILES.save(folder, network, {"width": 3, "name": "it"})
    return network


def save_a_segmenter(folder: Path) -> None:
    segmenter = Segmenter(vit(), ("a", "b"), HeadShape("linear"), frozen=True, seed=0)
    save_segmenter(folder, segmenter, View((32, 32), None, GREY, WHITE))


def save_a_detector(folder: Path) -> None:
    shape = DetectorShape(short_sides=(48,), long_side=96, channels=16, head_dim=32, anchor_size=8)
    backbone = vit()
    pyramid = Pyramid(backbone, channels=16, frozen=True, compute=torch.float32)
    detector = build_detector(pyramid, 1, shape, mean=GREY, std=WHITE)
    save_detector(folder, detector, DetectorDescription(backbone.spec, shape, ("box",), (1,), GREY, WHITE))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    network = saved(tmp_path / "new" / "folder")
    loaded, name = FILES.load(tmp_path / "new" / "folder", build)
    assert (name, loaded.training) == ("it", False)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    again = saved(tmp_path / "new" / "folder")
    assert torch.equal(FILES.load(tmp_path / "new" / "folder", build)[0].state_dict()["weight"], again.weight)
    names = sorted(file.name for file in (tmp_path / "new" / "folder").iterdir())
    assert names == ["thing.json", "thing.safetensors"]


@pytest.mark.parametrize("save", [save_a_segmenter, save_a_detector, saved])
def test_a_folder_that_cannot_be_made(save: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFailure, match=rf"cannot make {folder} for the \w+: .*; name another folder") as refused:
            save(folder)
        assert "\n" not in str(refused.value)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("missing", ["thing.json", "thing.safetensors"])
def test_a_missing_file(missing: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=f"has no {missing}: give the --save-model or --out of an `mst make thi"):
        FILES.load(tmp_path, build)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "cannot read .*thing.json: format 2, this version reads 3; train the thing or copy it again"),
        ({"width": "wide"}, "cannot read .*thing.json: .*; train the thing or copy it again"),
        (
            {"width": 4},
            r"does not fit its description: of 2 tensors, 1 of another shape \(first weight\); train",
        ),
    ],
)
def test_a_description_of_something_else(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "thing.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=problem) as refused:
        FILES.load(tmp_path, build)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 3}', "\xff\xfe"])
def test_a_damaged_description(text: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "thing.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"cannot read .*thing\.json: .*; train the thing or copy it again"):
        FILES.load(tmp_path, build)


def test_damaged_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "thing.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"cannot read .*thing\.safetensors: .*; train the thing or copy it"):
        FILES.load(tmp_path, build)


SAVED: dict[str, Callable[[Path], object]] = {"segmenter": save_a_segmenter, "detector": save_a_detector}
LOADED: dict[str, Callable[[Path], object]] = {
    "segmenter": lambda folder: load_segmenter(folder, torch.device("cpu")),
    "detector": load_detector,
}
WRONG = [None, 0, -1, 10**30, 1.5, float("nan"), "x", "", [], {}, True, [0], [None], [1e308, 1, 1], "9" * 5000, [[[]]]]


def refusal(kind: str, folder: Path) -> str | None:
    try:
        LOADED[kind](folder)
    except CheckpointError as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("kind", SAVED)
def test_wrong_values_of_every_key(kind: str, tmp_path: Path) -> None:
    """Zero, negative, huge, null and other kinds: one line each, and nothing large is made."""
    SAVED[kind](tmp_path)
    file = tmp_path / f"{kind}.json"
    sound = json.loads(file.read_text())
    LOADED[kind](tmp_path)
    inner = [(key, name) for key in sound if isinstance(sound[key], dict) for name in sound[key]]
    accepted = 0
    for place in [*((key,) for key in sound), *inner]:
        for value in WRONG:
            changed = json.loads(json.dumps(sound))
            (changed if len(place) == 1 else changed[place[0]])[place[-1]] = value
            file.write_text(json.dumps(changed))
            said = refusal(kind, tmp_path)
            accepted += said is None
            assert "\n" not in (said or "")
            assert len(said or "") < 400 + len(str(tmp_path))
    assert accepted <= 4  # no stride, a network's own heads, no value ranges (twice: null and nothing in it)


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "holds NaN: the network it is from"), (float("inf"), "holds infinity"), (None, "is of type int32")],
)
def test_weights_that_are_no_numbers(kind: str, value: float | None, said: str, tmp_path: Path) -> None:
    SAVED[kind](tmp_path)
    path = tmp_path / f"{kind}.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("blocks.0.attn.qkv.bias"))
    weights[name] = weights[name].int() if value is None else torch.full_like(weights[name], value)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=rf"{kind}\.safetensors: .*blocks\.0\.attn\.qkv\.bias {said}"):
        LOADED[kind](tmp_path)
