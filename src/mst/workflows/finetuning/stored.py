"""A fine-tuning as its folder describes it: the settings in config.json, the network in plan.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from mst.errors import CheckpointError, UsageError
from mst.runtime.storage.rundir import RunDir
from mst.workflows.finetuning.start import FinetuneConfig, Network

TASK = "finetune"
FREE = ("running", "device", "recipe")
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
    before, now = (_flat(json.loads(json.dumps(asdict(each)))) for each in (stored_config(run, named), asked))
    changed = [key for key in now if key.partition(".")[0] not in FREE and before.get(key) != now[key]]
    if changed:
        said = ", ".join(f"{key.rpartition('.')[2]} (was {before.get(key)}, now {now[key]})" for key in changed)
        raise UsageError(f"{named} was started with other settings: {said}: name a new folder, or give the same")
    return asked


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree of settings as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
