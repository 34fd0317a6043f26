"""Random command lines: words, options and values of every command, misspelt, extreme and out of place."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import re
from pathlib import Path
from typing import Any

from attacks.watch import Case
from commands.calls import image_folder, labelled_folder
from mst.cli import COMMANDS, main
from mst.errors import UsageError

TASKS = {
    "evaluate": ("knn", "linear", "logistic", "retrieval", "segmentation", "detection", "objectness"),
    "predict": ("segmentation", "detection"),
}
"""Words that some commands have after their name."""
WORK = (
    ("mst.planning.setup", "Setup.build_pair"),
    ("mst.planning.setup", "prepare_process"),
    ("mst.planning.resolving", "device_facts"),
    ("mst.commands.quickstart", "quickstart"),
    ("mst.commands.ablate", "finish"),
    ("mst.workflows.embedding", "extract_features"),
    ("mst.workflows.finetuning.start", "Network.build"),
    ("mst.workflows.finetuning.run", "started_backbone"),
    ("mst.evaluate.classification.knn", "evaluate_knn"),
    ("mst.evaluate.classification.linear_probe", "evaluate_linear"),
    ("mst.evaluate.classification.logistic", "evaluate_logistic"),
    ("mst.evaluate.classification.retrieval", "evaluate_retrieval"),
    ("mst.evaluate.segmentation.evaluation", "evaluate_segmentation"),
    ("mst.evaluate.detection.evaluation", "evaluate_detection"),
    ("mst.evaluate.objectness.evaluation", "evaluate_objectness"),
)
"""What would take long: it refuses instead, after everything before it was checked."""
NUMBERS = (
    *("0", "1", "2", "3", "-1", "-0", "+1", "007", "1_000", "0x10", "1e3", "1.5", ".5", "1e308", "-1e308", "1e-320"),
    *("nan", "NaN", "inf", "-inf", "Infinity", "9" * 400, "2147483648", "9223372036854775808", "-9223372036854775809"),
    *(
        "18446744073709551616",
        "1e400",
        "0.1",
        "0.9999999999",
        "1.0000001",
        "٣",
        "\uff11\uff12",
        "1,5",
        "1 2",
        "½",
        "1e",
        "--1",
    ),
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "é" * 300,
        "x" * 70_000,
        "a\nb",
        "a\tb",
        "\x1b[31m",
        "[/red]",
        "[bold]",
        "[",
        "]",
        "{}",
        "{x}",
        "%s",
    ),
    *(
        "\udcff",
        "\ud800",
        "日本語",
        "\u202e",
        "e\u0301",
        "'",
        '"',
        "\\",
        "$HOME",
        "*",
        "?",
        "#",
        "@x",
        "@",
        "=",
        "a=b",
        ":",
    ),
    *("--", "-", "---", "-x", "--=", "--=x", "--x=y=z", "None", "none", "null", "true", "True", "false", "auto", "cpu"),
    *(
        "cuda:99",
        "cuda:x",
        "cuda:-1",
        "mps",
        "meta",
        "~",
        "~nouser/x",
        "../",
        ".",
        "..",
        "/proc/none/x",
        "a/b/c",
        "a\\b",
    ),
    *("timm:", "timm:x", "timm:vit_tiny_patch16_224", "random:", "random:run", "random:random:run", "x=y", "scenes:0"),
    *("scenes:9999999999", "scenes:x", "http://x/y", "*.jpg", "run", "images", "labelled", "list.txt", "config.json"),
    *(
        "run/config.json",
        "run/backbone.safetensors",
        "images/img_000.jpg",
        "fifo",
        "loop",
        "dead",
        "empty",
        "x.npy",
        "x.png",
    ),
    *(
        "train",
        "val",
        "vit_tiny",
        "swin_tiny",
        "debug",
        "own-images",
        "fp32",
        "bf16",
        "strategies",
        "class",
        "mean",
        "1:2",
    ),
)


def option_names(words: list[str]) -> list[str]:
    """Return the options that a command's help names."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        main([*words, "--help"])
    return sorted(set(re.findall(r"--[a-z][a-z0-9._-]*[a-z0-9]", shown.getvalue()))) or ["--help"]


def attack(folder: Path) -> Case:
    """Return the attack by one command line, in a folder with a run, images and odd entries."""
    _furnish(folder)
    os.environ |= {"MST_DEBUG": "1", "HOME": str(folder), "COLUMNS": "80"}
    forms = [[name, *rest] for name in COMMANDS for rest in [[], *([task] for task in TASKS.get(name, ()))]]
    options = {tuple(words): option_names(words) for words in forms}
    for module, name in WORK:
        _refuse(importlib.import_module(module), name)

    def case(number: int) -> str:
        words = command_line(random.Random(number), options)
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
        if status:
            assert said.endswith(errors[0] + "\n"), story
            assert len(errors[0]) < 10_000, story
        return f"status {status}"

    return case


def command_line(draw: random.Random, options: dict[tuple[str, ...], list[str]]) -> list[str]:
    """Return the words after `mst`: half of them near to sound ones."""
    form = draw.choice(list(options))
    words = list(form) if draw.random() < 0.93 else [_misspelt(draw.choice(form), draw), *form[1:]]
    known = options[form]
    if draw.random() < 0.6:  # what the command needs
        for name, value in (("--backbone", "run"), ("--data", draw.choice(("images", "labelled")))):
            words += [name, value] if name in known else []
        for name, value in (("--data.train", "images"), ("--out", f"out_{draw.randrange(99)}"), ("--model", "run")):
            words += [name, value] if name in known and draw.random() < 0.7 else []
        if form[0] in {"plan", "pretrain", "bench"}:
            words[1:1] = [draw.choice(("debug", "own-images", "quickstart"))]
        if form[0] in {"inspect", "report", "compare"}:
            words.append(draw.choice(("run", "images", "empty")))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        name = draw.choice(known)
        chance = draw.random()
        if chance < 0.1:
            name = _misspelt(name, draw)
        elif chance < 0.15:
            name = f"--no-{name[2:]}"
        elif chance < 0.2:
            name = name.replace("-", "_").replace("__", "--", 1)
        value = draw.choice(NUMBERS if draw.random() < 0.5 else TEXTS)
        words += draw.choice(([name, value], [name, value], [name, value], [f"{name}={value}"], [name], [value]))
        if draw.random() < 0.1:
            words += draw.choice(([name, value], [value] * draw.randrange(4), ["--json"]))
    if draw.random() < 0.1:
        draw.shuffle(words)
    return words


def _misspelt(word: str, draw: random.Random) -> str:
    at = draw.randrange(len(word))
    return draw.choice(
        (word[:at] + word[at + 1 :], word[:at] + draw.choice("aé[-=_.") + word[at:], word.upper(), word[::-1])
    )


def _furnish(folder: Path) -> None:
    images = image_folder(folder / "images", 16)
    labelled_folder(folder / "labelled")
    (folder / "list.txt").write_text(f"{images / 'img_000.jpg'}\nimages/none.jpg\n")
    (folder / "config.json").write_text('{"data.train": "images"}')
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dead").symlink_to("nowhere")
    settings = "--train.epochs 2 --runtime.workers 0 --runtime.device cpu --data.train images --out run"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["pretrain", "debug", *settings.split()]) == 0


def _refuse(module: Any, name: str) -> None:
    """Put a refusal in the place of a function or method, in every module that has imported it."""

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("the work would begin")

    if "." in name:
        owner, _, method = name.partition(".")
        setattr(getattr(module, owner), method, refuse)
        return
    sound = getattr(module, name)
    for other in list(importlib.import_module("sys").modules.values()):
        if getattr(other, "__name__", "").startswith("mst.") and getattr(other, name, None) is sound:
            setattr(other, name, refuse)
