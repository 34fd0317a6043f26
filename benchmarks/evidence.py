"""The runs of docs/evidence.md: train every arm with every seed, evaluate it, and keep what a published number needs.

    python benchmarks/evidence.py run --set cifar10 --work WORK --data DATA [--arms mst dino] [--seeds 0 1 2]
    python benchmarks/evidence.py publish --work WORK --data DATA

`run` goes on where it stopped; several of them share the work, as a run that another process is at is left to it, and
those that are published already, from this machine or another, are not repeated.
DATA holds `cifar10`, `imagenette128`, `camvid` and `coco_mini`. `publish` copies what belongs into `runs/evidence`:
settings, environment, rows and results, neither weights nor pictures. `evidence_tables.py` makes tables from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mst
from mst.config.load import override
from mst.config.schema import RunConfig
from mst.errors import UsageError
from mst.evaluate.objectness.evaluation import ObjectnessProtocol
from mst.evaluate.segmentation.evaluation import SegmentationProtocol
from mst.recipes import base_config
from mst.recipes.ablations import FAMILIES
from mst.recipes.variants import FIXED
from mst.runtime.storage.results import Result
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.objectness import ObjectOptions
from mst.workflows.evaluation.segmentation import SegmentationOptions

ARMS = {twin.name: twin for twin in (*FAMILIES["evidence"], *FAMILIES["heads"], FIXED) if not twin.name.endswith("bn")}
"""The recipe has BatchNorm in the head: `mst` and `dino` stand for the twins that end in bn."""
PUBLISHED = Path(__file__).resolve().parent.parent / "runs" / "evidence"
TRAINING = ("config.json", "plan.json", "environment.json", "metrics.jsonl")
"""What describes a training: published once, whatever is measured later."""
KEPT = (*TRAINING, "results.jsonl", "evidence.json")
SCENES = "scenes:300"
EVALUATIONS = ("knn", "linear", "camvid", "coco_mini", "scenes")
LATER = {"coco_mini": "pointing", "scenes": "pointing"}
"""Evaluation -> a metric that it got after the first runs; without it, it is done again."""
HELD_OUT = 256
"""Images that no run learns from, for scores without labels."""


@dataclass(frozen=True)
class DataSet:
    """What the arms of a set have in common.

    Attributes:
        folder: name below --data, with `train/` and the folder of the validation images.
        changes: of the recipe `vit-tiny-cifar10`.
        dense: (H, W) at which street scenes are segmented.
        objects: (H, W) at which objectness is measured.
    """

    folder: str
    changes: Mapping[str, object]
    dense: tuple[int, int]
    objects: tuple[int, int]


SETS = {
    "cifar10": DataSet("cifar10", {"train.epochs": 4}, (176, 240), (96, 96)),
    "imagenette64": DataSet(
        "imagenette128",
        {
            "train.epochs": 6,
            "views.global_size": 64,
            "views.local_size": 32,
            "model.patch_size": 8,
            "views.mean": [0.485, 0.456, 0.406],
            "views.std": [0.229, 0.224, 0.225],
        },
        (352, 480),
        (192, 192),
    ),
}


def settings(arm: str, seed: int, which: DataSet, data: Path) -> RunConfig:
    """Return the configuration of a run."""
    base = override(base_config("vit-tiny-cifar10"), which.changes)
    folder = str((data / which.folder / "train").absolute())
    common = {"runtime.seed": seed, "runtime.threads": 1, "data.train": [folder], "monitor.tensorboard": False}
    return override(ARMS[arm].apply(base), {**common, "data.held_out": HELD_OUT})


def evaluations(run: Path, which: DataSet, data: Path, seed: int) -> dict[str, Callable[[], Result]]:
    """Return what is measured of a finished run; each adds its row to results.jsonl."""
    labelled, dense = data / which.folder, SegmentationProtocol(size=which.dense)
    objects, quiet = ObjectnessProtocol(size=which.objects), ObjectOptions(picture_limit=0)
    few = SegmentationOptions(picture_limit=0)
    return {
        "knn": lambda: mst.evaluate_knn(run, labelled, seed=seed),
        "linear": lambda: mst.evaluate_linear(run, labelled, seed=seed),
        "camvid": lambda: mst.evaluate_segmentation(run, data / "camvid", protocol=dense, options=few, seed=seed),
        "coco_mini": lambda: mst.evaluate_objectness(run, data / "coco_mini", protocol=objects, objects=quiet),
        "scenes": lambda: mst.evaluate_objectness(run, SCENES, objects=quiet),
    }


def is_done(name: str, done: Mapping[str, Any]) -> bool:
    """Whether an evaluation has all its numbers."""
    return name in done and (name not in LATER or LATER[name] in done[name])


def is_complete(done: Mapping[str, Any]) -> bool:
    """Whether all evaluations have all their numbers."""
    return all(is_done(name, done) for name in EVALUATIONS)


def is_published(run: RunDir, options: argparse.Namespace) -> bool:
    """Whether a run has nothing left to do here: all numbers are there, or the weights for the rest are elsewhere."""
    record = PUBLISHED / run.root.relative_to(options.work) / "evidence.json"
    if not record.exists():
        return False
    done = json.loads(record.read_text(encoding="utf-8"))
    return not run.backbone.exists() or is_complete(done)


def finish(run: RunDir, config: RunConfig, which: DataSet, data: Path) -> None:
    """Train and evaluate what is not done yet."""
    record = run.root / "evidence.json"
    if not record.exists():
        mst.pretrain(config, out=run.root, resume=run.exists())
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    for name, measure in evaluations(run.root, which, data, config.runtime.seed).items():
        if not is_done(name, done):
            done[name] = measure().metrics
            record.write_text(json.dumps(done, indent=2) + "\n")


def run_all(options: argparse.Namespace) -> None:
    """Go through all runs, seed by seed."""
    which = SETS[options.set]
    for seed in options.seeds:
        for arm in options.arms:
            run = RunDir(options.work / options.set / arm / f"seed_{seed}")
            if is_published(run, options):
                continue
            try:
                finish(run, settings(arm, seed, which, options.data), which, options.data)
            except UsageError as error:
                if "is in use by" not in str(error):
                    raise
                print(f"{run.root}: {error}", flush=True)


def publish(work: Path, data: Path) -> None:
    """Copy the files that belong to published numbers, their paths shortened."""
    shorter = {f"{work.absolute()}/": "runs/", f"{data.absolute()}/": "data/"}
    for record in sorted(work.glob("*/*/seed_*/evidence.json")):
        if not is_complete(json.loads(record.read_text(encoding="utf-8"))):
            print(f"{record.parent}: not evaluated to the end, left out")
            continue
        into = PUBLISHED / record.parent.relative_to(work)
        into.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if name in TRAINING and (into / name).exists():
                continue
            text = (record.parent / name).read_text(encoding="utf-8")
            for path, short in shorter.items():
                text = text.replace(path, short)
            (into / name).write_text(text, encoding="utf-8")
        which, arm, seed = into.relative_to(PUBLISHED).parts
        words = f"run --set {which} --arms {arm} --seeds {seed.removeprefix('seed_')} --work runs --data data"
        (into / "command").write_text(f"python benchmarks/evidence.py {words}\n", encoding="utf-8")
        print(into)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=["run", "publish"])
    parser.add_argument("--set", choices=SETS, default="cifar10")
    parser.add_argument("--work", type=Path, required=True, help="where the run folders are")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.action == "run":
        run_all(options)
    else:
        publish(options.work, options.data)


if __name__ == "__main__":
    main()
