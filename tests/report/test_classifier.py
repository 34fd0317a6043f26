"""What a page says of a classifier's errors, and of its twin from fresh weights; damaged rows are left out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mst.report.classifier.errors import task_errors
from mst.report.classifier.twins import find_twin, judge
from mst.report.reading import result_rows
from mst.runtime.storage.results import append_jsonl

RECALLS = [
    {"name": "a", "images": 10, "recall": 90.0, "recall_se": 9.5, "precision": 75.0},
    {"name": "b", "images": 4, "recall": 25.0, "recall_se": 21.7, "precision": 50.0},
    {"name": "c", "images": 0, "recall": None, "recall_se": None, "precision": None},
]
CONFUSION = [[9, 1, 0], [3, 1, 0], [0, 0, 0]]
WRONG = {"image": "x.png", "class": "a", "predicted": "b", "probability": 0.9, "probability_of_class": 0.1}


def row(**extra: Any) -> dict[str, Any]:
    kept = {"recalls": RECALLS, "confusion": CONFUSION, "errors": [WRONG], "val_images": 14} | extra
    return {"task": "knn", "backbone": "run", "metrics": {"top1": 71.4}, "protocol": {}, "extra": kept}


def folder(root: Path, **values: Any) -> dict[str, Path]:
    content = io.BytesIO()
    Image.new("RGB", (96, 96)).save(content, format="PNG")
    (root / "errors.png").write_bytes(content.getvalue())
    (root / "errors.json").write_text(json.dumps({"side": 96, "errors": [WRONG, WRONG], **values}))
    return {"knn": root}


def test_matrix_classes_and_thumbnails(tmp_path: Path) -> None:
    (found,) = task_errors([row()], folder(tmp_path))
    assert [[cell.count for cell in cells] for _, cells in found.matrix] == CONFUSION
    assert found.matrix[0][1][0].share == pytest.approx(0.9)
    assert (len(found.worst), found.side, found.strip[:10]) == (2, 96, "data:image")
    (found,) = task_errors([row()], {})
    assert (len(found.worst), found.side, found.strip) == (1, 0, "")
    assert task_errors([row() | {"backbone": "random:run"}], {}) == []


@pytest.mark.parametrize(
    "extra",
    [
        {"recalls": [7, {"name": 3}, {"images": "x"}]},
        {"confusion": [[1, 2], [3, 4]]},
        {"confusion": [[1, "x", 2]] * 3},
        {"confusion": {"a": 1}},
        {"errors": [None, {"image": 3}]},
        {"errors": "all"},
    ],
)
def test_damage_is_left_out(extra: dict[str, Any]) -> None:
    (found,) = task_errors([row(**extra)], {})
    assert not found.matrix or not found.worst or not found.classes


@pytest.mark.parametrize("values", [{"side": 10**9}, {"side": "x"}, {"errors": 3}])
def test_damaged_lists_of_thumbnails_are_left_out(values: dict[str, Any], tmp_path: Path) -> None:
    (found,) = task_errors([row()], folder(tmp_path, **values))
    assert (len(found.worst), found.strip) == (1, "")


def tuned(backbone: str, top1: float, images: int = 2000, **protocol: Any) -> dict[str, Any]:
    return {
        "task": "finetune",
        "backbone": backbone,
        "metrics": {"top1": top1},
        "protocol": {"epochs": 3, **protocol},
        "extra": {"val_images": images},
    }


def test_twins_differ_in_their_start_alone(tmp_path: Path) -> None:
    own = tuned("run", 80.0, layer_decay=0.75)
    for name, other in (
        ("a-longer", tuned("random:run", 70.0, epochs=4)),
        ("b-trained", tuned("run", 75.0)),
        ("c-fresh", tuned("random:run", 70.0, layer_decay=1.0)),
    ):
        append_jsonl(tmp_path / name / "results.jsonl", other)
    twin = find_twin(tmp_path / "own", own, result_rows)
    assert twin is not None
    assert twin[0] == "c-fresh"
    verdict = judge(own, twin)
    assert verdict.good is True
    assert "80.0 ± 0.9 from trained weights, 70.0 ± 1.0 from fresh ones" in verdict.text
    assert verdict.text.endswith("+10.0 ± 1.4 points: the trained weights help.")
    assert judge(twin[1], ("own", own)).text == verdict.text.replace("c-fresh", "own")
    assert "hurt" in judge(tuned("run", 60.0), twin).text
    assert judge(tuned("run", 71.0), twin).good is None
    assert "no clear difference" in judge(tuned("run", 71.0), twin).text
    assert "--backbone random:RUN" in judge(own, None).text
    assert find_twin(tmp_path / "nowhere" / "own", own, result_rows) is None
