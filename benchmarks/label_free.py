"""Do scores without labels rank runs as k-NN does? Scores pre-trainings of different quality with and without labels.

    python benchmarks/label_free.py --work DIR [--out FILE.json] [--prefix "nice -n 10"] [--together 4] [--runs RUN ...]

Without --runs, small networks are trained on synthetic scenes, each with another rate, momentum, number of prototypes,
mask, augmentation or length; those that are done are not done again, so the command may be interrupted. With --runs,
finished runs are scored: those of `benchmarks/dynamics.py`, for example, which are led astray on purpose. All answer
the same images. Spearman's rank correlation of each score with the k-NN accuracy goes into one JSON file, with its
deviation over bootstrap samples of the runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from mst.checkpoint.store import CheckpointStore
from mst.config.load import flatten, load_config
from mst.config.schema import RunConfig, RunPlan
from mst.data.synthetic.scenes import write_scene_folder
from mst.data.value_range import BY_TYPE
from mst.evaluate.classification.baselines import knn_answers
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.model.pair import build_pair
from mst.planning.held_out import crop_pairs, held_out_set
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.train.label_free import label_free_scores

HERE = Path(__file__).resolve().parent
RECIPE = "quickstart"
SCENES = {"train": 1024, "val": 2000}
"""Synthetic scenes that are drawn: to learn from and to compare with, and to score on; scores without labels take some
of the second."""
SETTLED = 5
"""Rows of metrics at the end whose mean is taken for RankMe and the loss."""
SIDE = 40
RATE = 1e-3
BASE: dict[str, object] = {
    "views.global-size": 32,
    "views.local-size": 16,
    "views.local-crops": 2,
    "model.embed-dim": 96,
    "model.depth": 2,
    "model.num-heads": 3,
    "model.init": "xavier_uniform",
    "model.head-hidden": 128,
    "model.head-bottleneck": 64,
    "objective.center-momentum": 0.9,
    "objective.teacher-momentum": 0.98,
    "objective.teacher-momentum-end": 0.998,
    "optimizer.lr": RATE,
    "train.batch-size": 32,
    "train.epochs": 10,
    "monitor.every-steps": 20,
    "checkpoint.every-steps": 1_000_000,
    "checkpoint.keep": 1,
}
"""Settings of all runs that differ from the recipe's: 320 steps, half a minute on one core."""
RUNS: dict[str, dict[str, object]] = {
    "base": {},
    "rate-x10": {"optimizer.lr": RATE * 10},
    "momentum-0.9": {"objective.teacher-momentum": 0.9, "objective.teacher-momentum-end": 0.9},
    "small-crops": {"views.global-scale": (0.05, 0.2), "views.local-scale": (0.05, 0.1)},
    "epochs-20": {"train.epochs": 20},
    "restoration-only": {"objective.distillation-weight": 0},
    "masks-heavy": {"objective.eligible-fraction": 1.0, "objective.mask-probability": 0.9},
    "no-colours": {"views.jitter": 0, "views.blur": (0, 0, 0)},
    "rate-x0.03": {"optimizer.lr": RATE * 0.03},
    "epochs-2": {"train.epochs": 2},
    "prototypes-16": {"model.prototypes": 16},
    "dino": {"objective.strategy": "none", "objective.restoration-weight": 0},
    "teacher-temp-0.1": {"objective.teacher-temp": 0.1, "objective.teacher-temp-start": 0.1},
    "no-head-norm": {"model.head-norm": "none"},
    "patch-16": {"model.patch-size": 16},
    "images-64": {"data.limit": 64, "train.epochs": 160},
    "rate-x3": {"optimizer.lr": RATE * 3},
    "rate-x0.3": {"optimizer.lr": RATE * 0.3},
    "momentum-0.9995": {"objective.teacher-momentum": 0.9995, "objective.teacher-momentum-end": 1.0},
    "prototypes-16384": {"model.prototypes": 16384},
    "restoration-x10": {"objective.restoration-weight": 6},
    "masks-random": {"objective.strategy": "random"},
    "whole-images": {"views.global-scale": (0.9, 1.0), "views.local-crops": 0},
    "no-local-crops": {"views.local-crops": 0},
    "other-seed": {"runtime.seed": 1},
    "no-views": {"views.global-scale": (1, 1), "views.local-crops": 0, "views.jitter": 0, "views.blur": (0, 0, 0)},
}
"""Name -> what is different in that run. In this order, so that also the first ones are of different quality."""
SCORES = ("retrieval_top1", "restore_gain", "rankme", "loss")
"""Numbers that need no labels; the loss stands here because many read it as a score."""
QUALITY = "knn_top1"
DONE = "finished"
"""File in the folder of a run that came to its end."""


def command(name: str, work: Path) -> list[str]:
    """Return the words that start a run."""
    data, folder = work / "scenes", work / name
    settings = {**BASE, **RUNS[name]}
    words = ["--data.train", str(data / "train"), "--out", str(folder)]
    for key, value in settings.items():
        words += [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))]
    flags = ["--monitor.tensorboard", "false", "--continue"]
    return [sys.executable, "-m", "mst", "pretrain", RECIPE, *words, *flags]


def score(folder: Path, labelled: LabelledSets) -> dict[str, float]:
    """Return all numbers of a finished run, and its settings."""
    run = RunDir(folder)
    config = load_config(run.config)
    plan = RunPlan.model_validate_json(run.plan.read_bytes())
    parts = CheckpointStore(run.checkpoints, keep=1).load_latest().parts
    pair = build_pair(config.model, plan, channels=3, restoration="decoder" in parts, seed=0)
    modules = {"student": pair.student, "teacher": pair.teacher, "decoder": pair.decoder}
    for name, module in modules.items():
        if module is not None:
            module.load_state_dict(parts[name])
    transform = ImageTransform(plan.global_size, plan.mean, plan.std)
    quiet = FeatureSettings(progress=False, precision="fp32")
    found = {QUALITY: knn_answers(pair.teacher.backbone, labelled, transform, neighbors=20, settings=quiet).percent}
    pairs = crop_pairs(held_out_set(None, labelled, channels=3, scale=BY_TYPE), plan.global_size)
    assert pairs is not None
    restores = pair.decoder is not None and config.objective.strategy != "none"
    given = {"mean": plan.mean, "std": plan.std, "dtype": torch.float32}
    found |= label_free_scores(pair, pairs, restores=restores, **given)  # type: ignore[arg-type]
    rows = read_jsonl(run.metrics)
    for key in ("rankme", "loss"):
        last = [row[key] for row in rows if row.get(key) is not None][-SETTLED:]
        found[key] = statistics.mean(last)
    return found


def draw_scenes(work: Path) -> None:
    """Draw the images, where that was not done yet."""
    folder = work / "scenes"
    if not folder.exists():
        write_scene_folder(work / "drawing", SCENES, (SIDE, SIDE), 0)
        (work / "drawing").rename(folder)


def do_run(name: str, work: Path) -> None:
    """Do a run, or what is missing of it."""
    source = os.pathsep.join(filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(command(name, work), env=environment, check=False, capture_output=True)
    if done.returncode:
        print(f"{name}: failed ({done.returncode}): {done.stderr.decode(errors='replace')[-300:]}", flush=True)
    else:
        (work / name / DONE).touch()


def do_runs(args: argparse.Namespace) -> list[Path]:
    """Do what is missing, some runs in each process; return the folders of all runs that came to their end."""
    missing = [name for name in RUNS if not (args.work / name / DONE).is_file()]
    for start in range(0, len(missing), args.together):
        names = missing[start : start + args.together]
        words = [sys.executable, str(Path(__file__).resolve()), "--work", str(args.work)]
        subprocess.run([*shlex.split(args.prefix), *words, "--only", *names], check=False)
    return [args.work / name for name in RUNS if (args.work / name / DONE).is_file()]


def score_all(folders: Sequence[Path], work: Path) -> dict[str, dict[str, Any]]:
    """Return numbers and settings of runs by a short name; those that were scored before are read from a file."""
    labelled = LabelledSets.from_folder(work / "scenes", channels=3)
    found = {}
    for folder in folders:
        name = folder.name if folder.parent == work else f"{folder.parent.name}/{folder.name}"
        kept = work / "scores" / f"{name.replace('/', ' ')}.json"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps({"scores": score(folder, labelled), "settings": settings(folder)}) + "\n")
        found[name] = json.loads(kept.read_text())
        print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in found[name]['scores'].items())}", flush=True)
    return found


def settings(folder: Path) -> dict[str, Any]:
    """Return a run's settings that differ from the defaults, but for places and machine."""
    usual, own = (flatten(each) for each in (RunConfig(), load_config(RunDir(folder).config)))
    left_out = ("data.train", "monitor.", "runtime.", "checkpoint.", "recipe")
    return {key: value for key, value in own.items() if value != usual[key] and not key.startswith(left_out)}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; nan where one side is constant."""
    if min(len(set(first)), len(set(second))) < 2:
        return math.nan
    return float(spearmanr(first, second).statistic)


def correlations(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for each score, its correlation with k-NN, the deviation of that over bootstrap samples, and the runs."""
    table = {}
    for score in SCORES:
        every = [row["scores"] for row in runs.values()]
        both = [(row[score], row[QUALITY]) for row in every if score in row]
        if len(both) < 3:
            continue
        draw = np.random.default_rng(0)
        samples = [[both[i] for i in draw.integers(len(both), size=len(both))] for _ in range(1000)]
        again = [rho for rho in (spearman(*zip(*sample, strict=True)) for sample in samples) if not math.isnan(rho)]
        rho = spearman(*zip(*both, strict=True))
        table[score] = {"rho": round(rho, 3), "rho_se": round(statistics.stdev(again), 3), "runs": len(both)}
    return table


def main() -> None:
    """Do the runs, write the JSON, print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "label_free.json")
    parser.add_argument("--prefix", default="", help="words before each run's command")
    parser.add_argument("--together", type=int, default=1, help="runs that one such command does, one after another")
    parser.add_argument("--runs", type=Path, nargs="+", help="score these finished runs, and train none")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), help="do these runs, and write no file of results")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the run ends with this process, and saves
        for name in args.only:
            do_run(name, args.work)
        return
    draw_scenes(args.work)
    runs = score_all(args.runs or do_runs(args), args.work)
    table = correlations(runs)
    content = {
        "data": f"synthetic scenes, {SIDE} px",
        "scenes": SCENES,
        "recipe": RECIPE,
        "base": BASE,
        "changes": RUNS,
    }
    content |= {"correlation_with_knn": table, "runs": runs}
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for score, row in table.items():
        print(f"{score}: rho {row['rho']:.2f} (± {row['rho_se']:.2f}) with k-NN, {row['runs']} runs")


if __name__ == "__main__":
    main()
