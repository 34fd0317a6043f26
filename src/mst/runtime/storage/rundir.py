"""The run folder: where everything lies in it, and the rules for creating one."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from mst.errors import UsageError
from mst.runtime.storage.files import check_folder, is_aside
from mst.runtime.storage.lock import LOCK_NAME, only_process_in

UNTRAINED = "-untrained"
"""Ends the name of a folder with pictures of the network with fresh weights."""


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration as it was asked for."""
        return self.root / "config.json"

    @property
    def plan(self) -> Path:
        """The derived values, each with its reason."""
        return self.root / "plan.json"

    @property
    def metrics(self) -> Path:
        """One row per monitored step."""
        return self.root / "metrics.jsonl"

    @property
    def repairs(self) -> Path:
        """One row for each time that the run went back to an earlier step with other settings."""
        return self.root / "repairs.jsonl"

    @property
    def abandoned(self) -> Path:
        """Folder of the rows of steps that were left then."""
        return self.root / "abandoned"

    @property
    def training(self) -> Path:
        """What a training with labels was, and how it was asked for."""
        return self.root / "training.json"

    @property
    def results(self) -> Path:
        """One row per evaluation."""
        return self.root / "results.jsonl"

    @property
    def ablation(self) -> Path:
        """The evaluation that the table of an ablation shows, if the run belongs to one; later ones do not count."""
        return self.root / "ablation_knn.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step_N` checkpoints."""
        return self.root / "checkpoints"

    @property
    def backbone(self) -> Path:
        """The exported teacher backbone."""
        return self.root / "backbone.safetensors"

    @property
    def unreadable(self) -> Path:
        """Files that could not be decoded, one per line."""
        return self.root / "unreadable.txt"

    @property
    def previews(self) -> Path:
        """Pictures of masks, attention and restorations."""
        return self.root / "previews"

    @property
    def pictures(self) -> Path:
        """Pictures of evaluations, a folder for each task."""
        return self.root / "pictures"

    def pictures_of(self, task: str, *, untrained: bool) -> Path:
        """Folder for the pictures of one evaluation; the network with fresh weights has a folder of its own."""
        return self.pictures / f"{task}{UNTRAINED if untrained else ''}"

    @property
    def errors(self) -> Path:
        """What classifiers get wrong, a folder for each task."""
        return self.root / "errors"

    def errors_of(self, task: str, *, untrained: bool) -> Path:
        """Folder for the errors of one evaluation; the network with fresh weights has a folder of its own."""
        return self.errors / f"{task}{UNTRAINED if untrained else ''}"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def environment(self) -> Path:
        """Versions, device and commit of the run."""
        return self.root / "environment.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        return f"mst pretrain --resume {shlex.quote(str(self.root))}"

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.config.exists()


def check_new_run_dir(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where no run can be made; nothing is written.

    Raises:
        UsageError: `path` is no place for a folder (see `check_folder`), holds something that is not a run, or holds a
            run and `overwrite` is false.
    """
    check_folder(path, "--out")
    if path.is_dir() and not all(_is_first_moment(entry.name) for entry in path.iterdir()):
        if not _was_written_here(RunDir(path)):
            raise UsageError(f"--out {path} is not empty and holds no run: name a new folder")
        if not overwrite:
            again = f"--resume {shlex.quote(str(path))}"
            raise UsageError(f"--out {path} already holds a run: use {again}, --overwrite, or another folder")


def _is_first_moment(name: str) -> bool:
    """Whether a file is one that a run writes before config.json: a killed run may have left nothing else."""
    return name in {LOCK_NAME, "plan.json", "environment.json", "logs"} or is_aside(name)


def _was_written_here(run: RunDir) -> bool:
    """Whether config.json is of a run. Other programs have files of that name, and `--overwrite` deletes the folder."""
    try:
        values = json.loads(run.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return run.plan.exists()  # a damaged one
    return isinstance(values, dict) and "recipe" in values and ("objective" in values or "task" in values)


def create_run_dir(path: Path, *, overwrite: bool) -> RunDir:
    """Make a new run folder; with `overwrite`, in place of the run that is there.

    Raises:
        UsageError: as `check_new_run_dir`, another process is at work in the folder, or it cannot be made.
    """
    check_new_run_dir(path, overwrite=overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with only_process_in(path):
            _clear(path)
    except OSError as error:
        raise UsageError(f"cannot create --out {path}: {error.strerror}") from error
    return RunDir(path)


def _clear(folder: Path) -> None:
    """Delete what a folder holds, but for the lock; config.json last, so that a half-deleted run is still one."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "config.json"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK_NAME:
            entry.unlink()


def open_run_dir(path: Path) -> RunDir:
    """Return an existing run folder.

    Raises:
        UsageError: there is no run at `path`.
    """
    run = RunDir(path)
    if not run.exists():
        raise UsageError(f"{path} holds no run (no config.json): give the folder that --out named")
    return run
