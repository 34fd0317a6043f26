"""The examples run as they are."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> dict[str, Any]:
    """The names that an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"pretrain_folder", "extract_features", "custom_loop"}


def test_custom_loop() -> None:
    losses = load("custom_loop")["main"]()
    assert all(math.isfinite(loss) for loss in losses)


def test_pretrain_folder_and_then_extract_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("pretrain_folder")["main"](tmp_path / "first")
    load("extract_features")["main"](tmp_path / "first" / "run", tmp_path / "second")
    text = capsys.readouterr().out
    assert "k-NN top-1" in text
    assert "on a grid of (4, 4)" in text


def test_extract_features_without_a_run(tmp_path: Path) -> None:
    load("extract_features")["main"](None, tmp_path)
    assert (tmp_path / "features.npz").is_file()
