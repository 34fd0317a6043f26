"""benchmarks/cuda.py: one line without a card; chunks that are done stay done; what hangs is ended; one JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STUB = """
import subprocess, sys, time
name, folder = sys.argv[2], sys.argv[sys.argv.index("--out") + 1]
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(folder + "/child", "w").write(str(child.pid))
    time.sleep(60)
print("some words")
print('{"answer": 42}' if name == "works" else "it does not work")
sys.exit(0 if name == "works" else 1)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("benchmarks_cuda", BENCHMARKS / "cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def plan(script: ModuleType, folder: Path) -> Any:
    return script.Plan("cpu", True, folder)


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "cuda.json").read_text()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["--out", str(tmp_path)], ["--device", "cpu", "--out", str(tmp_path)]):
        assert script.main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert "--small" in err
    assert list(tmp_path.iterdir()) == []


def test_the_limits(script: ModuleType) -> None:
    limits = [chunk.limit for chunk in script.CHUNKS.values()]
    assert max(limits) < 9 * 60
    assert sum(limits) <= 25 * 60


def test_what_is_done_stays_done(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []
    ends: dict[str, Any] = {"two": KeyboardInterrupt()}

    def carry_out(name: str, limit: float, plan: Any) -> dict[str, Any]:
        ran.append(name)
        if isinstance(ends.get(name), BaseException):
            raise ends[name]
        return {"status": ends.get(name, "done"), "seconds": 1.0, "result": {"number": len(ran)}}

    about = {"card": "H100", "rehearsal": False}
    monkeypatch.setattr(script, "carry_out", carry_out)
    monkeypatch.setattr(script, "identity", lambda plan: dict(about))
    chunks, own = {"one": 1.0, "two": 1.0, "three": 1.0}, plan(script, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        script.run_all(own, chunks)
    assert written(tmp_path)["complete"] is False
    ends["two"] = "failed"
    assert script.run_all(own, chunks) == 1
    assert ran == ["one", "two", "two", "three"]
    assert written(tmp_path)["complete"] is False
    ends["two"] = "done"
    assert script.run_all(own, chunks) == 0
    assert ran[4:] == ["two"]
    found = written(tmp_path)
    assert (found["complete"], found["card"], list(found["chunks"])) == (True, "H100", ["one", "two", "three"])
    assert found["chunks"]["one"] == {"status": "done", "seconds": 1.0, "result": {"number": 1}}
    about["card"] = "A100"
    assert script.run_all(own, chunks) == 0
    assert ran[5:] == ["one", "two", "three"]


def test_a_chunk_works_fails_or_hangs(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(script, "__file__", str(stub))
    own = plan(script, tmp_path)
    works = script.carry_out("works", 30, own)
    assert (works["status"], works["result"]) == ("done", {"answer": 42})
    fails = script.carry_out("fails", 30, own)
    assert fails["status"] == "failed"
    assert "it does not work" in fails["reason"]
    began = time.monotonic()
    hangs = script.carry_out("hangs", 3, own)
    assert hangs["status"] == "too long"
    assert time.monotonic() - began < 30
    child = int((tmp_path / "child").read_text())
    limit = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < limit
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rehearsal_fills_the_file(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "cuda.py"), "--device", "cpu", "--small", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = written(tmp_path)
    assert found["rehearsal"] is True
    assert found["card"].startswith("none")
    assert found["complete"] is True
    results = {name: row["result"] for name, row in found["chunks"].items()}
    assert results["tests"]["failed"] == []
    steps = results["step of deit-small"]
    assert steps["mst, compile off"]["step_images_per_second"] > 0
    assert steps["ratios"]["mst as DINO, compile off / DINO in plain torch"] > 0
    assert results["all cards"]["relative_difference_of_losses"] < 1e-3
    assert results["training"]["knn_top1"].keys() >= {"0", str(results["training"]["steps"])}
