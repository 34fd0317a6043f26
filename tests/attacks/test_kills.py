"""Runs killed at drawn moments end with the same files as runs left alone, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = [("pretraining", 0, 30), ("pretraining", 30, 60), ("finetuning", 0, 30)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("kind", "first", "end"), [("pretraining", 0, 30), ("pretraining", 30, 60), ("finetuning", 0, 30)]
)
def test_sixty_killed_runs(kind: str, first: int, end: int, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "attacks.kills", kind, str(tmp_path), str(first), str(end)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
