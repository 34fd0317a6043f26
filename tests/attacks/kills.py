"""Kills runs at drawn moments, resumes them, and compares every file at the end with those of a run left alone.

PYTHONPATH=src:tests python -m attacks.kills pretraining FOLDER FIRST END
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from commands.calls import labelled_folder
from data.pictures import write_textures
from mst.cli import main
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.runtime.storage.outputs import NOTES
from mst.runtime.storage.results import read_jsonl
from mst.workflows.pretraining import load_recipe

TIMES = {"seconds", "images_per_second", "data_wait", "memory_gb"}
"""Fields of rows that no two runs share."""
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
"""What changes a folder, beside files that are opened to be written."""
RECIPE = {
    "recipe": "debug",
    "data": {"train": ["images"]},
    "train": {"epochs": 8},
    "checkpoint": {"every_steps": 3},
    "runtime": {"workers": 0, "device": "cpu", "threads": 1},
}


def forked(words: Sequence[str], log: Path, end_at: Callable[[], object]) -> int:
    """Run `mst WORDS` in a fork of this process, after `end_at` in the fork; return its status, as subprocess does."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with open(log, "ab", buffering=0) as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            end_at()
            status = main(list(words))
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


def at_change(number: int, folder: str, note: Path | None = None) -> Callable[[], None]:
    """Kill the process before its `number`-th change of files with `folder` in their path; count them in `note`."""

    def begin() -> None:
        seen = 0

        def hear(event: str, details: tuple[Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in CHANGES) and any(folder in str(detail) for detail in details[:2]):
                seen += 1
                if note is not None:
                    os.pwrite(counter, b"%9d" % seen, 0)
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        counter = os.open(note, os.O_CREAT | os.O_WRONLY) if note is not None else -1
        sys.addaudithook(hear)

    return begin


def after(seconds: float) -> Callable[[], None]:
    """Kill the process after so much time of the processor (a machine may be busy)."""

    def begin() -> None:
        signal.setitimer(signal.ITIMER_PROF, max(seconds, 0.001))  # its signal ends the process as SIGKILL does

    return begin


def contents(run: Path) -> dict[str, Any]:
    """Return what must be the same: every file's name, and its content but for times, versions and event files."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if name.startswith("tensorboard/"):
            continue
        found[name] = path.is_dir() or path.read_bytes()
        if path.suffix == ".jsonl":
            found[name] = [{key: row[key] for key in row.keys() - TIMES} for row in read_jsonl(path)]
        if path.name == "progress.pt":
            progress = torch.load(path, weights_only=True)
            found[name] = repr({key: value for key, value in progress.items() if key not in TIMES})
        # info.json has the digest of progress.pt; NOTES has the time at which each file was written
        if path.name in {"environment.json", "info.json", NOTES}:
            found[name] = True
    return found


def children_seconds() -> float:
    """Return the processor's time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Kills:
    """Kills of one kind of run: `begin` starts it at `run`, `resume` goes on."""

    def __init__(self, folder: Path, begin: Sequence[str], resume: Sequence[str]) -> None:
        """Do it once to its end.

        Args:
            folder: to work in; the commands' own paths are found from it.
            begin: the words that start a run at the folder `run`.
            resume: the words that go on with it.
        """
        self.run, self.log = Path("run"), Path("log")
        self.begin, self.resume = begin, resume
        os.chdir(folder)
        before = children_seconds()
        self._finish(begin, at_change(-1, "run", Path("changes")))
        self.seconds, self.changes = children_seconds() - before, int(Path("changes").read_text())
        self.whole = contents(self.run)

    def _finish(self, words: Sequence[str], end_at: Callable[[], object] = lambda: None) -> None:
        status = forked(words, self.log, end_at)
        assert status == 0, f"{words}: status {status}: {self._said()}"

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def case(self, number: int) -> str:
        """Kill a run at one to three moments that follow from the number, finish it and compare."""
        draw = random.Random(number)
        shutil.rmtree(self.run, ignore_errors=True)
        self.log.write_bytes(b"")
        words, kills = self.begin, 0
        for _ in range(draw.choice((1, 1, 2, 3))):
            late = after(draw.uniform(0, self.seconds))
            status = forked(words, self.log, draw.choice((late, at_change(draw.randint(1, self.changes), "run"))))
            if status == 0:  # it was done before the moment came
                break
            assert status in {-signal.SIGKILL, -signal.SIGPROF}, f"status {status}: {self._said()}"
            kills += 1
            words = self.resume if (self.run / "config.json").exists() else self.begin
        if kills == 0 or status != 0:
            self._finish(words if kills else self.resume)
        found = contents(self.run)
        other = [name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name)]
        assert not other, f"case {number}: {kills} kills: not the same: {sorted(other)}"
        return f"{kills} kills"


def pretraining(folder: Path) -> Kills:
    """Return the kills of a pre-training with previews, rows and checkpoints."""
    write_textures(folder / "images", 16)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    return Kills(folder, ("pretrain", "recipe.json", "--out", "run"), ("pretrain", "--resume", "run"))


def finetuning(folder: Path) -> Kills:
    """Return the kills of a fine-tuning from fresh weights."""
    labelled_folder(folder / "labelled", val=("cat", "dog"))
    spec = backbone_spec(load_recipe("debug").model, image_size=(32, 32), channels=3)
    save_backbone(folder / "weights.safetensors", build_backbone(spec), {"mean": [0.5] * 3, "std": [0.25] * 3})
    words = "--backbone weights.safetensors --data labelled --out run --epochs 8 --batch-size 4 --checkpoint-every 3"
    quiet = "--evaluate-epochs 2 --workers 0 --no-progress --device cpu --tensorboard"
    return Kills(folder, ("finetune", *words.split(), *quiet.split()), ("finetune", "--resume", "run"))


KINDS = {"pretraining": pretraining, "finetuning": finetuning}


def kill(kind: str, folder: Path, first: int, end: int) -> int:
    """Try the cases from `first` up to `end`, say what each came to, and return how many failed."""
    kills, failed = KINDS[kind](folder), 0
    print(f"whole: {kills.seconds:.1f} s, {kills.changes} changes of files, {len(kills.whole)} names", flush=True)
    for number in range(first, end):
        try:
            print(number, kills.case(number), flush=True)
        except AssertionError as error:
            failed += 1
            print(number, "FAILED", error, flush=True)
    print(f"{end - first} killed runs, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(1, kill(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
