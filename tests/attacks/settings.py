"""Every setting at its extremes: a plan and some steps of it, or one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from attacks.calls import NUMBERS, TEXTS
from attacks.watch import Case
from commands.calls import image_folder
from mst.cli import main
from mst.config.keys import flag, setting_fields
from mst.engine.trainer import Trainer
from mst.errors import UsageError

FAST = {"train.epochs": "2", "runtime.workers": "0", "runtime.device": "cpu", "data.train": "images"}
"""Of a training, where the setting that is tried is another one."""
ODD = (*NUMBERS, *(text for text in TEXTS if len(text) < 1000))
LIKELY = (
    *(
        "0",
        "1",
        "2",
        "3",
        "4",
        "7",
        "8",
        "16",
        "31",
        "32",
        "64",
        "96",
        "224",
        "256",
        "1000",
        "4096",
        "65536",
        "1000000",
    ),
    *("0.0", "1e-30", "1e-12", "1e-6", "0.001", "0.1", "0.5", "0.9", "0.999999", "1.0", "1.5", "10.0", "1e6", "1e30"),
    *("none", "true", "false", "auto", "1000000000", "-1", "-0.1", "4097"),
)
STEPS = 3
LATER = "enough steps"


def attack(folder: Path) -> Case:
    """Return the attack by one setting at one extreme: planned, then trained for some steps."""
    os.environ["MST_DEBUG"] = "1"
    image_folder(folder / "images", 8)
    settings = list(setting_fields())
    _end_early()

    def case(number: int) -> str:
        key, draw = settings[number % len(settings)], random.Random(number)
        words = [draw.choice(LIKELY if draw.random() < 0.7 else ODD) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
        options = [word for name, value in FAST.items() if name != key for word in (flag(name), value)]
        options += [flag(key), *words]
        planned = _said(["plan", "debug", *options, "--no-probe", "--json"])
        starts_others = key in {"runtime.processes", "runtime.workers"}
        trained = planned if starts_others else _said(["pretrain", "debug", *options, "--out", "run"])
        shutil.rmtree("run", ignore_errors=True)
        return f"plan {planned}, training {trained}"

    return case


def _said(words: list[str]) -> int:
    """Run a command; return its status, 0 too where it was ended on purpose."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    said = err.getvalue()
    story = f"{[word[:60] for word in words]}: status {status}: {said[-2500:]}"
    assert status in {0, 1, 2}, story
    assert "Traceback" not in said, story
    assert "this is a bug" not in said, story
    errors = [line for line in said.split("\n") if line.startswith("mst: error: ")]
    assert len(errors) == bool(status), story
    assert len("".join(errors)) < 10_000, story
    if status == 0 and "--json" in words:
        json.loads(out.getvalue(), parse_constant=_no_number)
    return 0 if errors and LATER in errors[0] else status


def _no_number(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def _end_early() -> None:
    """End each training after some steps."""
    sound = Trainer._step

    def step(self: Any, *arguments: Any, **named: Any) -> None:
        if self.state.step >= STEPS:
            raise UsageError(LATER)
        sound(self, *arguments, **named)

    Trainer._step = step  # type: ignore[method-assign]
