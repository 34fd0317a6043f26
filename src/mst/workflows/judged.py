"""Does it help? What is measured for that before, while and after a training, and kept in the run's results.

A row of task `baseline` for each thing to compare with (`protocol.which`), and one of task `verdict`. Rows hold which
validation images were right (`extra.right`, `mst.runtime.answers.Answers`), so that differences can be
judged image by image.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from mst.evaluate.classification.baselines import Baseline, knn_answers, simple_baselines
from mst.evaluate.classification.verdict import NAMES, SEE, SIMPLE, START, UNTRAINED, Verdict, judge
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.model.backbone import Backbone
from mst.model.build import build_backbone
from mst.parallel.world import World, alone
from mst.planning.setup import Setup
from mst.report.verdict import ranked_as_knn
from mst.runtime import logging
from mst.runtime.answers import Answers
from mst.runtime.storage.current import weights_digest
from mst.runtime.storage.results import Result, append_jsonl, plain_json, read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.train.state import TrainState
from mst.workflows.subject import RANDOM, described_data

BASELINE, VERDICT = "baseline", "verdict"
"""Tasks of rows of what needs no training, and of the verdict on a run's k-NN; the second is also the key, in any other
row's extra, of the verdict on that row."""
NEIGHBORS = 20
QUIET = FeatureSettings(progress=False)


def words_for(channels: int) -> dict[str, str]:
    """Return the names that depend on the images: statistics of one channel are not of colours."""
    return {"colour": "grey statistics"} if channels == 1 else {}


class Judged:
    """The labelled images of a run: k-NN of its teacher, what it is compared with, and the verdict at the end.

    Attributes:
        labelled: the images.
    """

    def __init__(self, labelled: LabelledSets, setup: Setup, run: RunDir, state: TrainState) -> None:
        self.labelled = labelled
        self._setup, self._run, self._state = setup, run, state
        self._transform = ImageTransform(setup.plan.global_size, setup.plan.mean, setup.plan.std)
        self._neighbors = min(NEIGHBORS, len(labelled.train))
        self._last: tuple[int, Answers] | None = None
        self._identity: dict[str, Any] | None = None

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        """Score the teacher's backbone; before the first step, also what it is compared with.

        Returns:
            `knn_top1` and `knn_top1_se` in percent, and `knn_k`.
        """
        answers, step = self._knn(backbone), self._state.step
        self._last = step, answers
        if step == 0:
            self._say(self._baselines(answers))
        return {"knn_top1": answers.percent, "knn_top1_se": answers.se, "knn_k": self._neighbors}

    def conclude(self) -> Verdict | None:
        """Compare the trained backbone with all that costs nothing; write the row of it, and say it.

        None in a process that has no whole network.
        """
        divided = self._state.replicas.divides
        if divided and not World.current().first:
            return None
        with alone() if divided else nullcontext():
            others = self._baselines(None)
            kept = World.current().from_first(self._kept_verdict)
            if self._last is not None and self._last[0] == self._state.step:
                answers = self._last[1]
            else:
                answers = kept or self._knn(self._state.replicas.whole.teacher.backbone)
        verdict = judge(answers, others, names=words_for(self.labelled.train.channels))
        if kept != answers:
            self._write(VERDICT, {"k": self._neighbors}, verdict_metrics(verdict), answers, **verdict_extra(verdict))
        (logging.info if verdict.good else logging.warn)(f"does it help? {verdict.sentence}")
        return verdict

    def _knn(self, backbone: Backbone) -> Answers:
        return knn_answers(backbone, self.labelled, self._transform, neighbors=self._neighbors, settings=QUIET)

    def _baselines(self, at_start: Answers | None) -> dict[str, Answers]:
        """Return what the backbone is compared with, from the run's rows; what is missing is measured and written.

        Args:
            at_start: k-NN of the weights of step 0, where that is known.
        """
        found: dict[str, Answers] = World.current().from_first(self._kept_baselines)
        continued = self._setup.config.model.init_from is not None
        if at_start is not None:
            which = START if continued else UNTRAINED
            if which not in found:
                found[which] = at_start
                self._write_baseline(which, at_start, {"k": self._neighbors})
        if UNTRAINED not in found:
            config = self._setup.config
            model, seed = config.model, config.runtime.seed
            fresh = build_backbone(self._setup.spec, seed=seed, init=model.init, positions=model.positions)
            found[UNTRAINED] = self._knn(fresh.to(self._setup.device))
            self._write_baseline(UNTRAINED, found[UNTRAINED], {"k": self._neighbors})
        if any(which not in found for which in SIMPLE):
            seed = self._setup.config.runtime.seed
            for each in simple_baselines(self.labelled, self._transform, settings=QUIET, seed=seed):
                if each.which not in found:
                    found[each.which] = each.answers
                    self._write_baseline(each.which, each.answers, described(each))
        return found

    def _say(self, found: Mapping[str, Answers]) -> None:
        """Say before the training what it is going to be compared with."""
        words = {**NAMES, **words_for(self.labelled.train.channels)}
        numbers = ", ".join(
            f"{'k-NN ' if which in (START, UNTRAINED) else ''}{words[which]} {found[which].percent:.1f} %"
            for which in NAMES
            if which in found
        )
        some = next(iter(found.values()))
        logging.info(f"before training, on {some.images} validation images: {numbers}")

    def _kept_baselines(self) -> dict[str, Answers]:
        """Return the run's rows of the same images and size."""
        found = {}
        for row in read_jsonl(self._run.results):
            protocol = row.get("protocol")
            if row.get("task") == BASELINE and isinstance(protocol, dict) and self._same(row, protocol):
                answers = _answers(row)
                if answers is not None and protocol.get("which") in NAMES:
                    found[str(protocol["which"])] = answers
        return found

    def _kept_verdict(self) -> Answers | None:
        """Return the answers of a verdict of this step that is written already."""
        for row in reversed(read_jsonl(self._run.results)):
            protocol, extra = row.get("protocol"), row.get("extra")
            if row.get("task") == VERDICT and isinstance(protocol, dict) and isinstance(extra, dict):
                return _answers(row) if self._same(row, protocol) and extra.get("step") == self._state.step else None
        return None

    def _same(self, row: Mapping[str, Any], protocol: Mapping[str, Any]) -> bool:
        """Return whether a row is of these images, seen in this way."""
        identity = row.get("data_identity")
        mine = self._described()["data_identity"]
        return (
            isinstance(identity, dict)
            and identity.get("digest") == mine.get("digest")
            and protocol.get("transform") == plain_json(asdict(self._transform))
        )

    def _described(self) -> dict[str, Any]:
        """Return a row's entries on the labelled images; their identity is taken once."""
        if self._identity is None:
            self._identity = described_data(self._setup.config.monitor.knn_data or "", self.labelled.fingerprint())
        return self._identity

    def _write_baseline(self, which: str, answers: Answers, protocol: Mapping[str, Any]) -> None:
        self._write(BASELINE, {"which": which, **protocol}, {"top1": answers.percent, "top1_se": answers.se}, answers)

    def _write(
        self, task: str, protocol: Mapping[str, Any], metrics: Mapping[str, float], answers: Answers, **extra: Any
    ) -> None:
        """Append a row; only the first process does."""
        if not World.current().first:
            return
        own = task == VERDICT
        row = Result(
            task,
            dict(metrics),
            {**protocol, "transform": asdict(self._transform)},
            backbone=str(self._run.root) if own else f"{RANDOM}{self._run.root}",
            backbone_sha256=weights_digest(self._run) if own else "",
            seed=self._setup.config.runtime.seed,
            **self._described(),
            extra=counted(self.labelled, answers) | ({"step": self._state.step} if own else {}) | extra,
        )
        append_jsonl(self._run.results, row.row())


def tell_without_labels(run: RunDir) -> None:
    """Say what the scores without labels were, and that they do not say whether a run helped."""
    first, last = dict[str, float](), dict[str, float]()
    for row in read_jsonl(run.metrics):
        if "retrieval_top1" in row:
            first, last = first or row, row
    if not last:
        logging.info("does it help? not known: no labelled images (--monitor.knn-data) and none kept out of training")
        return
    chance = 100 / last["retrieval_images"]
    parts = [
        f"augmented crops found again {last['retrieval_top1']:.1f} % (start {first['retrieval_top1']:.1f}, "
        f"chance {chance:.1f}; {ranked_as_knn('retrieval_top1')})"
    ]
    if "restore_gain" in last:
        parts.append(f"hidden patches {last['restore_gain']:+.1f} dB against one colour")
    logging.info(
        f"does it help? not known without labels (--monitor.knn-data LABELLED says it); {', '.join(parts)}: see {SEE}"
    )


def described(baseline: Baseline) -> dict[str, Any]:
    """Return what the row of a baseline says of how it came about."""
    return {} if baseline.penalty is None else {"numbers": baseline.numbers, "penalty": baseline.penalty}


def counted(labelled: LabelledSets, answers: Answers) -> dict[str, Any]:
    """Return the images of a row, and which of them were right."""
    return {
        "train_images": len(labelled.train),
        "val_images": answers.images,
        "classes": len(labelled.classes),
        "right": answers.row(),
    }


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """Return the numbers of a verdict's row."""
    return {"knn_top1": verdict.top1, "knn_top1_se": verdict.top1_se}


def verdict_extra(verdict: Verdict) -> dict[str, Any]:
    """Return the words of a verdict's row."""
    found = verdict.to_json()
    return {key: found[key] for key in ("call", "sentence", "see", "differences")}


def _answers(row: Mapping[str, Any]) -> Answers | None:
    extra = row.get("extra")
    return Answers.from_row(extra.get("right")) if isinstance(extra, dict) else None
