"""Report and model card say what was done: for each kind of run, and for one that is not finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mst.report.markdown import code, text
from mst.report.numbers import NONE
from mst.report.page import write_report
from mst.report.reading import read_run
from mst.report.story import tell
from mst.runtime.storage.results import append_jsonl
from mst.runtime.storage.rundir import RunDir

MST: dict[str, Any] = {"strategy": "attention_low", "restoration_weight": 0.6, "distillation_weight": 1.0}


def pretraining(root: Path, **sections: dict[str, Any]) -> RunDir:
    run = RunDir(root)
    root.mkdir(parents=True)
    run.config.write_text(json.dumps({"recipe": "mine", "objective": MST, **sections}))
    run.plan.write_text(json.dumps({"total_steps": 10}))
    append_jsonl(run.metrics, {"step": 10, "loss": 1.0, "lr": 0.1})
    return run


def finetuning(root: Path, backbone: str, *, done: bool = True) -> RunDir:
    run = RunDir(root)
    root.mkdir(parents=True)
    run.config.write_text(json.dumps({"task": "finetune", "recipe": "finetune", "settings": {"backbone": backbone}}))
    run.plan.write_text(json.dumps({"spec": {"name": "vit_small", "patch_size": 16}, "total_steps": 10, "classes": 2}))
    for step in range(1, 11 if done else 4):
        append_jsonl(run.metrics, {"step": step, "loss": 1.0 / step, "lr": 0.1, "val_top1": 50.0})
    if done:
        append_jsonl(run.results, {"task": "finetune", "metrics": {"top1": 75.0}, "backbone": backbone})
    return run


def both(run: RunDir) -> str:
    return write_report(run).read_text() + (run.root / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("runs/a", "Fine-tuning: backbone and linear classifier trained on labelled images, from the backbone runs/a"),
        ("random:runs/a", "Supervised training: backbone and linear classifier trained on labelled images, from fresh"),
        ("scratch:vit_small", "from fresh weights (vit"),
        ("timm:vit_small.dino", "from the released weights vit"),
        ("vit_small=dino.pth", "in dino.pth"),
    ],
)
def test_a_fine_tuning_used_labels(tmp_path: Path, backbone: str, said: str) -> None:
    run = finetuning(tmp_path / "tuned", backbone)
    assert said in tell(read_run(run)).subtitle
    text_of = both(run)
    assert "No labels" not in text_of
    assert "elf-supervised" not in text_of.replace("Masked Self-Supervised", "")
    assert "The labels of all training images were used." in text_of
    assert "Labels are used to measure, never to learn" not in text_of
    assert "teacher" not in text_of.replace("Share of the teacher", "")
    card = (run.root / "model_card.md").read_text()
    assert f"| Fine-tuning | top-1 | {NONE} | 75.0 |" in card  # trained, not "untrained", from random: as well
    assert "NeurIPS" not in card
    assert "Unfinished" not in card


def test_an_unfinished_fine_tuning_is_called_so(tmp_path: Path) -> None:
    run = finetuning(tmp_path / "tuned", "runs/a", done=False)
    page, card = write_report(run).read_text(), (run.root / "model_card.md").read_text()
    assert "unfinished: step 3 of 10" in page
    assert "The run is not finished: step 3 of 10 (go on with mst finetune --resume)." in page
    assert "**Unfinished: step 3 of 10.**" in card
    assert "Not finished, so not scored yet" in card


def test_pre_training_and_where_it_began(tmp_path: Path) -> None:
    fresh = both(pretraining(tmp_path / "a"))
    assert "No labels were used for training." in fresh
    assert "Masked self-distillation with restoration (MST), learned from images without labels." in fresh
    begun = both(pretraining(tmp_path / "b", model={"init_from": "timm:deit_small"}))
    assert "No labels were used for training." not in begun
    assert "How the weights of timm:deit" in begun
    restored = tell(read_run(pretraining(tmp_path / "c", objective={**MST, "distillation_weight": 0.0})))
    assert restored.subtitle.startswith("Restoration of masked images without self-distillation")
    cell = pretraining(tmp_path / "d")
    cell.ablation.write_text("{}")
    assert tell(read_run(cell)).subtitle.endswith("one run of an ablation")


def test_settings_that_cannot_be_read_are_no_reason_to_claim_anything(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "a")
    run.config.write_text("{")
    text_of = both(run)
    assert "what was done is not known" in text_of
    assert "No labels" not in text_of


def test_both_texts_on_the_center_are_one() -> None:
    from mst.train.monitors import collapse_message

    told = collapse_message({"teacher_entropy": 0.0, "marginal_entropy": 0.0, "feature_std": 1.0}, prototypes=64)
    assert told is not None
    assert told.endswith("lower --objective.center-momentum, or raise --objective.teacher-temp")


@pytest.mark.parametrize(
    ("value", "running", "span"),
    [
        ("a[red](x)", r"a\[red\](x)", "`a[red](x)`"),
        ("a|b\nc", r"a\|b c", r"`a\|b c`"),
        ("*`_<b>", r"\*\`\_\<b\>", "`` *`_<b> ``"),
        ("plain", "plain", "`plain`"),
    ],
)
def test_names_in_markdown(value: str, running: str, span: str) -> None:
    assert (text(value), code(value)) == (running, span)


@pytest.mark.parametrize("name", [b"a [red] | `x` <b> & $1$", b"\xff\xfe run", "Straße\u0301 ".encode(), b"# x\n- y"])
def test_odd_names_of_runs(tmp_path: Path, name: bytes) -> None:
    run = pretraining(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    page = write_report(run).read_text(encoding="utf-8")
    card = (run.root / "model_card.md").read_text(encoding="utf-8")
    assert "<b>" not in page
    heading = card.splitlines()[5]
    assert heading.startswith("# ")
    assert "[red]" not in heading
    assert "\n- y" not in card
    assert b"\xff" not in name or "\\xff\\xfe run" in page
