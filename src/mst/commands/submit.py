"""`mst submit slurm COMMAND ...`: a training as a job of SLURM that goes on by itself until it is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mst.commands import evaluate, finetune, pretrain
from mst.errors import UsageError
from mst.paths import user_path
from mst.runtime import logging
from mst.runtime.storage.rundir import RunDir
from mst.terminal.evaluation import Common
from mst.terminal.output import emit, emit_json, emit_text
from mst.terminal.parsing import parse_run_words, parse_words, split_words
from mst.terminal.tasks import Task, run_first_word
from mst.workflows.submission import Job, SlurmOptions, submit

PROG = "mst submit slurm"
COMMANDS = ("pretrain", "finetune", "evaluate segmentation", "evaluate detection")
NEVER = ("--resume", "--overwrite", "--help", "--help-all", "-h")
"""A job that is requeued runs the same command again."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    return run_first_word(argv, TASKS, prog="mst submit", noun="scheduler", options="RECIPE ... [--dry-run]")


def run_slurm(argv: Sequence[str]) -> int:
    """Submit a job, or print its script; return the exit status."""
    own, words = split_words(SlurmOptions, argv)
    if {"-h", "--help"} & set(words):
        emit(f"usage: {PROG} [{'|'.join(COMMANDS)}] WORDS OF THE COMMAND ... OPTIONS BELOW\n")
        parse_words(SlurmOptions, ["--help"], prog=PROG)
        return 0
    options = parse_words(SlurmOptions, own, prog=PROG)
    assert options is not None
    job = job_of(words, options)
    if options.dry_run:
        emit_text(job.script())
        return 0
    number = submit(job)
    if options.json:
        emit_json({"job": number, "script": str(job.file), "log": str(job.log)})
        return 0
    logging.info(f"job {number}: {job.file}; it prints to {job.log}")
    return 0


def job_of(words: Sequence[str], options: SlurmOptions) -> Job:
    """Return the job that runs a command, once its words are found good.

    Args:
        words: `pretrain RECIPE ...`, or without the first word; those of the other `COMMANDS`.
        options: what is asked of SLURM.

    Raises:
        UsageError: as the command itself would say, or it has no folder to go on from.
    """
    if not words:
        raise UsageError(f"name a command: {PROG} pretrain RECIPE --data.train PATH --out RUN ({PROG} --help)")
    for word in words:
        if word.partition("=")[0] in NEVER:
            raise UsageError(f"{word} is not for a job: it starts or goes on with its run, whichever is due")
    name = next((name for name in COMMANDS if [*words[: name.count(" ") + 1]] == name.split()), "")
    if not name and words[0] in {"evaluate", "mst"}:
        raise UsageError(f"{' '.join(words[:2])} is no training: give one of {', '.join(COMMANDS)}")
    rest = list(words[len(name.split()) :])
    return JOBS[name or "pretrain"](rest, options)


def _pretraining(words: list[str], options: SlurmOptions) -> Job:
    parsed = parse_run_words(pretrain.PretrainOptions, words, prog="mst pretrain")
    assert parsed is not None
    _, out = pretrain.started(*parsed)
    return Job(("pretrain", *_continued(words)), out, RunDir(out).checkpoints, options)


def _finetuning(words: list[str], options: SlurmOptions) -> Job:
    recipe = ["--recipe"] if words and not words[0].startswith("-") else []
    parsed = parse_words(finetune.FinetuneArguments, [*recipe, *words], prog=finetune.PROG)
    assert parsed is not None
    out = user_path(parsed.out)
    return Job(("finetune", *_continued(words)), out, RunDir(out).checkpoints, options)


def _evaluation(
    task: str, arguments: type[evaluate.SegmentationArguments | evaluate.DetectionArguments]
) -> Callable[[list[str], SlurmOptions], Job]:
    def job(words: list[str], options: SlurmOptions) -> Job:
        parsed: Common | None = parse_words(arguments, words, prog=f"mst evaluate {task}")
        assert isinstance(parsed, evaluate.SegmentationArguments | evaluate.DetectionArguments)
        if not parsed.saving.checkpoints:
            raise UsageError("--checkpoints is missing: name a folder from which a job that was stopped goes on")
        checkpoints = Path(parsed.saving.checkpoints)
        return Job(("evaluate", task, *words), checkpoints, checkpoints, options)

    return job


def _continued(words: Sequence[str]) -> list[str]:
    return [*words, *(["--continue"] if "--continue" not in words else [])]


JOBS: dict[str, Callable[[list[str], SlurmOptions], Job]] = {
    "pretrain": _pretraining,
    "finetune": _finetuning,
    "evaluate segmentation": _evaluation("segmentation", evaluate.SegmentationArguments),
    "evaluate detection": _evaluation("detection", evaluate.DetectionArguments),
}
TASKS: dict[str, Task] = {"slurm": run_slurm}
"""Word after `mst submit` -> what it does."""
