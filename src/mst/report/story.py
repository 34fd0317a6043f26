"""A run in words: pre-training or fine-tuning, where its weights started, whether labels were used, how far it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mst.report.reading import FINETUNE, RunRecords

Kind = Literal["pre-training", "fine-tuning", "supervised training", "unknown"]
SCRATCH, RANDOM, RELEASED = "scratch:", "random:", "timm:"


@dataclass(frozen=True)
class Story:
    """One run.

    Attributes:
        kind: what was done.
        subtitle: the same as a sentence without a full stop.
        labels: a sentence on what labels were used for.
        start: where the weights began, for a fact; "" where nothing is known.
        step: optimizer steps done; None = no row yet.
        total: planned steps; None = not known.
        finished: whether the run came to its end.
        resume: the command that goes on with it.
        method: a sentence that names the method, or nothing.
        tags: of the model card.
    """

    kind: Kind
    subtitle: str
    labels: str
    start: str
    step: int | None
    total: int | None
    finished: bool
    resume: str
    method: str
    tags: tuple[str, ...]

    @property
    def state(self) -> str:
        """How far it came, for a chip: "finished", "unfinished: step 3 of 10"."""
        if self.finished:
            return "finished"
        if self.step is None:
            return "not started"
        return f"unfinished: step {self.step}" + (f" of {self.total}" if self.total else "")


def tell(records: RunRecords) -> Story:
    """Return what can be said about a run from its files."""
    if records.config.get("task") == FINETUNE:
        return _finetuning(records)
    if isinstance(records.config.get("objective"), dict):
        return _pretraining(records)
    return Story(
        "unknown",
        "A run whose settings (config.json) cannot be read, so what was done is not known",
        "Whether labels were used is not known.",
        "",
        *_progress(records),
        "mst pretrain --resume",
        "",
        ("vision-transformer", "mst"),
    )


def _pretraining(records: RunRecords) -> Story:
    method, dino = _method(records)
    source = records.setting("model", "init_from")
    begun = f", continued from the weights of {source}" if source else ""
    labels = "No labels were used for training."
    if source:
        labels = f"No labels were used in this training. How the weights of {source} were learnt is not known here."
    told = f"{method}, learned from images without labels{begun}"
    return Story(
        "pre-training",
        f"{told}, one run of an ablation" if records.ablation else told,
        labels,
        str(source) if source else "fresh weights",
        *_progress(records),
        "mst pretrain --resume",
        "Method: DINO (Caron et al., ICCV 2021)." if dino else "Method: MST (Li et al., NeurIPS 2021).",
        ("self-supervised", "vision-transformer", "image-feature-extraction", "mst"),
    )


def _method(records: RunRecords) -> tuple[str, bool]:
    """Return what was learnt from, in words, and whether it is DINO."""
    masked = records.setting("objective", "strategy") != "none"
    restored = records.setting("objective", "restoration_weight", 1) != 0
    if records.setting("objective", "distillation_weight", 1) == 0:
        return f"Restoration of {'masked ' if masked else ''}images without self-distillation", False
    if not masked and not restored:
        return "Self-distillation without masks and restoration (DINO)", True
    if masked and restored:
        return "Masked self-distillation with restoration (MST)", False
    return f"Self-distillation {'with masks and without' if masked else 'without masks and with'} restoration", False


def _finetuning(records: RunRecords) -> Story:
    backbone = str(records.setting("settings", "backbone", "") or "an unknown backbone")
    kind: Kind = "fine-tuning"
    if backbone.startswith(SCRATCH):
        kind, start = "supervised training", f"fresh weights ({backbone.removeprefix(SCRATCH)})"
    elif backbone.startswith(RANDOM):
        kind, start = "supervised training", f"fresh weights (the network of {backbone.removeprefix(RANDOM)})"
    elif backbone.startswith(RELEASED):
        start = f"the released weights {backbone.removeprefix(RELEASED)}"
    elif "=" in backbone:
        name, _, file = backbone.partition("=")
        start = f"the weights of {name} in {file}"
    else:
        start = f"the backbone {backbone}"
    step, total, finished = _progress(records)
    finished = finished or any(row.get("task") == FINETUNE for row in records.results)
    return Story(
        kind,
        f"{kind.capitalize()}: backbone and linear classifier trained on labelled images, from {start}",
        "The labels of all training images were used.",
        start,
        step,
        total,
        finished,
        "mst finetune --resume",
        "",
        ("image-classification", "vision-transformer", kind, "mst"),
    )


def _progress(records: RunRecords) -> tuple[int | None, int | None, bool]:
    """Return steps done, steps planned, and whether the first reached the second."""
    done: Any = max((row["step"] for row in records.metrics), default=None)
    total = records.planned("total_steps")
    return (
        None if done is None else int(done),
        None if total is None else int(total),
        bool(total and done is not None and done >= total),
    )
