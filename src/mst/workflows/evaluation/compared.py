"""The end of an evaluation in one sentence: trained weights against untrained ones and what needs no network.

What they are compared with is taken from the rows beside the new one, or measured where `--compare` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mst.evaluate.classification.baselines import Baseline, simple_baselines
from mst.evaluate.classification.verdict import SIMPLE, UNTRAINED, Measured, Score, judge
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.model.backbone import Backbone
from mst.model.build import untrained_like
from mst.parallel.world import World
from mst.paths import user_source
from mst.report.reading import is_number
from mst.runtime.answers import Answers
from mst.runtime.identity import DataIdentity
from mst.runtime.storage.results import Result, plain_json, read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.inputs import Data, EvaluationInput
from mst.workflows.judged import BASELINE, VERDICT, counted, described, words_for
from mst.workflows.subject import RANDOM, Subject, absolute_source

MEASURES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "logistic": "logistic regression",
    "patch_segmentation": "linear segmentation of patches, mean IoU",
    "segmentation": "segmentation, mean IoU",
}
"""What a sentence calls the number of a task."""
HEADLINES = {"patch_segmentation": "miou", "segmentation": "miou"}
"""The metric that is compared, where it is not `top1`."""


def measured(task: str, metrics: Mapping[str, Any], extra: Mapping[str, Any]) -> Measured | None:
    """Return what a row measured: right or wrong for each image, else a number with its error; None without one."""
    metric = HEADLINES.get(task, "top1")
    answers = Answers.from_row(extra.get("right")) if metric == "top1" else None
    if answers is not None:
        return answers
    value, se, images = metrics.get(metric), metrics.get(f"{metric}_se"), extra.get("val_images")
    if not is_number(value) or not is_number(se) or not isinstance(images, int):
        return None
    return Score(float(value), float(se), images)


def kept(result: Result, subject: Subject) -> dict[str, Measured]:
    """Return what a trained backbone can be compared with, from the rows beside its own.

    Args:
        result: of the trained backbone, with the names of backbone and data.
        subject: the backbone.
    """
    return World.current().from_first(lambda: _kept(result, subject))


def _kept(result: Result, subject: Subject) -> dict[str, Measured]:
    if subject.folder is None:
        return {}
    found: dict[str, Measured] = {}
    mine = plain_json(result.row())
    for row in read_jsonl(RunDir(subject.folder).results):
        parts = [row.get(key) for key in ("protocol", "metrics", "extra", "data_identity")]
        protocol, metrics, extra, identity = (part if isinstance(part, dict) else {} for part in parts)
        if identity.get("digest") != mine["data_identity"]["digest"]:
            continue
        which = _which(row, protocol, mine, subject)
        number = measured(result.task, metrics, extra) if which else None
        if which and number is not None:
            found[which] = number
    return found


def _which(row: Mapping[str, Any], protocol: Mapping[str, Any], mine: Mapping[str, Any], subject: Subject) -> str:
    """Return which of the things to compare with a row of the same images is; "" where it is none."""
    if row.get("task") == BASELINE:
        which = str(protocol.get("which"))
        if mine["task"] in HEADLINES:
            same = protocol == {**mine["protocol"], "which": which, "task": mine["task"]}
        else:
            same = "task" not in protocol and protocol.get("transform") == mine["protocol"].get("transform")
        return which if which in SIMPLE and same else ""
    untrained = row.get("task") == mine["task"] and str(row.get("backbone")).startswith(RANDOM)
    if not untrained or protocol != mine["protocol"] or row.get("seed") != mine["seed"]:
        return ""
    return UNTRAINED if absolute_source(str(row["backbone"])) == absolute_source(RANDOM + subject.name) else ""


def fresh_weights(backbone: Backbone, seed: int) -> Backbone:
    """Return the same network with fresh weights, on the same device."""
    return untrained_like(backbone, seed=seed).to(next(backbone.parameters()).device)


def untrained(given: EvaluationInput[Data], subject: Subject) -> EvaluationInput[Data]:
    """Return what an evaluation is given for the same network with fresh weights; one in memory leaves no row."""
    if isinstance(given.backbone, Backbone):
        return replace(given, backbone=fresh_weights(given.backbone, given.seed), out=None)
    return replace(given, backbone=f"{RANDOM}{user_source(given.backbone)}", out=subject.folder)


@dataclass(frozen=True)
class Missing:
    """How to measure what a trained backbone is compared with, where no rows have it.

    Attributes:
        untrained: evaluates the same network with fresh weights.
        simple: measures what needs no network.
        names: of that.
    """

    untrained: Callable[[], Result]
    simple: Callable[[], Mapping[str, Measured]]
    names: frozenset[str]


def judged(result: Result, subject: Subject, missing: Missing | None) -> Result:
    """Return a trained backbone's row with the verdict on it; a row of fresh weights as it is.

    Args:
        result: with the names of backbone and data.
        subject: the backbone.
        missing: how to measure what no rows have; None = compare with what is there.
    """
    if subject.fresh:
        return result
    others = kept(result, subject)
    if missing is not None and UNTRAINED not in others:
        row = missing.untrained()
        number = measured(row.task, row.metrics, row.extra)
        others |= {} if number is None else {UNTRAINED: number}
    if missing is not None and not missing.names <= others.keys():
        others |= missing.simple()
    return with_verdict(result, others, channels=subject.channels)


def with_verdict(result: Result, others: Mapping[str, Measured], *, channels: int) -> Result:
    """Return a trained backbone's row with the verdict on it; as it is, where there is nothing to compare with."""
    own = measured(result.task, result.metrics, result.extra)
    if own is None or not others:
        return result
    found = judge(own, others, names=words_for(channels), measure=MEASURES[result.task]).to_json()
    told = {key: found[key] for key in ("call", "sentence", "see", "differences")}
    return replace(result, extra={**result.extra, VERDICT: told})


def simple_beside(
    given: EvaluationInput[LabelledSets], subject: Subject, sets: LabelledSets, transform: ImageTransform
) -> dict[str, Measured]:
    """Measure majority class, colour statistics and pixels; their rows go beside those of the backbone."""
    found = simple_baselines(sets, transform, settings=given.settings or FeatureSettings(), seed=given.seed)
    identity = sets.fingerprint()
    for row in baseline_rows(found, sets, transform=transform, seed=given.seed):
        record_beside(row, subject, given.data, identity)
    return {each.which: each.answers for each in found}


def labelled_row(
    task: str,
    protocol: Mapping[str, Any],
    metrics: Mapping[str, float],
    answers: Answers,
    sets: LabelledSets,
    *,
    transform: ImageTransform,
    seed: int,
    **extra: Any,
) -> Result:
    """Return the row of what was measured on labelled images without training a network."""
    used = {**protocol, "transform": asdict(transform)}
    split = {} if sets.split is None else {"split": sets.split.row()}
    return Result(task, dict(metrics), used, seed=seed, extra=counted(sets, answers) | split | extra)


def baseline_rows(
    found: Sequence[Baseline], sets: LabelledSets, *, transform: ImageTransform, seed: int
) -> list[Result]:
    """Return the rows of majority class, colour statistics and pixels."""
    return [
        labelled_row(
            BASELINE,
            {"which": each.which, **described(each)},
            {"top1": each.answers.percent, "top1_se": each.answers.se},
            each.answers,
            sets,
            transform=transform,
            seed=seed,
        )
        for each in found
    ]


def record_beside(row: Result, subject: Subject, data: object, identity: DataIdentity) -> Result:
    """Return the row of something that a backbone is compared with, appended where the backbone's own go."""
    named = replace(subject.named(row, data, identity), backbone=f"{RANDOM}{subject.name}", backbone_sha256="")
    return subject.keep(named)
