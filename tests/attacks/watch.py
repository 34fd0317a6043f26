"""Runs numbered attacks in a process of its own and measures each: what it says, time, memory, other programs."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 10.0
"""Seconds that one case may take, those in which other programs had the processor not counted."""
LARGEST = 1 << 30
"""Bytes of memory that one case may take beyond the process before its first."""
OTHER_PROGRAMS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.spawn"}

Case = Callable[[int], str]
"""A case by its number: does it, and returns a word for the count; an assertion that fails is a finding."""


@dataclass
class Watched:
    """What a row of attacks came to: counts by outcome, findings, the longest time and the largest memory."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0

    def with_more(self, more: Watched) -> Watched:
        """Return what both came to."""
        return Watched(
            self.outcomes + more.outcomes,
            self.findings + more.findings,
            max(self.seconds, more.seconds),
            max(self.memory, more.memory),
        )

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        return (
            f"{sum(self.outcomes.values())} cases ({kinds}); {len(self.findings)} findings; "
            f"longest {self.seconds:.2f} s; most memory {self.memory >> 20} MB beyond the bare process"
        )


def watch(make: Callable[..., Case], numbers: Sequence[int], *arguments: Any) -> Watched:
    """Run cases `make(folder, *arguments)(number)` in child processes; a case that ends its process is a finding.

    Args:
        make: a function of a module that can be imported by its name; its arguments are JSON.
        numbers: of the cases; each is the seed of its draws.
    """
    found, left = Watched(), list(numbers)
    while left:
        with tempfile.TemporaryDirectory(prefix="mst-attack-") as folder:
            order = Path(folder, "order.json")
            order.write_text(json.dumps([make.__module__, make.__name__, left, arguments]))
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            with open(order.with_name("stderr"), "wb") as said:
                status = subprocess.run([sys.executable, __file__, str(order)], stderr=said, env=environment).returncode
            assert order.with_name("rows").exists(), order.with_name("stderr").read_text(errors="replace")[-3000:]
            rows = [json.loads(line) for line in order.with_name("rows").read_text().splitlines()]
            trace = order.with_name("stderr").read_text(errors="replace")[-3000:]
        for row in rows:
            found.outcomes[row["outcome"]] += 1
            found.seconds, found.memory = max(found.seconds, row["seconds"]), max(found.memory, row["memory"])
            found.findings += [f"case {row['number']}: {text}" for text in row["findings"]]
        left = left[len(rows) :]
        if left and status:
            found.findings.append(f"case {left[0]}: ended the process with {status}: {trace}")
            found.outcomes["process ended"] += 1
            left = left[1:]
    return found


def _run(order: Path) -> None:
    """Run the cases of an order, one row each."""
    module, name, numbers, arguments = json.loads(order.read_text())
    started: list[str] = []

    def hear(event: str, details: tuple[Any, ...]) -> None:
        if event in OTHER_PROGRAMS and not (
            details and str(details[0]).endswith("git")
        ):  # notes the commit of the code
            started.append(f"{event} {details}"[:300])

    sys.addaudithook(hear)
    work = order.with_name("work")
    work.mkdir()
    os.chdir(work)
    case = getattr(importlib.import_module(module), name)(work, *arguments)
    _forget_peak()
    bare = _memory()
    with open(order.with_name("rows"), "w", buffering=1, encoding="utf-8") as rows:
        for number in numbers:
            faulthandler.dump_traceback_later(12 * LONGEST, exit=True)  # by the clock, on a machine that may be busy
            started.clear()
            row = _measured(case, number, bare)
            row["findings"] += [f"started another program: {event}" for event in started]
            rows.write(json.dumps(row) + "\n")
    faulthandler.cancel_dump_traceback_later()


def _measured(case: Case, number: int, bare: int) -> dict[str, Any]:
    findings: list[str] = []
    _forget_peak()
    begin, kept = time.perf_counter(), _kept_waiting()
    try:
        outcome = case(number)
    except BaseException as error:
        outcome = "finding"
        findings.append(_story(error))
    seconds = time.perf_counter() - begin - (_kept_waiting() - kept)
    memory = max(0, _memory() - bare)
    if seconds > LONGEST:
        findings.append(f"took {seconds:.1f} s")
    if memory > LARGEST:
        findings.append(f"took {memory >> 20} MB")
    return {"number": number, "outcome": outcome, "seconds": seconds, "memory": memory, "findings": findings}


def _story(error: BaseException) -> str:
    import traceback

    return f"{type(error).__name__}: {error} {''.join(traceback.format_exception(error)[-4:])}"[-3000:]


def _kept_waiting() -> float:
    """Return the seconds in which the main thread could have gone on, but others had the processor; 0 if not told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _forget_peak() -> None:
    """Let the peak of the memory start anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory() -> int:
    """Return the most bytes in memory since the peak was forgotten; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
