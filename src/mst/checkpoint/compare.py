"""Which settings and images of a run changed since its checkpoint, and which of them may."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mst.errors import CheckpointError, UsageError
from mst.runtime import logging
from mst.runtime.identity import CONTENTS, DataIdentity, difference

FREE = (
    "recipe",
    "given",
    "data.train",
    "data.cache",
    "data.index_cache",
    "data.shard_cache",
    "data.shard_cache_size",
    "data.download",
    "data.strict",
    "data.max_unreadable_share",
    "train.accumulate",
    "train.max_bad_steps",
    "batch_size_per_pass",
    "checkpoint",
    "monitor",
    "runtime.device",
    "runtime.workers",
    "runtime.threads",
    "runtime.replicas",
    "runtime.activation_checkpointing",
    "runtime.processes",
    "runtime.sharding",
    "runtime.lanes",
    "runtime.compile",
    "runtime.decode",
    "runtime.colour",
)
"""Settings, or whole sections, that may differ on resume: none of them defines what is learnt.

The images may have moved to another folder; the plan, which is compared as well, says how many they must be.
Another device, compiled blocks, or another number of threads, replicas, processes, lanes or accumulation passes, change
the last bits of a sum (accumulation also the images that BatchNorm in a head, `model.head_norm batch`, sees at once),
and colours on another device change some pixels by one grey level, decoding by a few; all else continues exactly as it
would have.
"""

INTERVENTIONS = ("optimizer.lr", "optimizer.base_lr", "optimizer.clip", "runtime.precision")
"""Settings that define what is learnt and may be changed all the same: what helps where steps are not finite. The plan
notes each change and its step, under its key of that name."""
IDENTITY, ACCEPTED, NOTED, OPENED = "data_identity", "accepted_data", "interventions", "opened"
"""Keys of a plan: what the images are, what was there before and was accepted to have changed, settings that were
changed on the way, and how many images of a sample differ."""
FIRST_IMAGE = "first_image"
"""Key of a training's identity: the path of the first image."""
FOLLOWS_FROM_DATA = (
    *("dataset_size", "steps_per_epoch", "total_steps", "warmup_steps"),
    *("teacher_temp_warmup_steps", "freeze_last_layer_steps", "freeze_backbone_steps"),
)
"""Derived values that may differ once it was accepted that the images changed."""


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return `section.key` -> (saved, current) for every setting that differs; None where a side has no such key.

    Tuples and lists count as equal: JSON has only lists.
    """
    before, now = (_flat(json.loads(json.dumps(side))) for side in (saved, current))
    return {key: (before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)}


def is_free(key: str) -> bool:
    """Whether a run may be resumed with another value of `key`."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def interventions(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return those of a configuration's `INTERVENTIONS` that a run is to be resumed with other values of."""
    return {key: pair for key, pair in changed_settings(saved, current).items() if key in INTERVENTIONS}


def refuse_changed_settings(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Compare a checkpoint's configuration (or plan) with the one it is to be resumed with.

    A key that the checkpoint does not know came with a newer version of this package: the run was started with what it
    is by default, or there is nothing to differ from.

    Args:
        saved: of the checkpoint.
        current: of the run.
        free: keys that may differ besides those of `is_free`.
        usual: what settings are by default.

    Raises:
        CheckpointError: settings that define the run differ; names each with both values. Or the images do.
    """
    free = {*free, *(FOLLOWS_FROM_DATA if _accepted(saved, current) else ())}
    noted = {IDENTITY, ACCEPTED, NOTED, OPENED}
    saved, current = ({key: side[key] for key in side if key not in noted} for side in (saved, current))
    known = _flat(json.loads(json.dumps({**usual}))) | _flat(json.loads(json.dumps(saved)))
    changed = {key: (known[key], now) for key, (_, now) in changed_settings(saved, current).items() if key in known}
    changes = {
        key: (before, now)
        for key, (before, now) in changed.items()
        if before != now and not is_free(key) and key not in free
    }
    if changes:
        lines = ", ".join(f"{key} {before!r} -> {now!r}" for key, (before, now) in sorted(changes.items()))
        raise CheckpointError(
            f"the run was started with other settings: {lines}; resume with the old ones or start anew"
        )


def refuse_other_training(saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """Compare what a checkpoint of a training with labels was trained with and what it is to be resumed with.

    A checkpoint of an older version does not know the contents of its data: that is said, and it is resumed.

    Raises:
        UsageError: settings, data or weights differ; names which.
    """
    if other := sorted(changed_identity(saved, current)):
        raise UsageError(
            f"--checkpoints {folder} holds a training with other {', '.join(other)}: name another folder, or repeat "
            "its command with what it was given then"
        )
    if CONTENTS in current and CONTENTS not in saved:
        logging.info(f"{folder} is of an older version, which did not note what its data held")


def changed_identity(saved: Mapping[str, Any], current: Mapping[str, Any]) -> set[str]:
    """Return what differs in the identity of a training with labels.

    The data may have moved: where both sides know their contents, the path of the first image does not count. An older
    version does not know them.
    """
    either = {CONTENTS} & {*current} - {*saved}
    if CONTENTS in current and CONTENTS in saved:
        either = {FIRST_IMAGE}
    return {key for key in {*saved, *current} - either if saved.get(key) != current.get(key)}


def _accepted(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether the images changed since a plan was saved, and that was accepted.

    Raises:
        CheckpointError: they changed and nobody said so.
    """
    before, now = (DataIdentity.from_row(side.get(IDENTITY)) for side in (saved, current))
    if before == now:
        return False
    past = [DataIdentity.from_row(change.get("identity")) for change in current.get(ACCEPTED, ())]
    if before in past:
        return True
    if before is None or now is None:
        return False  # of an older version, or no plan
    raise CheckpointError(
        f"the run was started with other images ({difference(before, now)}): give them back, or go on with "
        "--accept-changed-data"
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
