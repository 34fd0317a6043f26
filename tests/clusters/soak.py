"""Two processes of a run, killed at random again and again: `python tests/clusters/soak.py FOLDER [--minutes 30]`.

Runs a pre-training without a disturbance, then the same again and again under torchrun for so many minutes; now and
then a rank gets SIGKILL or SIGTERM, or the whole job is stopped and started anew, by the same command. Every run must
end with the bytes of the first. Prints what it saw and writes it to FOLDER/soak.json; status 1 if something differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from clusters.tiny import (  # noqa: E402  (found by the line above)
    Popen,
    last_step,
    outcome,
    pretrain,
    processes,
    rank_of,
    torchrun,
    write_recipe,
)

TORCHRUN = ("--standalone", "--nproc-per-node=2", "--max-restarts=1000")
PAUSE = (20.0, 60.0)
"""Seconds from a step after one disturbance to the next disturbance: at least, at most."""
PATIENCE = 300.0
"""Seconds without a step after which a run counts as hanging."""


def disturb(agent: Popen, mark: str, draws: random.Random) -> str:
    """Do something to the job; return what."""
    what = draws.choice(["SIGKILL rank 0", "SIGKILL rank 1", "SIGTERM rank 0", "SIGTERM rank 1", "SIGTERM agent"])
    name, _, who = what.partition(" ")
    with suppress(ProcessLookupError, ValueError):  # it has just ended
        os.kill(agent.pid if who == "agent" else rank_of(mark, int(who[-1])), signal.Signals[name])
    return what


def one_run(recipe: Path, folder: Path, draws: random.Random, seen: dict[str, Any]) -> None:
    """Run to the end through disturbances.

    Raises:
        RuntimeError: it hangs, or ends otherwise than it should.
    """
    run, log, mark = folder / "run", folder / "log", str(folder)
    while True:
        with torchrun(*TORCHRUN, *pretrain(recipe, run), log=log, mark=mark) as agent:
            _follow(agent, run, mark, draws, seen)
            status = agent.wait(60)
        if left := processes(mark):
            raise RuntimeError(f"left behind: {left}")
        if status == 0:
            return
        seen["job started anew"] += 1


def _follow(agent: Popen, run: Path, mark: str, draws: random.Random, seen: dict[str, Any]) -> None:
    """Watch one job to its end, and disturb it."""
    due = time.monotonic() + draws.uniform(*PAUSE)
    last, moved, since = last_step(run), time.monotonic(), None
    while agent.poll() is None:
        time.sleep(0.05)
        now, step = time.monotonic(), last_step(run)
        if step > last:
            last, moved = step, now
            if since is not None:
                seen["seconds to the next step"].append(round(now - since, 1))
                since, due = None, now + draws.uniform(*PAUSE)
        if now - moved > PATIENCE:
            raise RuntimeError(f"no step for {PATIENCE:.0f} s after step {last}")
        if since is None and now > due and step < seen["steps"]:
            seen["disturbances"][disturb(agent, mark, draws)] += 1
            since = now


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder, draws = given.folder.resolve(), random.Random(given.seed)
    seen: dict[str, Any] = {"steps": given.steps, "runs": 0, "equal": 0, "disturbances": Counter()}
    seen |= {"job started anew": 0, "seconds to the next step": []}
    folder.mkdir(parents=True)
    recipe = write_recipe(folder, steps=given.steps)
    with torchrun(*TORCHRUN, *pretrain(recipe, folder / "whole"), log=folder / "whole.log", mark=str(folder)) as agent:
        if agent.wait() != 0:
            raise RuntimeError((folder / "whole.log").read_text())
    end = time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        own = folder / f"run_{seen['runs']}"
        own.mkdir()
        one_run(recipe, own, draws, seen)
        seen["runs"] += 1
        seen["equal"] += outcome(own / "run") == outcome(folder / "whole")
        (folder / "soak.json").write_text(json.dumps(seen, indent=2) + "\n")
    waits = seen["seconds to the next step"] or [0.0]
    print(f"{seen['runs']} runs of {given.steps} steps, {seen['equal']} with the bytes of the undisturbed one")
    print(f"{sum(seen['disturbances'].values())} disturbances: {dict(seen['disturbances'])}")
    print(f"seconds to the next step: median {statistics.median(waits)}, at most {max(waits)}")
    return int(seen["equal"] != seen["runs"])


if __name__ == "__main__":
    sys.exit(main())
