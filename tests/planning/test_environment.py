"""environment.json of a run that was resumed: what its earlier steps ran on is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mst.planning import environment
from mst.planning.environment import continued, cpu_name, describe_environment
from mst.report.page import Fact, environment_facts

A, B, C = ({"commit": letter, "torch": "2.8"} for letter in "abc")


def go_on(path: Path, now: dict[str, Any], step: int) -> dict[str, Any]:
    found = continued(now, path, step=step, last=100)
    path.write_text(json.dumps(found))
    return found


def test_what_earlier_steps_ran_on_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    assert go_on(path, A, 0) == A
    assert go_on(path, A, 10) == A
    assert go_on(path, B, 20) == {**B, "earlier": [{**A, "until_step": 20}]}
    assert go_on(path, C, 20)["earlier"] == [{**A, "until_step": 20}]  # b made no step
    assert go_on(path, A, 50) == {**A, "earlier": [{**A, "until_step": 20}, {**C, "until_step": 50}]}
    assert go_on(path, A, 30)["earlier"] == [{**A, "until_step": 20}, {**C, "until_step": 30}]  # gone back to step 30


def test_a_finished_run_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    go_on(path, A, 0)
    assert go_on(path, B, 100) == A


@pytest.mark.parametrize("text", ["", "[]", "{", '{"earlier": 3}', '{"earlier": [3, {"until_step": "x"}]}'])
def test_damaged_records_are_nothing_known(tmp_path: Path, text: str) -> None:
    path = tmp_path / "environment.json"
    path.write_text(text)
    assert continued(A, path, step=5, last=100) == A


def test_the_report_says_what_was_otherwise() -> None:
    facts = environment_facts({**B, "earlier": [{**A, "until_step": 1200}]})
    assert facts[-1] == Fact("until step 1\N{NARROW NO-BREAK SPACE}200", "commit a")


def test_the_processor_and_its_instructions_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: A Processor: Mark 2\nmodel name\t: another\n")
    monkeypatch.setattr(environment, "Path", lambda _: told)
    assert cpu_name() == f"A Processor: Mark 2, {torch.backends.cpu.get_cpu_capability()}"
    told.unlink()
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    assert cpu_name() == torch.backends.cpu.get_cpu_capability()
    monkeypatch.undo()
    assert describe_environment(torch.device("cpu"), "float32: asked for")["cpu"] == cpu_name()
