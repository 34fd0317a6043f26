"""A notebook's day: plan, pre-train quietly with a tracker, look at one image, write features as a table.

Run it as `python examples/notebook.py [FOLDER]`: it draws its own images and leaves everything in FOLDER.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mst
from mst.data.synthetic.scenes import write_scene_folder


class Tracker(mst.Callback):
    """Keeps what a tracker such as W&B or MLflow would be sent: replace the bodies by its calls."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.backbone: Path | None = None

    def on_start(self, folder: Path, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Send the settings, as `wandb.init(config=...)` or `mlflow.log_params`."""
        self.settings = dict(config)

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Send numbers, as `wandb.log(row, step=row["step"])` or `mlflow.log_metrics`."""
        self.rows.append(dict(row))

    def on_end(self, backbone: Path, metrics: Mapping[str, float]) -> None:
        """Send the file, as `wandb.save` or `mlflow.log_artifact`."""
        self.backbone = backbone


def main(folder: Path) -> Tracker:
    """Draw images, plan, train, look, embed."""
    images = folder / "images"
    write_scene_folder(images, {"train": 64}, size=32)

    settings = {"data.train": str(images / "train"), "train.epochs": 2, "monitor.every_steps": 1}
    config = mst.load_recipe("debug", settings)
    planned = mst.plan(config)
    print(f"{planned.plan.total_steps} steps on {planned.device}; K: {planned.plan.reasons['prototypes']}")

    tracker = Tracker()
    run = mst.pretrain(config, folder / "run", callbacks=[tracker], quiet=True)
    print(f"loss {tracker.rows[0]['loss']:.3f} at step 1, {run.metrics['loss']:.3f} at the end")

    # One image of any kind: a path, an image of Pillow, an array [H, W, C] or [C, H, W].
    backbone = mst.load_backbone(run.root)
    path = next((images / "train").rglob("*.png"))
    with Image.open(path) as picture:
        inputs = [backbone.transform(image) for image in (path, picture, np.asarray(picture))]
    print(backbone.transform.explain(path))
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[0], inputs[2])
    with torch.no_grad():
        print(f"features {tuple(backbone(torch.stack(inputs)).shape)}")

    # class folders without train/ and val/ are split by class, and the split is written down
    result = mst.evaluate_knn(run.root, images / "train")
    print(f"k-NN {result.metrics['top1']:.1f} %, split {result.extra['split']['file']}")

    mst.embed(run.root, images / "train", out=folder / "features.csv")
    with (folder / "features.csv").open(newline="") as file:
        print(f"{sum(1 for _ in csv.DictReader(file))} rows of features")
    return tracker


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="mst-example-")))
