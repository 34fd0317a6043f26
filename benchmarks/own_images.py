"""Does `own-images` help in a quarter of an hour? Against untrained weights, colours and the recipe used before.

    python benchmarks/own_images.py SET --seed 0 --data SETS --out OUT [--minutes 15] [--no-previous]
    python benchmarks/own_images.py table --out OUT
    python benchmarks/own_images.py publish --out OUT --to FILE.json --machine "what it ran on"

SET is cifar10 (10,000 training images), imagenette128, elpv, camvid or scenes; one SET and seed a call. SETS holds the
first four as folders: `train/<class>/` and `val/<class>/` (cifar10: `test`), camvid with images/, masks/, train.txt
and val.txt, and elpv as the package elpv-dataset has it (images/ and labels.csv); the scenes are drawn. Of elpv, cells
with a defect probability below 0.3 and from 0.6 on are labelled, a quarter of each class validates, and no validation
image is trained on.

Every step leaves its file in OUT/SET/seed_N and is not done again: the same command goes on where it was cut off.
Standard errors of one run are those of its validation images; the table adds the deviation over seeds. Its second part
says what training gained over the same network untrained. `publish` keeps what the tables and the pages need.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SETS = ("cifar10", "imagenette128", "elpv", "camvid", "scenes")
PREVIOUS = "vit-tiny-cifar10"
METRICS = ("top1", "top1_se", "balanced_accuracy", "balanced_accuracy_se", "auroc", "auroc_se", "miou", "miou_se")
SCENES = {"train": 2_500, "val": 500}
SCENE_SIZE = 48
LIMITS = ("--train-limit", "10000", "--val-limit", "4000")
WHOLE = ("--size", 128, 128, "--resize-ratio", 1, "--pool", "max", "min")
"""How solar cells are read once more: nothing cut off, larger than trained, and by single patches: a crack is small."""
FRAME_TOKENS = 44, 60
"""Patches, down and across, of a frame of camvid that is read: as many for any network."""
Row = dict[str, Any]


def mst(*words: object) -> str:
    """Run a command of mst; return what it prints on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "mst", *map(str, words)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def read(path: Path) -> Row:
    """Return what a file of JSON holds."""
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def kept(path: Path, make: Callable[[], Row]) -> Row:
    """Return what a file holds, or make it and write the file."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    return read(path)


def link(source: Path, target: Path) -> None:
    """Put an image into a folder without copying it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.symlink(source.resolve(), target)


def cells(root: Path, out: Path) -> tuple[Path, Path]:
    """Return the folders of unlabelled and labelled solar cells, made of images/ and labels.csv."""
    unlabelled, labelled = out / "elpv-unlabelled", out / "elpv-labelled"
    done = out / "elpv-done"
    if done.exists():
        return unlabelled, labelled
    text = (root / "labels.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.reader(text.replace(",", " ").splitlines(), delimiter=" ", skipinitialspace=True) if row]
    cells = [(row[0], float(row[1])) for row in rows if row[0].startswith("images/")]
    classes = {
        "functional": sorted(path for path, probability in cells if probability < 0.3),
        "defective": sorted(path for path, probability in cells if probability >= 0.6),
    }
    validating: set[str] = set()
    for name, paths in classes.items():
        random.Random(0).shuffle(paths)
        for place, path in enumerate(paths):
            part = "val" if place < len(paths) // 4 else "train"
            validating |= {path} if part == "val" else set()
            link(root / path, labelled / part / name / Path(path).name)
    for path, _ in cells:
        if path not in validating:
            link(root / path, unlabelled / Path(path).name)
    done.touch()
    return unlabelled, labelled


def scenes(out: Path) -> tuple[Path, Path]:
    """Return the folders of drawn scenes: unlabelled, labelled."""
    from mst.data.synthetic.scenes import write_scene_folder

    folder = out / "scenes-data"
    if not (out / "scenes-done").exists():
        write_scene_folder(folder, SCENES, SCENE_SIZE, 0)
        (out / "scenes-done").touch()
    return folder / "train", folder


def frames(root: Path, out: Path) -> tuple[Path, Path]:
    """Return a list of camvid's training frames, and its folder."""
    names = (root / "train.txt").read_text(encoding="utf-8").split()
    paths = [next(path for path in sorted((root / "images").glob(f"{Path(name).stem}.*"))) for name in names]
    found = out / "camvid-train.txt"
    found.write_text("".join(f"{path.resolve()}\n" for path in paths), encoding="utf-8")
    return found, root


def sources(name: str, root: Path, out: Path) -> tuple[list[str], Path]:
    """Return the words that name the training images, and the labelled folder."""
    made = {"elpv": cells, "camvid": frames}
    if name == "scenes":
        unlabelled, labelled = scenes(out)
    elif name in made:
        unlabelled, labelled = made[name](root / name, out)
    else:
        unlabelled, labelled = root / name / "train", root / name
    limit = ["--data.limit", "10000"] if name == "cifar10" else []
    return ["--data.train", str(unlabelled), *limit], labelled


def train(recipe: str, words: Sequence[str], run: Path, minutes: float, seed: int) -> Row:
    """Pre-train, or go on; return steps, and the time that the steps took."""
    asked = ("--minutes", minutes, "--runtime.seed", seed, "--continue", "--json")
    done: Row = json.loads(mst("pretrain", recipe, *words, "--out", run, *asked))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["self_distillation"] for row in rows if row.get("self_distillation") is not None]
    return {"steps": done["steps"], "first_loss": losses[:1], "last_loss": losses[-1:]}


def scored(backbone: str, labelled: Path, name: str, seed: int) -> Row:
    """Return the metrics of a frozen backbone by task."""
    given = ("--backbone", backbone, "--data", labelled, "--seed", seed, "--json")
    if name == "camvid":
        patch = read(Path(backbone.removeprefix("random:")) / "config.json")["model"]["patch_size"]
        shown = mst("evaluate", "segmentation", *given, "--size", *(side * patch for side in FRAME_TOKENS))
        return {"segmentation": json.loads(shown)["metrics"]}
    words = (*given, "--no-progress", *LIMITS)
    readings = {"knn": ("knn",), "linear": ("linear",)} | ({"whole": ("logistic", *WHOLE)} if name == "elpv" else {})
    return {
        reading: json.loads(mst("evaluate", task, *words, *options))["metrics"]
        for reading, (task, *options) in readings.items()
    }


def measure(name: str, seed: int, root: Path, out: Path, *, minutes: float, previous: bool) -> None:
    """Do what is not done yet of one data set and seed."""
    out.mkdir(parents=True, exist_ok=True)
    words, labelled = sources(name, root, out)
    cell = out / name / f"seed_{seed}"
    run = cell / "run-own"

    def trained(which: str, recipe: str) -> None:
        there = cell / f"run-{which}"
        kept(cell / f"{which}-run.json", lambda: train(recipe, words, there, minutes, seed))
        kept(cell / f"{which}.json", lambda: scored(str(there), labelled, name, seed))

    trained("own", "own-images")
    kept(cell / "untrained.json", lambda: scored(f"random:{run}", labelled, name, seed))
    if name != "camvid":
        asked = ("--data", labelled, "--backbone", run, "--seed", seed, "--json", "--no-progress", *LIMITS)
        kept(cell / "baselines.json", lambda: json.loads(mst("evaluate", "baselines", *asked)))
    if previous:
        trained("previous", PREVIOUS)


def table(out: Path) -> str:
    """Return all that was measured as lines: mean over seeds, standard error of one run, deviation over seeds."""
    lines = [f"{'set':14} {'task':13} {'which':10} seeds  mean    se of one   sd over seeds"]
    for name in SETS:
        found: dict[tuple[str, str], list[Row]] = {}
        for path in sorted(out.glob(f"{name}/seed_*/*.json")):
            rows = json.loads(path.read_text(encoding="utf-8"))
            if path.stem == "baselines":
                for row in rows["rows"]:
                    which = row["protocol"].get("which")
                    found.setdefault(("baseline", str(which)), []).append(row["metrics"])
            elif not path.stem.endswith("-run"):
                for task, metrics in rows.items():
                    found.setdefault((task, path.stem), []).append(metrics)
        for (task, which), metrics in sorted(found.items()):
            key = "miou" if "miou" in metrics[0] else "top1"
            values = [row[key] for row in metrics if key in row]
            if not values:
                continue
            errors = [row[f"{key}_se"] for row in metrics if row.get(f"{key}_se") is not None]
            error = f"{math.sqrt(statistics.mean(each**2 for each in errors)):.2f}" if errors else "-"
            spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
            mean = f"{statistics.mean(values):6.2f}"
            lines.append(f"{name:14} {task:13} {which:10} {len(values):5}  {mean}  {error:>9}   {spread:>6}")
    return "\n".join(lines)


def gains(out: Path) -> str:
    """Return what training gained over untrained weights, in points: the mean over seeds, with two standard errors.

    That of the images belongs to the difference of one run. It is too large: it takes the two networks as scored on
    different images, where they share them. That of the seeds belongs to the mean.
    """
    lines = [f"{'set':14} {'task':13} seeds  gained  se of images  se over seeds  by seed"]
    for name in SETS:
        cells = [
            each.parent
            for each in sorted(out.glob(f"{name}/seed_*/untrained.json"))
            if each.with_name("own.json").exists()
        ]
        both = [[read(cell / f"{which}.json") for which in ("own", "untrained")] for cell in cells]
        for task in sorted(both[0][0] if both else ()):
            key = "miou" if task == "segmentation" else "top1"
            pairs = [(own[task], fresh[task]) for own, fresh in both]
            gained = [own[key] - fresh[key] for own, fresh in pairs]
            errors = [row.get(f"{key}_se") or math.nan for pair in pairs for row in pair]
            images = math.sqrt(2 * statistics.mean(each**2 for each in errors))
            spread = f"{statistics.stdev(gained) / math.sqrt(len(gained)):.2f}" if len(gained) > 1 else "-"
            each = " ".join(f"{value:+.2f}" for value in gained)
            mean = f"{statistics.mean(gained):+7.2f}"
            lines.append(f"{name:14} {task:13} {len(gained):5} {mean}  {images:12.2f}  {spread:>13}  {each}")
    return "\n".join(lines)


def seen(cell: Path, which: str) -> Row:
    """Return a run's side of crops, and its steps, images of a step and images seen."""
    config, steps = read(cell / f"run-{which}" / "config.json"), read(cell / f"{which}-run.json")["steps"]
    batch = config["train"]["batch_size"]
    return {"side": config["views"]["global_size"], "steps": steps, "batch": batch, "seen": steps * batch}


def published(cell: Path) -> Row:
    """Return what is published of a cell: what was chosen and seen, scores without their variants, the verdict."""
    rows = [json.loads(line) for line in (cell / "run-own" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [round(row["retrieval_top1"], 1) for row in rows if "retrieval_top1" in row]
    told: Row = {"seed": read(cell / "run-own" / "config.json")["runtime"]["seed"], **seen(cell, "own")}
    told |= {"retrieval": [found[0], found[-1]], "repairs": max((row.get("repairs") or 0 for row in rows), default=0)}
    if (cell / "previous.json").exists():
        told["previous_run"] = seen(cell, "previous")
    for which in ("own", "untrained", "previous"):
        if (cell / f"{which}.json").exists():
            scores = read(cell / f"{which}.json")
            told[which] = {
                task: {key: round(row[key], 3) for key in METRICS if key in row} for task, row in scores.items()
            }
    if (cell / "baselines.json").exists():
        baselines = read(cell / "baselines.json")["rows"]
        simple = {row["protocol"].get("which"): row["metrics"] for row in baselines if row["task"] == "baseline"}
        told["baselines"] = {name: {key: round(row[key], 3) for key in METRICS[:2]} for name, row in simple.items()}
        told["verdict"] = next(row["extra"]["sentence"] for row in baselines if row["task"] == "verdict")
    return told


def publish(out: Path, into: Path, machine: str) -> None:
    """Write all cells to one file."""
    cells = [cell.parent for name in SETS for cell in sorted(out.glob(f"{name}/seed_*/untrained.json"))]
    about = [read(cell / "run-own" / "environment.json") for cell in cells]
    named = ("commit", "torch", "timm", "precision", "threads")
    what = {"machine": machine, **{key: sorted({str(each[key]) for each in about}) for key in named}}
    sets = {name: [published(cell) for cell in cells if cell.parent.name == name] for name in SETS}
    into.write_text(json.dumps({"what": what, "sets": sets}, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*SETS, "table", "publish"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--no-previous", action="store_true", help="leave out the recipe used before")
    parser.add_argument("--to", type=Path, help="of `publish`: the file")
    parser.add_argument("--machine", default="", help="of `publish`: the machine in words")
    options = parser.parse_args(argv)
    if options.set == "publish":
        publish(options.out, options.to or parser.error("publish: --to FILE.json is missing"), options.machine)
    elif options.set != "table":
        measure(
            options.set,
            options.seed,
            options.data,
            options.out,
            minutes=options.minutes,
            previous=not options.no_previous,
        )
    print(f"{table(options.out)}\n\n{gains(options.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
