"""The doors of evaluations and predictions: alike for a kind of task, with the limits of the command line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import mst
from mst.errors import UsageError
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.workflows.evaluation.inputs import EvaluationInput
from mst.workflows.subject import load_subject

LABELLED = ("knn", "linear", "logistic", "retrieval")


@pytest.mark.parametrize("task", LABELLED)
def test_tasks_on_labelled_folders_are_called_alike(task: str) -> None:
    function = getattr(mst, f"evaluate_{task}")
    names = ["backbone", "data", "protocol", "image", "limits", "labels", "settings", "features"]
    names += ["out", "device", "seed", "seeds", "compare"]
    assert list(inspect.signature(function).parameters) == names
    assert function.__name__ == f"evaluate_{task}"
    assert function.__doc__


@pytest.mark.parametrize("task", [*LABELLED, "segmentation", "detection", "objectness"])
def test_every_evaluation_takes_what_all_take(task: str) -> None:
    parameters = inspect.signature(getattr(mst, f"evaluate_{task}")).parameters
    shared = inspect.signature(EvaluationInput).parameters
    assert set(shared) <= set(parameters)
    assert {name: parameters[name].default for name in shared} == {name: own.default for name, own in shared.items()}


@pytest.mark.parametrize("predict", ["predict_detection", "predict_segmentation"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"picture_limit": -1}, "--picture-limit -1: must be at least 0"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"value_range": (2.0, 1.0)}, "--value-range"),
    ],
)
def test_predictions_from_python_have_the_limits_of_the_command(
    predict: str, wrong: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        getattr(mst, predict)(tmp_path, tmp_path, out=tmp_path / "out", **wrong)


def test_results_go_where_they_are_asked_to(tmp_path: Path) -> None:
    backbone = build_backbone(BackboneSpec("vit_tiny_patch16_224", (16, 16), 3, 8, embed_dim=8, depth=1, num_heads=1))
    assert load_subject(backbone).folder is None
    given = EvaluationInput[None](backbone, "data", out=tmp_path)
    assert given.load().folder == given.model_folder(None) == tmp_path
    assert given.model_folder(tmp_path / "model") == tmp_path / "model"
