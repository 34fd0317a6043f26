"""Quality per hour: k-NN curves of mst and of lightly-train's DINO in the same time on one core, from the same images.

    python benchmarks/quality_per_hour.py train mst --data LABELLED --out OUT [--minutes 30] [--seed 0]
    python benchmarks/quality_per_hour.py train lightly-as-mst --python OTHER/bin/python --data LABELLED --out OUT
    python benchmarks/quality_per_hour.py knn --data LABELLED --out OUT
    python benchmarks/quality_per_hour.py table --out OUT [--json FILE]

LABELLED holds train/<class>/ and test/<class>/ (CIFAR-10); training sees the first as a folder of images. OTHER is an
environment with lightly-train and timm, which this project does not need otherwise: `python3 -m venv OTHER &&
OTHER/bin/pip install lightly-train timm`. Give each `train` a core (`taskset -c 0`) and nothing else to do; two on two
cores may run side by side. Contenders:

    mst              recipe vit-tiny-cifar10
    mst-dino         the same without masking and restoration
    lightly          DINO by lightly-train, its own values for all but network, crop sizes, number of crops, batch
    lightly-adamw    the same with AdamW in place of its SGD
    lightly-as-mst   DINO by lightly-train with the recipe's values, wherever it has a setting for them

First some steps are timed, which says how many fit into the time; the schedules of a run have that length. Weights are
saved ten times a run, and scored afterwards by one code: k-NN of the CLS token and of the mean of the patch tokens.
What is done is not done again; a training that was cut off starts anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from own_images import Row, kept, link
from quality_settings import CONTENDERS, LIGHTLY, RECIPES, recipe_config, settings_of, spec_of

HERE = Path(__file__).resolve().parent
POINTS = 10
"""Times at which weights are saved, evenly over the time that was asked for."""
PACE_SECONDS = 60.0
QUIET = {
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "LIGHTLY_TRAIN_POSTHOG_KEY": "",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Switches off what lightly-train and its parts would tell or ask others; the worker refuses connections besides."""
ALIKE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",  # this folder has a cuda.py and a features.py, which other packages may look for
}
"""What both trainers are started with: one thread, and no modules but those of their environment."""
SUFFIXES = {".jpg", ".jpeg", ".png"}
NO_LIGHTLY = (
    "{python} cannot import lightly_train and timm: name the python of an environment that has them with --python "
    "(python3 -m venv OTHER && OTHER/bin/pip install lightly-train timm)"
)


@dataclass(frozen=True)
class Job:
    """One contender's training.

    Attributes:
        contender: its name.
        python: of the environment with lightly-train.
        images: folder to train on.
        count: images in it.
        cell: folder of what comes of it.
        minutes: how long the training may take.
        seed: of all draws.
    """

    contender: str
    python: str
    images: Path
    count: int
    cell: Path
    minutes: float
    seed: int


def image_folder(labelled: Path, out: Path, limit: int | None) -> tuple[Path, int]:
    """Return the folder of training images and their number; with a limit, a folder of links to evenly drawn ones."""
    source = (labelled / "train").resolve()
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{source} has no JPEG or PNG below it")
    if limit is None or limit >= len(found):
        return source, len(found)
    folder = out / f"images-{limit}"
    for place in range(limit):
        path = found[place * len(found) // limit]
        link(path, folder / path.relative_to(source))
    return folder.resolve(), limit


def check_environment(python: str) -> None:
    """Refuse an environment without lightly-train."""
    question = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('lightly_train', 'timm'))))"
    try:
        done = subprocess.run([python, "-c", question], capture_output=True, check=False).returncode
    except OSError:
        done = 1
    if done:
        raise SystemExit(NO_LIGHTLY.format(python=python))


def first_weights(job: Job) -> Path:
    """Return a file with the recipe's weights before training."""
    import torch

    from mst.model.build import build_backbone

    path = job.cell / "start.pt"
    config = recipe_config("mst", str(job.images), steps=1, count=job.count, seed=job.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(build_backbone(spec_of(config), seed=job.seed, init=config.model.init).timm_state_dict(), path)
    return path


def work(job: Job, folder: Path, steps: int, *, times: Sequence[float] = (), limit: float | None = None) -> Row:
    """Train in a process of its own; return its report with the processor time of all that it started."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = str(first_weights(job).resolve())
    told = settings_of(job.contender, str(job.images), start, steps=steps, count=job.count, seed=job.seed)
    told |= {"folder": str(folder.resolve()), "times": list(times), "limit": limit}
    file = folder / "settings.json"
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    ours = job.contender in RECIPES
    paths = {"PYTHONPATH": str(HERE.parent / "src")} if ours else {"LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache")}
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable if ours else job.python, str(HERE / "quality_workers.py"), str(file.resolve())]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command, env={**outside, **paths, **QUIET, **ALIKE}, stdout=output, stderr=output, check=False
        )
    report = folder / "trained.json"
    if done.returncode or not report.exists():
        raise SystemExit(f"{job.contender} ended with status {done.returncode}: see {folder / 'output.txt'}")
    after, found = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(report.read_text(encoding="utf-8"))
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "whole_seconds": time.perf_counter() - began, "processor_seconds": used}


def pace(job: Job) -> Row:
    """Return the seconds of a step, of a training that is ended after a while."""
    found = work(job, job.cell / "pace", 10**5, limit=min(PACE_SECONDS, 20 * job.minutes))
    shutil.rmtree(job.cell / "pace")
    return {"seconds_of_step": found["seconds"] / max(1, found["steps"] - 1), "steps": found["steps"]}


def train(job: Job, steps: int | None) -> None:
    """Train a contender for about so many minutes, unless that was done."""
    from machine import machine

    if job.contender in LIGHTLY:
        check_environment(job.python)
    seconds = 60 * job.minutes
    times = [seconds * (point + 1) / POINTS for point in range(POINTS)]

    def run() -> Row:
        known: Row = {} if steps is not None else kept(job.cell / "pace.json", lambda: pace(job))
        whole = steps if steps is not None else 1 + round(seconds / known["seconds_of_step"])
        found = work(job, job.cell / "weights", whole, times=times)
        about = {"contender": job.contender, "minutes": job.minutes, "seed": job.seed, "images": job.count}
        return {**about, "planned_steps": whole, "pace": known, "machine": machine(), **found}

    kept(job.cell / "run.json", run)


def score(weights: Path, config: Any, sets: Any, mean: Sequence[float], std: Sequence[float]) -> Row:
    """Return the k-NN accuracy of a file of weights, in percent: by the CLS token, and by the mean of the patches."""
    import torch

    from mst.evaluate.classification.knn import KnnProtocol, knn_accuracy
    from mst.evaluate.common.features import Features, FeatureSettings, extract_features
    from mst.evaluate.common.protocol import ImageTransform
    from mst.model.build import build_backbone

    backbone = build_backbone(spec_of(config))
    backbone.model.load_state_dict(torch.load(weights, weights_only=True))
    transform, protocol = ImageTransform(backbone.spec.image_size, tuple(mean), tuple(std)), KnnProtocol()

    def both(network: Any, images: torch.Tensor) -> torch.Tensor:
        tokens = network.tokens(images, importance=False)
        return torch.stack([tokens.cls_token, tokens.patches.mean(dim=1)], dim=1)  # [B, 2, D]

    settings = FeatureSettings(workers=1, precision="fp32", progress=False)
    parts = [extract_features(backbone, part, transform, both, settings) for part in (sets.train, sets.val)]
    found: Row = {"train_images": len(parts[0].labels), "val_images": len(parts[1].labels)}
    for place, name in enumerate(("cls", "mean")):
        train, val = (
            Features(part.features[:, place].contiguous(), part.labels, part.names, part.positions) for part in parts
        )
        k = protocol.headline
        answers = knn_accuracy(
            train,
            val,
            neighbors=(k,),
            temperature=protocol.temperature,
            num_classes=len(sets.classes),
            device=torch.device("cpu"),
        )
        found |= {name: answers[f"top1_k{k}"], f"{name}_se": answers[f"top1_k{k}_se"]}
    return found


def measure(labelled: Path, out: Path, train_limit: int | None, val_limit: int | None) -> None:
    """Score all weights that have no score yet."""
    import torch

    from mst.evaluate.common.image_sets import LabelledSets
    from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD

    torch.set_num_threads(1)
    config: Any = recipe_config("mst", str(labelled), steps=1, count=1000, seed=0)
    sets = LabelledSets.from_folder(labelled, channels=3, train_limit=train_limit, val_limit=val_limit)
    for cell, run in runs(out):
        own = run["contender"] in {*RECIPES, "lightly-as-mst"}
        mean, std = (config.views.mean, config.views.std) if own else (IMAGENET_MEAN, IMAGENET_STD)
        for row in run["rows"]:
            weights = cell / "weights" / row["file"]
            target = cell / "knn" / f"{weights.stem}.json"
            kept(target, partial(score, weights, config, sets, mean, std))


def runs(out: Path) -> Iterable[tuple[Path, Row]]:
    """Yield folder and report of each finished training."""
    for path in sorted(out.glob("seed_*/*/run.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))


def curve(cell: Path, run: Row) -> list[Row]:
    """Return what was saved in a training, with its scores."""
    rows = []
    for row in run["rows"]:
        scored = cell / "knn" / f"{Path(row['file']).stem}.json"
        if scored.exists():
            rows.append({**row, **json.loads(scored.read_text(encoding="utf-8"))})
    return rows


def summary(out: Path) -> list[Row]:
    """Return all curves, with images a second and the share of a core that the training had."""
    found = []
    for cell, run in runs(out):
        whole = {
            key: run[key] for key in ("contender", "seed", "minutes", "images", "steps", "planned_steps", "seconds")
        }
        timed = run["rows"][-1]["images"] * (1 - 1 / run["steps"])  # the clock starts at the end of the first step
        whole["images_per_second"] = timed / run["seconds"] if run["seconds"] else math.nan
        whole["core_share"] = run["processor_seconds"] / run["whole_seconds"]
        more = {
            key: run[key] for key in ("startup_seconds", "peak_memory_gb", "network_refused", "versions", "machine")
        }
        found.append({**whole, **more, "curve": curve(cell, run)})
    return found


def minutes_until(points: Sequence[Row], feature: str, wanted: float) -> float | None:
    """Return the minutes after which a curve first reaches an accuracy, on straight lines between its points."""
    for before, after in itertools.pairwise(points):
        if after[feature] >= wanted > before[feature]:
            share = (wanted - before[feature]) / (after[feature] - before[feature])
            return float(before["seconds"] + share * (after["seconds"] - before["seconds"])) / 60
    return 0.0 if points and points[0][feature] >= wanted else None


def table(found: Sequence[Row]) -> str:
    """Return all curves as lines, and how soon each contender is as good as each other one in the end."""
    lines = [f"{'contender':15} seed minutes  steps   images  k-NN CLS +- se   k-NN mean +- se"]
    for run in found:
        lines += [
            f"{run['contender']:15} {run['seed']:4} {row['seconds'] / 60:7.2f} {row['steps']:6} {row['images']:8}  "
            f"{row['cls']:6.2f} +- {row['cls_se']:.2f}   {row['mean']:6.2f} +- {row['mean_se']:.2f}"
            for row in run["curve"]
        ]
        lines.append(f"{'':20} {run['images_per_second']:.1f} images/s, {run['core_share']:.2f} of a core")
    best = {(run["contender"], run["seed"]): best_feature(run["curve"]) for run in found if run["curve"]}
    for run in found:
        for other in found:
            names = [(each["contender"], each["seed"]) for each in (run, other)]
            if run is other or run["seed"] != other["seed"] or not all(name in best for name in names):
                continue
            feature, wanted = best[names[0]], other["curve"][-1][best[names[1]]]
            needed = minutes_until(run["curve"], feature, wanted)
            when = "not reached" if needed is None else f"{needed:.1f} minutes"
            lines.append(f"seed {run['seed']}: {names[0][0]} at {names[1][0]}'s last {wanted:.2f}: {when}")
    return "\n".join(lines)


def best_feature(points: Sequence[Row]) -> str:
    """Return the feature, cls or mean, that is better at the end."""
    return max(("cls", "mean"), key=lambda name: float(points[-1][name]))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["train", "knn", "table"])
    parser.add_argument("contender", nargs="?", choices=CONTENDERS)
    parser.add_argument("--python", default="python3", help="python of an environment with lightly-train and timm")
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on so many images only, for a rehearsal")
    parser.add_argument("--steps", type=int, help="of the whole training, in place of what is timed, for a rehearsal")
    parser.add_argument("--train-limit", type=int, default=10_000, help="training images that k-NN compares with")
    parser.add_argument("--val-limit", type=int, help="images that k-NN classifies (all)")
    parser.add_argument("--json", type=Path, help="write all curves here")
    options = parser.parse_args(argv)
    if (options.task == "train") != (options.contender is not None):
        parser.error("train needs the name of a contender, knn and table take none")
    if options.task != "table" and options.data is None:
        parser.error("--data is needed: the folder with train/<class>/ and test/<class>/")
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parsed(argv)
    if options.task == "train":
        images, count = image_folder(options.data, options.out, options.limit)
        cell = options.out / f"seed_{options.seed}" / options.contender
        job = Job(options.contender, options.python, images, count, cell, options.minutes, options.seed)
        train(job, options.steps)
        return 0
    if options.task == "knn":
        measure(options.data, options.out, options.train_limit, options.val_limit)
    found = summary(options.out)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
