"""A trained network with its head in the form of another tool, with the difference of its answers measured there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mst.errors import CheckpointError
from mst.paths import user_path
from mst.workflows.exporting.folder import PARITY, fill, new_folder, push
from mst.workflows.exporting.remarks import told
from mst.workflows.exporting.settings import ExportSettings

FILES = {
    "classification": ("classes.json", "classifier.safetensors"),
    "segmentation": ("segmenter.json", "segmenter.safetensors"),
    "detection": ("detector.json", "detector.safetensors"),
}
"""Task -> what a folder with its network holds."""


def export_model(
    model: str | Path, out: str | Path, *, form: str = "timm", settings: ExportSettings | None = None
) -> dict[str, Any]:
    """Export what `mst predict` takes, and measure in the other program that it gives the same answers.

    Args:
        model: the folder of a finished `mst finetune`, or of a segmenter or detector that an evaluation
            saved.
        out: a new folder; it appears only when everything in it has been measured.
        form: `timm`, `hf`, `onnx`, `torch-export` or `safetensors`; of segmenters and detectors one of the last
            three.
        settings: outputs, images; no outputs = those of the task.

    Returns:
        task, format, out, the largest relative `difference`, `parity` (as in parity.json), `use` (a line of Python),
        and `remarks`.

    Raises:
        UsageError: the format is unknown or not for this task, the folder is in use, an extra is missing.
        CheckpointError: there is no trained network, or a damaged one.
        RunFailure: the other program gives other numbers, or cannot be given this network; nothing was written.
    """
    settings = settings or ExportSettings()
    settings.check(form)
    settings.onnx.refuse("--model")
    source, folder = user_path(model), new_folder(out)
    task = _task(source)
    export = _export(task).of(source, form, settings)
    rows = fill(folder, export.write, {"format": form, "task": task, "model": str(model), **export.said})
    if settings.push:
        push(folder, settings.push)
    worst = max(one["relative"] for row in rows for one in row["outputs"].values())
    values = {"task": task, "format": form, "out": str(folder), "difference": worst, "parity": rows}
    return {**values, "use": export.use(folder), "remarks": [*export.remarks, *told(rows)]}


def _export(task: str) -> Any:
    """Return the class that exports networks of a task."""
    from mst.workflows.exporting.classification import ClassifierExport  # these need torch
    from mst.workflows.exporting.detection import DetectorExport
    from mst.workflows.exporting.segmentation import SegmenterExport

    exports = {"classification": ClassifierExport, "segmentation": SegmenterExport, "detection": DetectorExport}
    return exports[task]


def _task(folder: Path) -> str:
    """Return what a trained network is for.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / PARITY).is_file():
        raise CheckpointError(f"--model {folder} is an export already: give the run that it was exported from")
    for task, names in FILES.items():
        if all((folder / name).is_file() for name in names):
            return task
    raise CheckpointError(
        f"--model {folder} holds no trained network with a head: give the --out of a finished mst finetune, or the "
        "--save-model of an evaluation; a backbone alone is exported with --backbone"
    )
