"""Pre-training and five evaluations on embedded data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mst.config.schema import RunConfig
from mst.paths import user_path
from mst.recipes.quickstart import QUICKSTART
from mst.runtime.noise import difference_se, is_clear
from mst.runtime.storage.rundir import RunDir, create_run_dir

if TYPE_CHECKING:
    from mst.data.synthetic.scenes import SceneSet
    from mst.evaluate.segmentation.data import SegmentationData
    from mst.runtime.storage.results import Result

SCENES = {"train": 6000, "val": 1000}
"""Scenes of each split. The pre-training sees the images of `train`, never a label."""
DENSE_SCENES = {"train": 500, "val": 200}
"""How many of them, the first ones, the segmentation probe uses; objects are looked for in those of `val`."""
HEADLINES = {
    "knn": ("knn", "top1"),
    "linear": ("linear", "top1"),
    "patch_segmentation": ("patch_segmentation", "miou"),
    "pointing": ("objectness", "pointing"),
    "objectness": ("objectness", "jaccard"),
    "patch_objectness": ("patch_objectness", "jaccard"),
}
"""Name of a number -> (task, metric)."""
TITLES = {
    "knn": "k-NN, top-1",
    "linear": "linear probe, top-1",
    "patch_segmentation": "segmentation, mean IoU",
    "pointing": "most attended patch on an object",
    "objectness": "objects from attention, Jaccard",
    "patch_objectness": "objects from patch tokens, Jaccard",
}
RIVALS = {
    "pointing": {"pointing_centre": "the middle of the image", "mass_inside_even": "a patch at random"},
    "jaccard": {"jaccard_centre": "a box in the middle", "jaccard_colour": "colours alone"},
}
"""Metric -> what needs no network: metric -> its name."""


@dataclass(frozen=True)
class Quickstart:
    """What came out.

    Attributes:
        root: the run folder.
        report: the page.
        before: each number of `HEADLINES` for the untrained network, percent.
        after: the same for the trained one.
        verdicts: whether training helped by each task, in a sentence.
        seconds: the whole command.
    """

    root: Path
    report: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    verdicts: Mapping[str, str]
    seconds: float


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
    from mst.config.load import dump_config, override
    from mst.data.synthetic.scenes import write_scene_folder
    from mst.data.synthetic.styles import MUTED_GROUNDS
    from mst.report.page import write_report
    from mst.runtime import logging
    from mst.runtime.storage.files import write_atomic
    from mst.workflows.pretraining import pretrain

    begin = time.perf_counter()
    run_dir = create_run_dir(user_path(out), overwrite=overwrite)
    data = run_dir.root / "data"
    config = override(config, {"data.train": [str(data / "train")], "monitor.knn_data": str(data)})
    write_atomic(run_dir.config, dump_config(config))
    size = config.views.global_size
    logging.info(f"drawing {sum(scenes.values())} scenes of {size} px into {data}")
    write_scene_folder(data, scenes, size, config.runtime.seed, MUTED_GROUNDS)
    pretrain(config, out=run_dir.root, resume=True)  # the folder is new: it starts at step 0
    fresh, trained = (_measure(name, run_dir, config, scenes) for name in (f"random:{run_dir.root}", run_dir.root))
    before, after = (
        {name: rows[task].metrics[metric] for name, (task, metric) in HEADLINES.items()} for rows in (fresh, trained)
    )
    verdicts = {task: row.extra["verdict"]["sentence"] for task, row in trained.items() if "verdict" in row.extra}
    verdicts |= {
        name: found_objects(TITLES[name], metric, fresh[task].metrics, trained[task].metrics)
        for name, (task, metric) in HEADLINES.items()
        if metric in RIVALS
    }
    report = write_report(run_dir)
    return Quickstart(run_dir.root, report, before, after, verdicts, time.perf_counter() - begin)


def _measure(backbone: str | Path, run_dir: RunDir, config: RunConfig, scenes: Mapping[str, int]) -> dict[str, Result]:
    """Run the probes on one backbone, append their rows to the run's results, return them by task."""
    from mst.evaluate.common.features import FeatureSettings
    from mst.evaluate.objectness.evaluation import TASKS, ObjectnessProtocol
    from mst.evaluate.objectness.objects import scene_objects
    from mst.workflows.evaluation.labelled import evaluate_knn, evaluate_linear
    from mst.workflows.evaluation.objectness import evaluate_objectness
    from mst.workflows.evaluation.segmentation import SegmentationOptions, evaluate_segmentation

    words: dict[str, Any] = {"settings": FeatureSettings(progress=False), "out": run_dir.root}
    words |= {"seed": config.runtime.seed}
    data, options = run_dir.root / "data", SegmentationOptions(compare=True)
    results = [
        evaluate_knn(backbone, data, compare=True, **words),
        evaluate_linear(backbone, data, compare=True, **words),
        evaluate_segmentation(backbone, _segmentation(config, scenes), options=options, **words),
    ]
    objects = scene_objects(_scenes(config, scenes, "val"))
    protocols = [ObjectnessProtocol(method=method) for method in TASKS]
    results += [evaluate_objectness(backbone, objects, protocol=protocol, **words) for protocol in protocols]
    return {result.task: result for result in results}


def found_objects(title: str, metric: str, fresh: Mapping[str, float], trained: Mapping[str, float]) -> str:
    """Return a sentence: a metric of a trained network, and which of its rivals it is clearly above."""
    reached, se = trained[metric], trained[f"{metric}_se"]
    rivals = {"untrained": (fresh[metric], fresh[f"{metric}_se"])}
    rivals |= {name: (trained[of], trained[f"{of}_se"]) for of, name in RIVALS[metric].items() if of in trained}
    said = ", ".join(f"{name} {value:.1f}" for name, (value, _) in rivals.items())
    above = {
        name: value < reached and is_clear(reached - value, difference_se(se, its_se))
        for name, (value, its_se) in rivals.items()
    }
    missed = [name for name, is_above in above.items() if not is_above]
    verdict = f"not clearly above {' and '.join(missed)}" if missed else "clearly above each"
    return f"{title}: {reached:.1f} ± {se:.1f}, {said}: {verdict}"


def _segmentation(config: RunConfig, scenes: Mapping[str, int]) -> SegmentationData:
    """Return the first scenes of both splits with their semantic maps."""
    from mst.evaluate.segmentation.data import scene_segmentation

    return scene_segmentation(_scenes(config, scenes, "train"), _scenes(config, scenes, "val"))


def _scenes(config: RunConfig, scenes: Mapping[str, int], split: str) -> SceneSet:
    """Return the first scenes of a split."""
    from mst.data.synthetic.scenes import SceneSet
    from mst.data.synthetic.styles import MUTED_GROUNDS

    count, start = min(scenes[split], DENSE_SCENES[split]), 0 if split == "train" else scenes["train"]
    return SceneSet(config.runtime.seed, count, config.views.global_size, start, MUTED_GROUNDS)
