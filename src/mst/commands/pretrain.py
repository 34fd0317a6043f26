"""`mst pretrain`: train a backbone on unlabelled images, or go on with an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from mst.checkpoint.compare import INTERVENTIONS, is_free
from mst.config.keys import flag
from mst.config.load import (
    as_chosen,
    changed_keys,
    flatten,
    load_config,
    override,
    require_data,
    with_absolute_paths,
    with_given,
)
from mst.config.schema import Choice, RunConfig
from mst.errors import UsageError
from mst.parallel.launch import wanted_here
from mst.parallel.local import run_here
from mst.paths import PathText, SourceText, user_path
from mst.recipes import base_config
from mst.runtime import logging
from mst.runtime.storage.rundir import RunDir, open_run_dir
from mst.terminal.minutes import timed
from mst.terminal.output import emit_json
from mst.terminal.parsing import Words, parse_run_words


@dataclass(frozen=True)
class PretrainOptions:
    """Pre-train a backbone on unlabelled images, or go on with an interrupted run (--resume)."""

    recipe: Annotated[tyro.conf.Positional[SourceText], tyro.conf.arg(metavar="RECIPE")] = ""
    """A recipe (see `mst recipes`) or a JSON file of settings."""
    out: PathText = ""
    """New folder of the run."""
    minutes: float | None = None
    """How long the run may take: own-images chooses everything for it, any other recipe its epochs only."""
    resume: PathText = ""
    """Folder of an interrupted run: go on from its newest checkpoint."""
    continue_: Annotated[bool, tyro.conf.arg(name="continue")] = False
    """With --out: go on with the run that is there, or start it: one command for every start of a job."""
    overwrite: bool = False
    """Delete the run that --out already holds."""
    accept_changed_data: bool = False
    """With --resume: go on although images were added, removed or replaced. Steps per epoch and the order of the images
    follow from the new ones from this step on; rates, temperatures and normalisation stay; plan.json notes it."""
    json: bool = False
    """One JSON object on stdout at the end."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parsed = parse_run_words(PretrainOptions, argv, prog="mst pretrain")
    if parsed is None:
        return 0
    options, words = parsed
    if options.continue_:
        options = continued(options)
    config, out = resumed(options, words) if options.resume else started(options, words)
    if (processes := wanted_here(config.runtime.processes)) > 1:
        return run_here(["pretrain", *argv], processes)

    from mst.workflows.pretraining import pretrain

    result = pretrain(
        config,
        out=out,
        resume=bool(options.resume),
        overwrite=options.overwrite,
        accept_changed_data=options.accept_changed_data,
    )
    if options.json:
        found = {own.name: getattr(result, own.name) for own in fields(result)}
        verdict = None if result.verdict is None else result.verdict.to_json()
        shown = {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}
        emit_json({**shown, "verdict": verdict})
    return 0


def continued(options: PretrainOptions) -> PretrainOptions:
    """Return what --continue means here: --resume if there is a run, else a new one.

    Raises:
        UsageError: it says neither.
    """
    if options.resume or options.overwrite or not options.out:
        raise UsageError("--continue goes with --out RUN, and with neither --resume nor --overwrite")
    from mst.parallel.world import World

    there = World.current().from_first(RunDir(user_path(options.out)).exists)
    return replace(options, resume=options.out) if there else options


def started(options: PretrainOptions, words: Words) -> tuple[RunConfig, Path]:
    """Return configuration and folder of a new run.

    Raises:
        UsageError: recipe, images or folder are missing, or a setting is wrong.
    """
    if options.accept_changed_data:
        raise UsageError("--accept-changed-data goes with --resume: a new run has no images of before")
    if not options.recipe:
        raise UsageError("name a recipe: mst pretrain RECIPE --data.train PATH --out RUN (all recipes: mst recipes)")
    config = with_given(override(base_config(options.recipe), words), words)
    config = timed(config, options.minutes, words)
    require_data(config)
    if not options.out:
        raise UsageError("--out is missing: name a new folder for the run")
    return config, user_path(options.out)


def resumed(options: PretrainOptions, words: Words) -> tuple[RunConfig, Path]:
    """Return configuration and folder of a run to go on with.

    Raises:
        UsageError: there is no run, or settings differ from those it was started with.
    """
    run = open_run_dir(user_path(options.resume))
    if options.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite deletes it: use one of them")
    if options.out and user_path(options.out) != run.root:
        raise UsageError(f"--out {options.out} differs from --resume {options.resume}: leave --out away")
    config = checked_resume(run, options.recipe, words)
    if options.minutes is not None and (config.choice is None or config.choice.minutes != options.minutes):
        was = "without --minutes" if config.choice is None else f"with --minutes {config.choice.minutes:g}"
        raise UsageError(f"--resume {run.root} cannot change --minutes {options.minutes:g}: the run was started {was}")
    return config, run.root


def checked_resume(run: RunDir, recipe: str, words: Words) -> RunConfig:
    """Return the configuration of the run at `run` with the harmless changes that were asked for.

    What the run chose at its start for images, device and time stays, also where its whole command is repeated.

    Raises:
        UsageError: names each setting that would change the result.
    """
    stored = with_absolute_paths(load_config(run.config))
    asked = with_absolute_paths(override(as_chosen(base_config(recipe), stored) if recipe else stored, words))
    before, after = flatten(stored), flatten(asked)
    allowed = [key for key in INTERVENTIONS if key in words]  # said, not left away in a repeated command
    refused = [key for key in changed_keys(stored, asked) if not is_free(key) and key not in allowed]
    if refused:
        changes = ", ".join(f"{flag(key)} (was {before[key]}, now {after[key]})" for key in refused)
        raise UsageError(f"--resume {run.root} cannot change {changes}: leave it as it was, or start a new run")
    if asked.data.train != stored.data.train:
        logging.info(f"images now come from {' '.join(asked.data.train)}, before from {' '.join(stored.data.train)}")
    kept = {"recipe": stored.recipe, "given": stored.given, "choice": _kept_choice(stored, asked)}
    return asked.model_copy(update=kept)


def _kept_choice(stored: RunConfig, asked: RunConfig) -> Choice | None:
    """Return what the run chose at its start, without what was changed since."""
    if stored.choice is None:
        return None
    changed = changed_keys(stored, asked)
    reasons = {key: reason for key, reason in stored.choice.reasons.items() if key not in changed}
    return stored.choice.model_copy(update={"reasons": reasons})
