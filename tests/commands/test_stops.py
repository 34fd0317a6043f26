"""Each kind of training, stopped as people stop one: saved, said by the status, and resumed as if never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attacks.annotations import mask_files, write_segmented
from attacks.kills import RECIPE, contents
from commands.calls import labelled_folder
from commands.test_streams import may_mount
from data.pictures import write_textures
from evaluate.coco_folders import write_coco
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
QUIET = "--device cpu --precision fp32 --out run --checkpoint-every 1000"
TUNED = f"evaluate %s --backbone b.safetensors --data %s --checkpoints run/checkpoints --save-model run/model {QUIET}"
TASKS = {
    "pretraining": ("pretrain recipe.json --out run", "pretrain --resume run"),
    "finetuning": (
        f"finetune --backbone b.safetensors --data labelled {QUIET} --epochs 60 --batch-size 2 --tensorboard",
        "finetune --resume run",
    ),
    "segmentation": (TUNED % ("segmentation", "segmented") + " --train-backbone --steps 120 --batch-size 2", ""),
    "detection": (
        TUNED % ("detection", "coco") + " --epochs 150 --batch-size 2 --short-sides 48 --long-side 64 --channels 8"
        " --head-dim 16 --anchor-size 8",
        "",
    ),
}
"""What begins each, and what goes on with it where that is another command; all in a folder with `run` in it."""
WORKERS = {"pretraining": "--runtime.workers", "finetuning": "--workers"}


@dataclass(frozen=True)
class Trained:
    """A kind of training, the folder of its inputs and of `run`, and what a run that nobody stops leaves there."""

    kind: str
    folder: Path
    whole: dict[str, Any]


@pytest.fixture(scope="module", params=list(TASKS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    write_textures(folder / "images", 16)
    labelled_folder(folder / "labelled", val=("cat", "dog"))
    write_segmented(folder / "segmented", mask_files()[0])
    write_coco(folder / "coco")
    write_coco(folder / "coco", split="val")
    recipe = {**RECIPE, "train": {"epochs": 30}, "checkpoint": {"every_steps": 1000}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    save_backbone(folder / "b.safetensors", build_backbone(spec), {"mean": [0.5] * 3, "std": [0.25] * 3})
    done = subprocess.run(command(TASKS[request.param][0]), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Trained(request.param, folder, left(folder))


@pytest.fixture
def anew(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The same without its run, and its folder the working folder."""
    monkeypatch.chdir(trained.folder)
    shutil.rmtree("run", ignore_errors=True)
    Path("status").unlink(missing_ok=True)
    return trained


def command(words: str) -> list[str]:
    return [sys.executable, "-m", "mst", *words.split()]


NOTES = re.compile("checkpoints/|mst-written")
"""Files that hold when and how often something was written."""


def left(folder: Path) -> dict[str, Any]:
    """Return what a run leaves, but for times in rows of results, and for checkpoints (a resumed run has read them)."""
    found = {name: content for name, content in contents(folder / "run").items() if not NOTES.search(name)}
    for row in found.get("results.jsonl", ()):
        row["extra"] = {key: value for key, value in row.get("extra", {}).items() if "second" not in key}
    return found


def steps() -> int:
    """Return the last step that has a row, whole or half."""
    found = [re.findall(rb'"step": (\d+)', path.read_bytes()) for path in Path("run").rglob("metrics.jsonl")]
    return max((int(step) for numbers in found for step in numbers), default=0)


def in_a_terminal(words: list[str]) -> tuple[subprocess.Popen[Any], int]:
    """Start a shell line in the foreground of a new terminal; return it and the terminal's other end."""
    master, slave = pty.openpty()
    own = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    code = f"{own}; os.execvp(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    return process, master


def when_begun(process: subprocess.Popen[Any], master: int | None = None) -> None:
    """Wait until some steps are done; the terminal is read meanwhile, as a terminal is."""
    deadline = time.monotonic() + 300
    while steps() < 5 and process.poll() is None and time.monotonic() < deadline:
        if master is not None:
            os.set_blocking(master, False)
            with contextlib.suppress(BlockingIOError):
                os.read(master, 1 << 16)
        time.sleep(0.01)
    assert process.poll() is None, "it has ended before it could be stopped"


def control_c_and_tee(words: list[str]) -> int:
    """`mst ... 2>&1 | tee log` and Ctrl-C, which ends `tee` too."""
    script = '{ trap : INT; "$@"; echo $? > status; } 2>&1 | tee log'
    process, master = in_a_terminal(["bash", "-c", script, "bash", *words])
    when_begun(process, master)
    os.write(master, b"\x03")
    while process.poll() is None:
        try:
            os.read(master, 1 << 16)
        except OSError:
            time.sleep(0.01)
    os.close(master)
    deadline = time.monotonic() + 60
    while not Path("status").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return int(Path("status").read_text())


def lost_terminal(words: list[str]) -> int:
    process, master = in_a_terminal(words)
    when_begun(process, master)
    os.close(master)
    return process.wait(120)


def no_streams(words: list[str]) -> int:
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words])
    when_begun(process)
    process.send_signal(signal.SIGTERM)
    return process.wait(120)


STOPS: dict[str, tuple[Callable[[list[str]], int], int]] = {
    "Ctrl-C and tee": (control_c_and_tee, 130),
    "SIGHUP": (lost_terminal, 129),
    "no streams and SIGTERM": (no_streams, 143),
}


@pytest.mark.parametrize("stop", list(STOPS))
def test_stopped(stop: str, anew: Trained) -> None:
    begin, resume = TASKS[anew.kind]
    do, status = STOPS[stop]
    assert do(command(begin)) == status
    assert list(Path("run/checkpoints").glob("step_*"))
    done = subprocess.run(command(resume or begin), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resum" in done.stderr
    assert different(anew) == {}


def different(trained: Trained) -> dict[str, Any]:
    """Return what a run left otherwise than the one that nobody stopped: before, now."""
    found, whole = left(trained.folder), trained.whole
    return {
        name: (whole.get(name), found.get(name))
        for name in found.keys() | whole.keys()
        if found.get(name) != whole.get(name)
    }


def test_a_reader_that_leaves(anew: Trained) -> None:
    """`mst ... 2>&1 | grep -m1 step`: nobody reads the rest, and the training goes on to its end."""
    script = '{ "$@"; echo $? > status; } 2>&1 | grep -m1 -i step'
    subprocess.run(["bash", "-c", script, "bash", *command(TASKS[anew.kind][0])], capture_output=True)
    assert int(Path("status").read_text()) in {0, 141}  # 141: the table at the end had no reader
    assert different(anew) == {}


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount (root)")
@pytest.mark.parametrize("size", ["64m", "64k"])
def test_small_shared_memory(size: str, anew: Trained) -> None:
    if anew.kind not in WORKERS:
        pytest.skip("reads in threads: no shared memory")
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    words = [*command(TASKS[anew.kind][0]), WORKERS[anew.kind], "2"]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--shm-size") == (size == "64k")
    assert different(anew).keys() <= {"config.json", "plan.json"}  # which name the workers
