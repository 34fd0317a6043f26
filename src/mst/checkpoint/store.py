"""The checkpoints of one run: written aside and renamed, the newest few kept, damaged ones passed over."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mst.checkpoint.format import (
    INFO,
    Checkpoint,
    Damaged,
    OtherFormat,
    read_folder,
    verified_info,
    write_info,
    write_parts,
)
from mst.errors import CheckpointError, RunFailure, UsageError
from mst.runtime import logging
from mst.runtime.storage.files import sync_folder

_STEP = re.compile(r"step_(\d+)")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ASIDE = ".aside-"
PROVISIONAL = "provisional"
"""Key of the information beside a checkpoint that was saved as one."""


class CheckpointStore:
    """Folders `step_N` under `folder`.

    A crash at any moment leaves every finished checkpoint as it was. A new one is written into a folder of another
    name, flushed to disk and renamed; only then are older ones deleted.
    """

    def __init__(self, folder: Path, *, keep: int, history: int = 0) -> None:
        """Keep the `keep` newest checkpoints, and with `history` some before them.

        Those are the first one of each half of `history` steps, as far back as the newest that is `history` steps old.
        """
        self._folder = folder
        self._keep = keep
        self._history = history

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, damaged or not, oldest first."""
        if not self._folder.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the folder of step `step`."""
        return self._folder / f"step_{step}"

    def save(
        self, step: int, parts: dict[str, dict[str, Any]], info: dict[str, Any], *, provisional: bool = False
    ) -> Path:
        """Save state dictionaries by name, and JSON-ready `info`; then delete what is no longer kept.

        A provisional checkpoint is written while steps are being skipped, so the training may have gone wrong. It is
        kept beside the others until the next checkpoint, and replaces only an earlier provisional one.

        Raises:
            RunFailure: the disk refused (full, read-only); the checkpoints before are intact, the new one is gone.
        """
        aside = self.begin(step)
        if aside is None:
            return self.path(step)
        with self._undone(aside, step):
            files = write_parts(aside, parts)
        return self.commit(aside, step, files, {**info, PROVISIONAL: True} if provisional else info)

    def begin(self, step: int) -> Path | None:
        """Make an empty folder aside, for the files of a checkpoint; None if there is a sound one of this step.

        Raises:
            RunFailure: the disk refused.
        """
        aside = self._folder / f"{_ASIDE}{os.getpid()}-step_{step}"
        with self._undone(aside, step):
            self._folder.mkdir(parents=True, exist_ok=True)
            self.remove_leftovers()
            if self._is_sound(step) and not self.is_provisional(step):  # it holds the same
                return None
            aside.mkdir()
        return aside

    def commit(
        self,
        aside: Path,
        step: int,
        files: dict[str, dict[str, Any]],
        info: dict[str, Any],
        *,
        version: int | None = None,
    ) -> Path:
        """Make a checkpoint of the files in `aside`, all on disk; then delete what is no longer kept.

        Args:
            aside: from `begin`.
            step: optimizer steps done.
            files: size and SHA-256 of each file by its name, from `write_parts`.
            info: see `save`; with `PROVISIONAL` where it is.
            version: of the format; None = that of whole tensors.

        Raises:
            RunFailure: the disk refused; the checkpoints before are intact, the new one is gone.
        """
        target = self.path(step)
        with self._undone(aside, step):
            write_info(aside, step, files, info, version=version)
            if target.exists():
                self._remove(target)  # a damaged or provisional one
            aside.rename(target)
            sync_folder(self._folder)
        self._retain(step)
        return target

    @contextmanager
    def _undone(self, aside: Path, step: int) -> Iterator[None]:
        """Delete what is aside where the disk refuses, and say so.

        Raises:
            RunFailure: it did.
        """
        try:
            yield
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise RunFailure(self._disk_message(self.path(step), error)) from error

    def load_latest(
        self, wanted: Callable[[Checkpoint], bool] = lambda checkpoint: True, *, most: int | None = None
    ) -> Checkpoint:
        """Return the newest sound checkpoint; warn, in a line each, of newer ones that are damaged.

        Args:
            wanted: whether to take a checkpoint; others are passed over silently.
            most: only checkpoints up to this step; None = all.

        Raises:
            CheckpointError: there is none; the message says what is wrong with the newest.
        """
        steps = [step for step in self.steps() if most is None or step <= most]
        if not steps:
            raise CheckpointError(f"{self._folder} holds no checkpoint: start the run anew")
        damages = []
        for step in reversed(steps):
            try:
                checkpoint = read_folder(self.path(step))
            except OtherFormat as other:  # those before it are no younger
                raise CheckpointError(f"cannot resume from {self.path(step)}: {other}") from other
            except Damaged as damage:
                damages.append(f"{self.path(step)} is damaged: {damage}")
                if step != steps[0]:
                    logging.warn(f"{damages[-1]}; falling back to the checkpoint before it")
                continue
            if wanted(checkpoint):
                return checkpoint
            damages.append(f"{self.path(step)} is of steps that were skipped")
        raise CheckpointError(
            f"none of {len(steps)} checkpoints can be used ({'; '.join(damages)}): start the run anew"
        )

    def is_provisional(self, step: int) -> bool:
        """Whether the checkpoint of `step` is provisional (see `save`)."""
        try:
            return bool(json.loads((self.path(step) / INFO).read_bytes())["info"].get(PROVISIONAL))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False  # damaged: as before

    def _is_sound(self, step: int) -> bool:
        try:
            verified_info(self.path(step))
        except Damaged:
            return False
        return True

    def _retain(self, saved: int) -> None:
        """Delete all but the newest `keep` up to step `saved`, and those of later steps, which were damaged."""
        steps = self.steps()
        sound = [step for step in steps if step <= saved and not self.is_provisional(step)]
        kept = {*sound[-self._keep :], saved, *self._old(sound)}
        for step in set(steps) - kept:
            try:
                self._remove(self.path(step))
            except OSError as error:
                logging.warn(f"cannot delete the old checkpoint {self.path(step)}: {error.strerror or error}")

    def _old(self, sound: Sequence[int]) -> list[int]:
        """Return which of some steps are kept as history."""
        if not self._history or not sound:
            return []
        spacing = max(1, self._history // 2)
        firsts = {step // spacing: step for step in reversed(sound)}  # the first of each
        old = sorted(firsts.values())
        reached = [step for step in old if step <= sound[-1] - self._history]
        return [step for step in old if not reached or step >= reached[-1]]

    def discard(self, unwanted: Callable[[int, Mapping[str, Any]], bool]) -> list[int]:
        """Delete the sound checkpoints that are unwanted, by step and information; return their steps."""
        found = []
        for step in self.steps():
            try:
                info = verified_info(self.path(step))["info"]
            except Damaged:
                continue
            if unwanted(step, info):
                self._remove(self.path(step))
                found.append(step)
        return found

    def _remove(self, path: Path) -> None:
        """Rename a checkpoint, then delete it, so that a half-deleted folder is never taken for a checkpoint."""
        aside = self._folder / f"{_ASIDE}{os.getpid()}-old-{path.name}"
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what a killed process left half written or half deleted."""
        for path in self._folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _disk_message(self, target: Path, error: OSError) -> str:
        steps = self.steps()
        intact = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier one"
        advice = "free space" if error.errno in FULL else "mend that"
        return f"cannot write checkpoint {target}: {error.strerror or error}; {intact}: {advice}, then resume"


def convert(store: CheckpointStore, folder: Path) -> Path:
    """Write the newest sound checkpoint with whole tensors into `folder`; return its path.

    Raises:
        CheckpointError: there is none.
        UsageError: `folder` holds checkpoints.
        RunFailure: the disk refused.
    """
    target = CheckpointStore(folder, keep=1)
    if target.steps():
        raise UsageError(f"{folder} holds checkpoints: name a new folder")
    found = store.load_latest()
    return target.save(found.step, found.parts, found.info)
