"""Pre-trainings that are led astray on purpose, and healthy ones: what the guards find, how soon, and what repair does.

    python benchmarks/dynamics.py --work DIR [--only NAME ...] [--out benchmarks/results/dynamics.json]
    python benchmarks/dynamics.py --work OTHER --images CIFAR10 --seed 7 --until 0.25 --modes warn
    python benchmarks/dynamics.py --work THIRD --center 0 --modes repair

Each run is 192 steps of a ViT of two blocks on 1,024 synthetic scenes of 32 px: half a minute on one core. A run whose
folder in DIR is finished is not repeated. Every case is run twice: `warn` only looks, `repair` intervenes.
With `--images` and `--seed` the same is provoked on other images by other draws, where no limit was chosen; `--until`
ends provoked runs at a share of their steps: enough to see when they are found. `--center` is the center's momentum of
all cases but the one that provokes with it: 0.9 is DINO's, 0 what `own-images` takes for small networks.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mst.config.load import override
from mst.data.sources import even_positions
from mst.data.synthetic.scenes import write_scene_folder
from mst.errors import StopTraining
from mst.recipes import base_config
from mst.report.reading import read_run
from mst.runtime.dynamics.detectors import findings
from mst.runtime.dynamics.records import WINDOW
from mst.runtime.dynamics.repair import read_repairs
from mst.runtime.dynamics.series import Series
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows.callbacks import Callback
from mst.workflows.pretraining import pretrain

IMAGES, VALIDATION, SIDE = 1024, 500, 40
BASE: dict[str, Any] = {
    "data.held_out": 0,
    "views.global_size": 32,
    "views.local_size": 16,
    "views.local_crops": 2,
    "views.local_scale": [0.2, 0.5],
    "views.grey": 0.0,
    "views.solarize": 0.0,
    "model.backbone": "vit_tiny_patch16_224",
    "model.patch_size": 8,
    "model.embed_dim": 64,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.drop_path": 0.0,
    "model.init": "xavier_uniform",
    "model.head_hidden": 128,
    "model.head_bottleneck": 64,
    "model.prototypes": 1024,
    "objective.teacher_temp": 0.03,
    "objective.teacher_momentum": 0.97,
    "objective.teacher_momentum_end": 0.99,
    "optimizer.lr": 1e-3,
    "train.batch_size": 32,
    "train.epochs": 6,
    "checkpoint.every_steps": 20,
    "monitor.every_steps": 2,
    "monitor.knn_every_steps": 96,
    "monitor.tensorboard": False,
    "runtime.threads": 1,
    "runtime.workers": 0,
    "runtime.precision": "fp32",
}
CASES: dict[str, dict[str, Any]] = {
    "rate x10": {"optimizer.lr": 1e-2},
    "rate x30, no warm-up": {"optimizer.lr": 3e-2, "schedule.warmup_epochs": 0.0},
    "no clip, rate x30": {"optimizer.clip": None, "optimizer.lr": 3e-2},
    "momentum 0.9": {"objective.teacher_momentum": 0.9, "objective.teacher_momentum_end": 0.9},
    "momentum 0": {"objective.teacher_momentum": 0.0, "objective.teacher_momentum_end": 0.0},
    "teacher temperature 0.1": {"objective.teacher_temp": 0.1, "objective.teacher_temp_start": 0.1},
    "center stands still": {"objective.center_momentum": 0.999999},
    "K 65,536": {"model.prototypes": 65536},
    "one image": {"images": 1},
    "two images": {"images": 2},
    "all masked": {
        "objective.strategy": "random",
        "objective.eligible_fraction": 1.0,
        "objective.mask_probability": 1.0,
    },
    "no restoration": {"objective.restoration_weight": 1e-6},
    "views alike": {
        "views.global_scale": [1.0, 1.0],
        "views.local_scale": [1.0, 1.0],
        "views.jitter": 0.0,
        "views.blur": [0.0, 0.0, 0.0],
        "views.flip": 0.0,
    },
}
HEALTHY: dict[str, dict[str, Any]] = {
    "healthy, seed 0": {},
    "healthy, seed 1": {"runtime.seed": 1},
    "healthy, rate / 3": {"optimizer.lr": 3e-4},
    "healthy, BatchNorm": {"model.head_norm": "batch"},
    "healthy, DINO": {"objective.strategy": "none", "objective.restoration_weight": 0.0},
    "healthy, temperature 0.04": {"objective.teacher_temp": 0.04},
}


def images(work: Path, distinct: int) -> Path:
    """Return a folder of `train/` and `val/` scenes; of few distinct ones, each as often as makes `IMAGES`.

    Where `given` was called, they are of that folder.
    """
    folder = work / "data" / ("scenes" if distinct == IMAGES else f"few_{distinct}")
    if not folder.exists():
        if distinct == IMAGES:
            write_scene_folder(folder, {"train": IMAGES, "val": VALIDATION}, size=SIDE)
            shutil.rmtree(folder / "masks")
        else:
            files = sorted((images(work, IMAGES) / "train").rglob("*.png"))
            (folder / "train").mkdir(parents=True)
            for number in range(IMAGES):
                source = files[(number % distinct) * (len(files) // distinct)]
                shutil.copy(source, folder / "train" / f"{number:05d}.png")
    return folder


def given(work: Path, source: Path) -> None:
    """Take `IMAGES` and `VALIDATION` images of a folder with `train/` and `val/` (or `test/`) instead of scenes."""
    folder = work / "data" / "scenes"
    if folder.exists():
        return
    scored = source / "val" if (source / "val").is_dir() else source / "test"
    for part, files, count in (("train", source / "train", IMAGES), ("val", scored, VALIDATION)):
        found = sorted(path for path in files.rglob("*") if path.is_file())
        for position in even_positions(len(found), count).tolist():
            target = folder / part / found[position].relative_to(files).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(found[position]) as image:
                image.convert("RGB").save(target)


class Until(Callback):
    """Ends a run at a share of its steps."""

    def __init__(self, share: float) -> None:
        self._share, self._total = share, 0

    def on_start(self, folder: Path, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Note how many steps there are."""
        self._total = plan["total_steps"]

    def on_row(self, row: Mapping[str, Any]) -> None:
        """End the run, or not."""
        if row["step"] >= self._share * self._total:
            raise StopTraining("far enough")


def place(work: Path, name: str, mode: str) -> Path:
    """Return the folder of a run."""
    return work / mode / name.replace(" ", "-").replace(",", "").replace("/", "by")


def run(
    work: Path,
    name: str,
    changes: dict[str, Any],
    mode: str,
    *,
    seed: int = 0,
    until: float = 1.0,
    center: float = 0.9,
) -> Path:
    """Do one run, unless it is finished; return its folder.

    Args:
        work: where runs lie.
        name, changes: of the case.
        mode: `warn` or `repair`.
        seed: added to that of the case.
        until: share of the steps that are done.
        center: momentum of the center, unless the case sets it.
    """
    out = place(work, name, mode)
    if (out / "finished").exists():
        return out
    changes = dict(changes)
    data = {
        "data.train": [str(images(work, changes.pop("images", IMAGES)) / "train")],
        "monitor.knn_data": str(images(work, IMAGES)),
        "monitor.dynamics": mode,
        "runtime.seed": changes.pop("runtime.seed", 0) + seed,
    }
    config = override(base_config("own-images"), {**BASE, "objective.center_momentum": center, **changes, **data})
    with suppress(StopTraining):
        pretrain(config, out, overwrite=True, callbacks=[Until(until)] if until < 1 else [])
    (out / "finished").touch()
    return out


def figures(folder: Path) -> dict[str, Any]:
    """Return what the guards found in a run, and how it ended."""
    records = read_run(RunDir(folder))
    total = records.plan["total_steps"]
    found = findings(records.metrics, records.config, records.plan)
    knn = [value for _, value in records.column("knn_top1")]
    return {
        "found": [
            {"kind": each.kind, "began": each.began / total, "found": each.found / total, "ended": each.ended}
            for each in found
        ],
        "by_rows": min((each.found / total for each in found if each.found), default=None),
        "repairs": [
            {"kind": each.kind, "found": each.found / total, "back": each.back / total, "moved": each.words}
            for each in read_repairs(RunDir(folder))
        ],
        "stands": [each.kind for each in found if each.ended is None],
        "knn": knn[-1] if knn else None,
        "untrained": knn[0] if knn else None,
        "self_distillation": records.last("self_distillation"),
        "prototypes_used": records.last("marginal_entropy"),
    }


WATCHED = (
    *("self_distillation", "teacher_entropy", "marginal_entropy", "feature_std", "rankme"),
    *("masked_share", "psnr_masked"),
)
MARGIN, TOGETHER = 0.1, 3
"""Of the healthy runs' range at a step, by which a number may lie beside it; rows in succession that do not."""


def onset(folder: Path, healthy: list[Path]) -> float | None:
    """Return the share of the run at which one of its numbers leaves the range of all healthy runs, means over 3 %.

    It knows nothing of the guards' limits: the delay of a finding is counted from here.
    """
    runs = [Series(_rows(each), _total(each)) for each in (folder, *healthy)]
    first: list[float] = []
    for key in WATCHED:
        own, *others = [each.mean(each.column(key), WINDOW) for each in runs]
        others = [each for each in others if len(each) == len(own) and np.isfinite(each).any()]
        if not others:
            continue
        low, high = np.nanmin(others, axis=0), np.nanmax(others, axis=0)
        room = MARGIN * (high - low)
        beside = (own < low - room) | (own > high + room)
        together = np.convolve(beside, np.ones(TOGETHER), mode="valid") == TOGETHER
        first += [float(runs[0].steps[place]) / runs[0].total for place in np.flatnonzero(together)[:1]]
    return min(first, default=None)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / "metrics.jsonl") if "teacher_entropy" in row]


def _total(folder: Path) -> int:
    return int(json.loads((folder / "plan.json").read_text())["total_steps"])


def main() -> None:
    """Run what was asked for, one after the other, and write the figures of all that is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--modes", nargs="*", default=["warn", "repair"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=1.0)
    parser.add_argument("--center", type=float, default=0.9)
    args = parser.parse_args()
    if args.images is not None:
        given(args.work, args.images)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, changes in {**HEALTHY, **CASES}.items():
        for mode in args.modes:
            if args.only is None or name in args.only:
                until = args.until if name in CASES else 1.0
                folder = run(args.work, name, changes, mode, seed=args.seed, until=until, center=args.center)
                results[f"{name} / {mode}"] = figures(folder)
                if name in CASES and mode == "warn":
                    others = [place(args.work, other, "warn") for other in HEALTHY]
                    seen = [other for other in others if (other / "finished").exists()]
                    results[f"{name} / {mode}"]["onset"] = onset(folder, seen) if seen else None
                print(name, mode, json.dumps(results[f"{name} / {mode}"]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
