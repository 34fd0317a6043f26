"""A fine-tuning as its folder describes it: the settings in config.json, the network in plan.json."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from mst.errors import CheckpointError, UsageError
from mst.runtime.storage.results import Result, read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows.finetuning.start import FinetuneConfig, Network

TASK = "finetune"
FREE = ("running", "device", "recipe", "ended")
"""Settings that may differ when a run goes on."""


def stored_config(run: RunDir, named: str) -> FinetuneConfig:
    """Return the settings of a folder; `named` is its name in messages.

    Raises:
        UsageError: no fine-tuning was started there, or its settings are damaged.
    """
    try:
        values = json.loads(run.config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{named} holds no run of mst finetune (no config.json)") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{named}: config.json is damaged ({error}): start anew") from error
    if not isinstance(values, dict) or values.get("task") != TASK or "settings" not in values or not run.plan.exists():
        raise UsageError(f"{named} holds no run of mst finetune: is it one of mst pretrain?")
    return FinetuneConfig.from_json(values["settings"])


def stored_network(run: RunDir, named: str) -> Network:
    """Return the network of a folder; `named` is its name in messages.

    Raises:
        UsageError: plan.json is damaged.
    """
    try:
        return Network.from_json(json.loads(run.plan.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, CheckpointError) as error:
        raise UsageError(f"{named}: plan.json is damaged ({error}): start anew") from error


def unchanged_config(run: RunDir, asked: FinetuneConfig) -> FinetuneConfig:
    """Return `asked`, with which a run is to go on.

    Raises:
        UsageError: it was started with other settings; names them.
    """
    named = f"--out {run.root}"
    stored = stored_config(run, named)
    before, now = (_flat(json.loads(json.dumps(asdict(each)))) for each in (stored, asked))
    changed = [key for key in now if key.partition(".")[0] not in FREE and before.get(key) != now[key]]
    if changed:
        said = ", ".join(f"{key.rpartition('.')[2]} (was {before.get(key)}, now {now[key]})" for key in changed)
        raise UsageError(f"{named} was started with other settings: {said}: name a new folder, or give the same")
    return replace(asked, ended=stored.ended)


def is_finished(config: FinetuneConfig, result: Result) -> bool:
    """Whether a row is that of a whole fine-tuning with these settings."""
    return result.task == TASK and result.protocol.get("epochs", config.protocol.epochs) == config.protocol.epochs


def lengthened(run: RunDir, config: FinetuneConfig, epochs: int, named: str) -> FinetuneConfig:
    """Return the settings of a finished run that is to go on until so many epochs are done.

    Raises:
        UsageError: it is not finished, has as many epochs already, or no checkpoint of its end.
    """
    done = config.protocol.epochs
    if epochs == done and config.ended:
        return config  # the same command again: go on, or say that it is finished
    if epochs <= done:
        raise UsageError(f"--epochs {epochs}: {named} is a training of {done} epochs: name more than {done}")
    if not any(is_finished(config, row) for row in map(Result.from_row, read_jsonl(run.results)) if row):
        raise UsageError(
            f"--epochs {epochs}: {named} is not at the end of its {done} epochs, whose learning rates are planned: "
            "finish it first (leave --epochs away), then make it longer"
        )
    if not any(run.checkpoints.glob("step_*")):
        raise UsageError(f"--epochs {epochs}: {named} has no checkpoint to go on from: start anew")
    return replace(config, protocol=replace(config.protocol, epochs=epochs), ended=(*config.ended, done))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree of settings as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
