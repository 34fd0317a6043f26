"""Damaged files of run folders, checkpoints, models and features into the commands that read them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from attacks.images import damaged_image
from attacks.watch import Case
from commands.calls import image_folder, labelled_folder
from evaluate.common.test_model_files import save_a_detector, save_a_segmenter
from mst.checkpoint.format import INFO, read_folder, write_folder
from mst.cli import main
from report.damage import ODD, damaged

QUICK = ("--runtime.workers", "0", "--runtime.device", "cpu", "--train.epochs", "2", "--data.train", "images")
TUNE = (
    "--epochs",
    "1",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--no-progress",
    "--device",
    "cpu",
    "--data",
    "labelled",
)
KNN = ("--data", "labelled", "--no-progress", "--device", "cpu")
PREDICT = ("--data", "few", "--no-progress", "--device", "cpu", "--out", "found", "--precision", "fp32")
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pre": (
        *(("report", "pre"), ("report", "pre"), ("compare", "pre", "pre2"), ("compare", "pre2", "pre")),
        ("evaluate", "knn", "--backbone", "pre", *KNN),
        ("pretrain", "--resume", "pre"),
        ("export", "--backbone", "pre", "--out", "exported"),
    ),
    "tuned": (
        *(("report", "tuned"), ("compare", "tuned", "pre2"), ("compare", "pre2", "tuned")),
        ("evaluate", "knn", "--backbone", "tuned", *KNN),
        ("finetune", "--resume", "tuned"),
    ),
    "checkpoints": (("pretrain", "--resume", "pre"),),
    "tuned checkpoints": (("finetune", "--resume", "tuned"),),
    "tuned results": (("finetune", "--resume", "tuned"), ("finetune", "--resume", "tuned", "--json")),
    "segmenter": (("predict", "segmentation", "--model", "segmenter", *PREDICT),),
    "detector": (("predict", "detection", "--model", "detector", *PREDICT),),
    "features": (("evaluate", "knn", "--backbone", "pre2", "--features", "features", *KNN),),
    "lists": (("embed", "--backbone", "pre2", "--data", "lists/list.txt", "--out", "found.npy"),),
    "recipes": (("plan", "recipes/recipe.json", "--no-probe"), ("pretrain", "recipes/recipe.json", "--out", "none/x")),
}
"""What reads the files of a folder."""
WEIGHTS = (10, 4, 2, 1, 1, 2, 2, 1, 1, 1)
PLACES = {"checkpoints": "pre/checkpoints", "tuned checkpoints": "tuned/checkpoints", "tuned results": "tuned"}
"""Folders of those readers that are not called as theirs."""


def attack(folder: Path) -> Case:
    """Return the attack by one damaged file of a run folder, a checkpoint, a model, features, a list or a recipe."""
    _furnish(folder)
    os.environ["MST_DEBUG"] = "1"
    shutil.copytree(folder, folder.with_name("sound"))
    sound = folder.with_name("sound")

    def case(number: int) -> str:
        draw = random.Random(number)
        (kind,) = draw.choices(list(READERS), WEIGHTS)
        place = PLACES.get(kind, kind)
        shown = damage(sound / place, folder / place, draw, "results.jsonl" if kind == "tuned results" else "*")
        if kind == "tuned checkpoints":  # else it is finished, and none is read
            (folder / "tuned" / "results.jsonl").unlink()
        words = list(draw.choice(READERS[kind]))
        if kind in {"pre", "tuned"} and shown.startswith("backbone"):
            words = list(draw.choice(READERS[kind][-3:]))
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(words)
        finally:
            _mend(sound, folder)
        said = err.getvalue()
        story = f"{shown} into {words}: status {status}: {said[-2500:]}"
        assert status in {0, 1, 2}, story
        assert "Traceback" not in said, story
        assert "this is a bug" not in said, story
        errors = [line for line in said.split("\n") if line.startswith("mst: error: ")]
        assert len(errors) == bool(status), story
        return f"{kind}: {status}"

    return case


def damage(sound: Path, work: Path, draw: random.Random, names: str = "*") -> str:
    """Damage one file of such names below a folder, and return which."""
    files = [
        path for path in sorted(sound.rglob(names)) if path.is_file() and path.suffix not in {".png", ".html", ".md"}
    ]
    file = draw.choice([path for path in files if ".vm." not in path.name])
    target = work / file.relative_to(sound)
    if file.suffix == ".pt" and draw.random() < 0.6:
        return _forge(file.parent, target.parent, draw)
    content = file.read_bytes()
    text = file.suffix in {".json", ".jsonl"} and draw.random() < 0.85
    target.write_bytes(damaged(content, draw) if text else damaged_image(content, files[0].read_bytes(), draw))
    return file.name


def _forge(sound: Path, work: Path, draw: random.Random) -> str:
    """Change what a checkpoint holds, under right digests."""
    saved = read_folder(sound)
    name = draw.choice(sorted(saved.parts))
    for _ in range(draw.choice((1, 1, 3))):
        _change(saved.parts[name], draw)
    shutil.rmtree(work)
    work.mkdir()
    write_folder(work, saved.step, saved.parts, saved.info)
    return f"forged {name}"


def _change(part: Any, draw: random.Random) -> None:
    while isinstance(part, dict) and part:
        key = draw.choice(list(part))
        value = part[key]
        if not isinstance(value, dict) or not value or draw.random() < 0.1:
            match draw.randrange(4):
                case 0:
                    del part[key]
                case 1:
                    part[f"{key}x"] = value
                case 2:
                    part[key] = draw.choice([odd for odd in ODD if odd != 10**400])
                case _:
                    part[key] = _other_tensor(value, draw) if isinstance(value, torch.Tensor) else torch.zeros(3)
            return
        part = value


def _other_tensor(value: torch.Tensor, draw: random.Random) -> torch.Tensor:
    value = torch.ones(2, 3) if value.is_meta or value.is_sparse else value
    others = (
        *(value[None], value.flatten()[:1], value.double(), value.to(torch.int8), value * float("nan"), value.half()),
        *(torch.zeros(()), torch.zeros(0), value.to_sparse(), torch.empty(value.shape, device="meta"), value.T, -value),
    )
    return draw.choice(others)


def _mend(sound: Path, work: Path) -> None:
    """Put back whatever the damage or a command changed."""
    known = {path.relative_to(sound): path for path in sound.rglob("*") if path.is_file()}
    for path in sorted(work.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(work) not in known:
            path.unlink()
    for name, path in known.items():
        target = work / name
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _furnish(folder: Path) -> None:
    """Write a pre-training twice, a fine-tuning, two models, features, a list and a recipe."""
    image_folder(folder / "images", 16)
    image_folder(folder / "few", 2)
    labelled_folder(folder / "labelled", val=("cat", "dog"))
    for words in (
        ["pretrain", "debug", "--out", "pre", *QUICK],
        ["evaluate", "knn", "--backbone", "pre", "--features", "features", *KNN],
        ["finetune", "--backbone", "pre", "--out", "tuned", *TUNE],
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
            assert main(words) == 0, err.getvalue()
    (folder / "pre" / "unreadable.txt").write_text("a.jpg\ttruncated\n")
    shutil.copytree(folder / "pre", folder / "pre2")
    save_a_segmenter(folder / "segmenter")
    save_a_detector(folder / "detector")
    for name in ("lists", "recipes"):
        (folder / name).mkdir()
    paths = sorted((folder / "few").rglob("*.jpg"))
    names = "".join(f"../{path.relative_to(folder)}\n" for path in paths)  # cut short, none leads out of the folder
    (folder / "lists" / "list.txt").write_text(names)
    recipe = {"recipe": "debug", "data": {"train": "images"}, "runtime": {"workers": 0}, "train": {"epochs": 2}}
    (folder / "recipes" / "recipe.json").write_text(json.dumps(recipe))
    assert (folder / "pre" / "checkpoints" / "step_4" / INFO).exists()
