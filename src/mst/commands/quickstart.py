"""`mst quickstart`: make scenes, pre-train on them, measure the network before and after, write the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mst.config.schema import RunConfig
from mst.paths import PathText, user_path
from mst.recipes.quickstart import QUICKSTART
from mst.runtime.rundir import RunDir, create_run_dir

if TYPE_CHECKING:
    from mst.evaluate.segmentation_data import SegmentationData

SCENES = {"train": 6000, "val": 1000}
"""Scenes of each split. The pre-training sees the images of `train`, never a label."""
SEGMENTATION_SCENES = {"train": 500, "val": 200}
"""Of these, the first that the segmentation probe uses."""
HEADLINES = (("knn", "top1"), ("linear", "top1"), ("patch_segmentation", "miou"))
TITLES = {"knn": "k-NN, top-1", "linear": "linear probe, top-1", "patch_segmentation": "segmentation, mean IoU"}


@dataclass(frozen=True)
class QuickstartOptions:
    """Embedded data, minutes on two CPU cores: pre-train, measure before and after, write report.html.

    Attributes:
        out: new folder of the run; the scenes go to its subfolder data.
        overwrite: delete the run that --out already holds.
        json: one JSON object on stdout at the end.
    """

    out: PathText = "runs/quickstart"
    overwrite: bool = False
    json: bool = False


@dataclass(frozen=True)
class Quickstart:
    """What came out.

    Attributes:
        root: the run folder.
        report: the page.
        before: headline metric of each task for the untrained network, percent.
        after: the same for the trained one.
        seconds: the whole command.
    """

    root: Path
    report: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    seconds: float


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    from mst.commands.tyro_cli import parse_words

    options = parse_words(QuickstartOptions, argv, prog="mst quickstart")
    if options is None:
        return 0
    done = quickstart(options.out, overwrite=options.overwrite)
    _show(done, json=options.json)
    return 0


def quickstart(
    out: str | Path,
    *,
    overwrite: bool = False,
    config: RunConfig = QUICKSTART.config,
    scenes: Mapping[str, int] = SCENES,
) -> Quickstart:
    """Make scenes, pre-train, evaluate the untrained and the trained backbone, and write the report.

    Args:
        out: the run folder.
        overwrite: replace the run that `out` holds.
        config: what to train; images and labels for k-NN while training are set here.
        scenes: how many for `train` and `val`.

    Raises:
        UsageError: `out` cannot be used.
        RunFailure: disk full.
        Interrupted: SIGINT or SIGTERM; `mst pretrain --resume` goes on with the training.
    """
    from mst.commands.pretraining import pretrain  # needs torch
    from mst.config.load import dump_config, override
    from mst.data.synthetic import write_scene_folder
    from mst.report.page import write_report
    from mst.runtime import logging
    from mst.runtime.files import write_atomic

    begin = time.perf_counter()
    run_dir = create_run_dir(user_path(out), overwrite=overwrite)
    data = run_dir.root / "data"
    config = override(config, {"data.train": [str(data / "train")], "monitor.knn_data": str(data)})
    write_atomic(run_dir.config, dump_config(config))
    size = config.views.global_size
    logging.info(f"drawing {sum(scenes.values())} scenes of {size} px into {data}")
    write_scene_folder(data, scenes, size, config.runtime.seed)
    pretrain(config, out=run_dir.root, resume=True)  # the folder is new: it starts at step 0
    before, after = (_measure(name, run_dir, config, scenes) for name in (f"random:{run_dir.root}", run_dir.root))
    report = write_report(run_dir)
    return Quickstart(run_dir.root, report, before, after, time.perf_counter() - begin)


def _measure(backbone: str | Path, run_dir: RunDir, config: RunConfig, scenes: Mapping[str, int]) -> dict[str, float]:
    """Run the probes on one backbone, append their rows to the run's results, return their headline metrics."""
    from mst.commands.evaluate import evaluate_knn, evaluate_linear
    from mst.commands.evaluate_segmentation import evaluate_segmentation
    from mst.evaluate.features import FeatureSettings

    settings = FeatureSettings(progress=False)
    seed, data = config.runtime.seed, run_dir.root / "data"
    results = [
        evaluate_knn(backbone, data, settings=settings, out=run_dir.root, seed=seed),
        evaluate_linear(backbone, data, settings=settings, out=run_dir.root, seed=seed),
        evaluate_segmentation(backbone, _segmentation(config, scenes), settings=settings, out=run_dir.root, seed=seed),
    ]
    found = {result.task: result.metrics for result in results}
    return {task: found[task][metric] for task, metric in HEADLINES}


def _segmentation(config: RunConfig, scenes: Mapping[str, int]) -> SegmentationData:
    """Return the first scenes of both splits with their semantic maps."""
    from mst.data.synthetic import SceneSet
    from mst.evaluate.segmentation_data import scene_segmentation

    size, seed = config.views.global_size, config.runtime.seed
    train, val = (min(scenes[split], SEGMENTATION_SCENES[split]) for split in ("train", "val"))
    return scene_segmentation(SceneSet(seed, train, size), SceneSet(seed, val, size, start=scenes["train"]))


def _show(done: Quickstart, *, json: bool) -> None:
    """Write the table and what to do next."""
    from rich.table import Table

    from mst.commands.output import emit, emit_json

    if json:
        emit_json(
            {
                "run": str(done.root),
                "report": str(done.report),
                "before": dict(done.before),
                "after": dict(done.after),
                "seconds": round(done.seconds, 1),
            }
        )
        return
    table = Table(title=f"{done.root}: {done.seconds / 60:.1f} minutes", title_justify="left")
    for column in ("percent", "untrained", "trained", "gain"):
        table.add_column(column, justify="left" if column == "percent" else "right")
    for task, title in TITLES.items():
        before, after = done.before[task], done.after[task]
        table.add_row(title, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}")
    emit(table, *_next_steps(done))


def _next_steps(done: Quickstart) -> list[str]:
    """Return the last lines: what to look at and what to do with images of one's own."""
    return [
        f"open the report:    {done.report}",
        f"use the backbone:   mst embed --backbone {done.root} --data PHOTOS --out features.npz",
        "your own images:    mst plan own-images --data.train PHOTOS",
        "                    mst pretrain own-images --data.train PHOTOS --out runs/mine",
    ]
