"""`mst submit slurm`: the script, what sbatch is given, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from commands.calls import call
from mst.commands import evaluate, finetune, pretrain
from mst.config.keys import flag, setting_fields
from mst.terminal.parsing import _leaves, split_words
from mst.workflows import submission
from mst.workflows.submission import SlurmOptions, file_system, seconds_of

RECIPE = ("debug", "--data.train", "pho tos", "--out", "it's 50% $HOME")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a 'quoted' folder"
    folder.mkdir()
    monkeypatch.chdir(folder)


def fake(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program before all others."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def script(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    answer = call(capsys, "submit", "slurm", *words, "--dry-run")
    assert answer.status == 0, answer.err
    return answer.out


def directives(text: str) -> dict[str, str]:
    """Return sbatch's options as a shell's words are read."""
    lines = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_script_says_all_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--nodes", "2", "--processes-per-node=4", "--gpus-per-node", "a100:4", "--cpus-per-process", "8")
    asked += ("--time", "8:00:00", "--partition", "gpu", "--account", "my lab", "--qos", "low", "--grace", "120")
    got = directives(script(capsys, "--mem", "64G", *RECIPE, *asked, "--constraint", "a&b", "--job_name", "x"))
    assert got == {
        "--job-name": "x",
        "--nodes": "2",
        "--ntasks-per-node": "4",
        "--gpus-per-node": "a100:4",
        "--cpus-per-task": "8",
        "--mem": "64G",
        "--time": "8:00:00",
        "--partition": "gpu",
        "--account": "my lab",
        "--qos": "low",
        "--constraint": "a&b",
        "--output": f"{Path.cwd()}/it's 50%% $HOME.slurm.log",
        "--open-mode": "append",
        "--requeue": "",
        "--signal": "USR1@120",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (RECIPE, ["pretrain", *RECIPE, "--continue"]),
        (("pretrain", *RECIPE), ["pretrain", *RECIPE, "--continue"]),
        (
            ("finetune", "--backbone", "scratch:vit_tiny_patch16_224", "--data", "d", "--out", "o"),
            ["finetune", "--backbone", "scratch:vit_tiny_patch16_224", "--data", "d", "--out", "o", "--continue"],
        ),
        (
            ("evaluate", "segmentation", "--backbone", "b", "--data", "d", "--checkpoints", "o"),
            ["evaluate", "segmentation", "--backbone", "b", "--data", "d", "--checkpoints", "o"],
        ),
        (
            ("evaluate", "detection", "--backbone", "b", "--data", "d", "--checkpoints", "o"),
            ["evaluate", "detection", "--backbone", "b", "--data", "d", "--checkpoints", "o"],
        ),
    ],
)
def test_the_command_gets_its_words_as_they_were(
    words: tuple[str, ...],
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = script(capsys, *words, "--cpus-per-process", "3")
    fake(tmp_path / "bin", "srun", 'printf "%s\\n" "$PWD" "$@"', monkeypatch)
    done = subprocess.run(["bash", "-c", text], cwd="/", capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        str(Path.cwd()),
        "--kill-on-bad-exit=1",
        "--cpus-per-task=3",
        sys.executable,
        "-m",
        "mst",
        *expected,
    ]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "case",
    [
        (0, True, "RUNNING", False),
        (1, True, "RUNNING", False),
        (2, True, "RUNNING", False),
        (130, True, "RUNNING", False),
        (138, False, "RUNNING", True),
        (140, False, "RUNNING", True),
        (143, False, "RUNNING", True),
        (143, False, "COMPLETING", False),
        (137, False, "RUNNING", False),
        (137, True, "RUNNING", True),
        (139, True, "RUNNING", True),
        (129, True, "RUNNING", True),
        (75, True, "RUNNING", True),
        (75, False, "RUNNING", False),
    ],
)
def test_goes_back_into_the_queue(
    case: tuple[int, bool, str, bool],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, saves, state, requeued = case
    text = script(capsys, *RECIPE)
    made = shlex.quote(f"{RECIPE[-1]}/checkpoints/step_7")
    fake(tmp_path / "bin", "srun", f"{f'mkdir -p {made}; ' if saves else ''}exit {status}", monkeypatch)
    fake(tmp_path / "bin", "squeue", f"echo {state}", monkeypatch)
    fake(tmp_path / "bin", "scontrol", 'echo "$@"', monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout == ("requeue 42\n" if requeued else "")


def test_submits_the_script_it_would_print(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "sbatch", 'printf "%s\\n" "$@" > "$RECORD"; echo "7;cluster"', monkeypatch)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    answer = call(capsys, "submit", "slurm", *RECIPE, "--json")
    row = json.loads(answer.out)
    assert row["job"] == "7"
    assert (tmp_path / "record").read_text().splitlines() == ["--parsable", row["script"]]
    assert Path(row["script"]).read_text() == script(capsys, *RECIPE)
    assert row["log"] == f"{Path.cwd()}/{RECIPE[-1]}.slurm.log"
    assert not Path(RECIPE[-1]).exists()


def test_what_sbatch_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"sbatch: error: invalid partition specified: q\nsbatch: error: Batch job submission failed: no\n"
    fake(tmp_path / "bin", "sbatch", f"printf '{said}' >&2; exit 1", monkeypatch)
    answer = call(capsys, "submit", "slurm", *RECIPE, "--partition", "q")
    assert answer.status == 2
    last = answer.err.splitlines()[-1]
    assert last == (
        "mst: error: sbatch refused the job: invalid partition specified: q; Batch job submission failed: no"
    )


def test_without_sbatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    answer = call(capsys, "submit", "slurm", *RECIPE)
    assert answer.status == 2
    assert "sbatch is not found" in answer.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a command"),
        (("debugg", *RECIPE[1:]), "unknown recipe debugg; did you mean debug?"),
        (("debug", "--out", "o"), "--data.train"),
        (("debug", "--data.train", "d"), "--out is missing"),
        ((*RECIPE, "--train.epoch", "3"), "did you mean --train.epochs?"),
        ((*RECIPE, "--resume", "o"), "--resume is not for a job"),
        ((*RECIPE, "--overwrite"), "--overwrite is not for a job"),
        ((*RECIPE, "--nodes", "0"), "--nodes 0: must be at least 1"),
        ((*RECIPE, "--nodes", "two"), "--nodes two: must be a whole number"),
        ((*RECIPE, "--nodes"), "--nodes needs a value"),
        ((*RECIPE, "--time", "3"), "--time 3 is 180 seconds"),
        ((*RECIPE, "--time", "soon"), "--time soon: must be minutes"),
        ((*RECIPE, "--grace", "90000"), "--grace 90000: must be between 1 and 65475"),
        ((*RECIPE, "--partition", "a\nb"), "--partition 'a\\nb'"),
        (("debug", "--data.train", "d", "--out", "a\nb"), "sbatch takes no such name"),
        (("evaluate", "knn", "--data", "d"), "evaluate knn is no training"),
        (("evaluate", "detection", "--data", "d", "--backbone", "b"), "--checkpoints is missing"),
        (("finetune", "--data", "d", "--out", "o"), "needs --backbone"),
    ],
)
def test_refused_in_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "submit", "slurm", *words)
    assert answer.status == 2
    assert said in answer.line
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 5400),
        ("5:30", 330),
        ("8:00:00", 28800),
        ("2-12", 216000),
        ("1-2:30", 95400),
        ("1-2:03:04", 93784),
        ("0", None),
        ("UNLIMITED", None),
    ],
)
def test_times(written: str, seconds: int | None) -> None:
    assert seconds_of(written) == seconds


def test_no_option_of_slurm_is_one_of_a_command() -> None:
    kinds = (
        pretrain.PretrainOptions,
        finetune.FinetuneArguments,
        evaluate.SegmentationArguments,
        evaluate.DetectionArguments,
    )
    taken = {flag(leaf.name) for kind in kinds for leaf, _ in _leaves(kind)} | set(map(flag, setting_fields()))
    assert {flag(own.name) for own in fields(SlurmOptions)} & taken == {"--json"}


def test_words_are_split() -> None:
    words = ["debug", "--nodes", "2", "--x", "1", "--dry_run", "y", "--time=5", "--no-json", "--mem"]
    assert split_words(SlurmOptions, words) == (
        ["--nodes", "2", "--dry_run", "--time=5", "--no-json", "--mem"],
        ["debug", "--x", "1", "y"],
    )


def test_file_system_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    here = str(tmp_path.resolve()).replace(" ", r"\040")
    mounts.write_text(f"root / ext4 rw 0 0\nserver:/x {here} nfs4 rw 0 0\nram {here}/a\\040b tmpfs rw 0 0\n")
    found = [file_system(path, mounts) for path in (Path("/"), tmp_path / "run", tmp_path / "a b" / "run")]
    assert found == ["ext4", "nfs4", "tmpfs"]
    assert file_system(tmp_path, tmp_path / "none") == ""


def test_warns_of_a_file_system_of_this_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "sbatch", "echo 7", monkeypatch)
    for kind, warned in (("ext4", True), ("nfs4", False), ("lustre", False)):
        monkeypatch.setattr(submission, "file_system", lambda path, kind=kind: kind)
        assert ("all nodes" in call(capsys, "submit", "slurm", *RECIPE).err) == warned
