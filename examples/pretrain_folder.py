"""Pre-train on a folder of images from Python, and see what the features are worth.

Run it as `python examples/pretrain_folder.py [FOLDER]`: it draws its own images, trains for some seconds, and leaves
the run in FOLDER/run. For real work use your own folder and another recipe (`mst recipes`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import mst
from mst.data.synthetic.scenes import write_scene_folder


def main(folder: Path) -> None:
    """Draw images, pre-train, evaluate."""
    images = folder / "images"
    write_scene_folder(images, {"train": 64, "val": 32}, size=32)

    # Any setting of `mst pretrain --help` can be overridden by its dotted name.
    config = mst.load_recipe("debug", {"data.train": str(images / "train"), "train.epochs": 4, "optimizer.lr": 1e-3})
    run = mst.pretrain(config, folder / "run")
    print(f"{run.steps} steps, loss {run.metrics['loss']:.3f}, backbone in {run.backbone}")

    # Labels are needed only to measure: train/<class>/ and val/<class>/.
    for backbone in (f"random:{run.root}", str(run.root)):
        result = mst.evaluate_knn(backbone, images)
        print(f"k-NN top-1 of {backbone}: {result.metrics['top1']:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="mst-example-")))
