"""`mst finetune`: train a backbone and a classifier on labelled images, or go on with an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from mst.data.labelled import LabelOptions
from mst.errors import UsageError
from mst.finetune.classifier import FinetuneProtocol
from mst.parallel.launch import wanted_here
from mst.parallel.local import run_here
from mst.paths import PathText, SourceText
from mst.terminal.evaluation import show
from mst.terminal.parsing import RecipeOption, parse_words
from mst.workflows.evaluation.labelled import Limits
from mst.workflows.finetuning.run import finetune_backbone, resume_finetuning
from mst.workflows.finetuning.start import InputOptions, Running

PROG = "mst finetune"


@dataclass(frozen=True)
class FinetuneArguments(RecipeOption):
    """Train a backbone and a linear classifier on labelled images: train/<class>/ and val/<class>/, or a table.

    Attributes:
        backbone: a run folder, a backbone file, `timm:NAME`, `NAME=FILE`; `random:` before it means the same network
            with fresh weights; `scratch:NAME` is timm's network of that name with fresh weights.
        data: the labelled folder, a table (.csv, .tsv) of paths and labels, or shards: a folder, a pattern, hf:NAME, an
            address.
        out: new folder of the run.
        device: auto, cpu, cuda or cuda:N.
        seed: of every random draw and of fresh weights.
        overwrite: delete the run that --out already holds.
        continue_: go on with the run that --out holds, or start it: one command for every start of a job.
        processes: on this machine, which share the work; auto = one a GPU. torchrun and srun start their own.
        json: one JSON object on stdout instead of a table.
    """

    backbone: SourceText
    data: SourceText
    out: PathText
    device: str = "auto"
    seed: int = 0
    overwrite: bool = False
    continue_: Annotated[bool, tyro.conf.arg(name="continue")] = False
    processes: int | Literal["auto"] = 1
    json: bool = False
    protocol: FinetuneProtocol = field(default_factory=FinetuneProtocol)
    image: InputOptions = field(default_factory=InputOptions)
    limits: Limits = field(default_factory=Limits)
    labels: LabelOptions = field(default_factory=LabelOptions)
    running: Running = field(default_factory=Running)


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with an interrupted run, with the settings it was started with, or with a finished one for longer.

    Attributes:
        resume: its folder.
        epochs: of a finished run, how many it is to have in all: the added ones begin with half its highest learning
            rate, after a warm-up, and end with its lowest; none = as before.
        device: another device; none = as before.
        processes: on this machine, which share the work; auto = one a GPU. torchrun and srun start their own.
        json: one JSON object on stdout instead of a table.
    """

    resume: PathText
    epochs: int | None = None
    device: str | None = None
    processes: int | Literal["auto"] = 1
    json: bool = False


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--recipe", *words]
    if any(word == "--resume" or word.startswith("--resume=") for word in words):
        again = parse_words(ResumeArguments, words, prog=f"{PROG} --resume")
        if again is not None and (processes := wanted_here(again.processes, flag="--processes")) > 1:
            return run_here(["finetune", *words], processes)
        if again is None:
            return 0
        return show(resume_finetuning(again.resume, device=again.device, epochs=again.epochs), json=again.json)
    a = parse_words(FinetuneArguments, words, prog=PROG)
    if a is None:
        return 0
    if a.continue_ and a.overwrite:
        raise UsageError("--continue goes on with the run that --overwrite deletes: use one of them")
    if (processes := wanted_here(a.processes, flag="--processes")) > 1:
        return run_here(["finetune", *words], processes)
    result = finetune_backbone(
        a.backbone,
        a.data,
        a.out,
        protocol=a.protocol,
        image=a.image,
        limits=a.limits,
        labels=a.labels,
        running=a.running,
        device=a.device,
        seed=a.seed,
        recipe=a.recipe or "",
        overwrite=a.overwrite,
        resume=a.continue_,
    )
    return show(result, json=a.json)
