"""Everything that only a CUDA card can show, in chunks: tests, speed of a step, all cards together, a short training.

`make cuda` runs it: at most 25 minutes, each chunk under nine. What is done is kept in OUT/chunks and not done again:
a run that was cut off goes on when it is started again, and a failed chunk is tried again. OUT/cuda.json has it all.
`--device cpu --small` rehearses the chunks with tiny networks; its file is marked as a rehearsal and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCENES = {"train": 2500, "val": 500}
TRAINING_SECONDS = 270.0
"""Of the short training, without its start and its evaluations."""
END = 15.0
"""Seconds between a signal that ends a chunk and one that kills it."""
STEP_KEYS = (
    *("step_images_per_second", "step_seconds", "memory_bytes", "images_per_pass", "batch"),
    *("step_flops_per_second", "ceiling_flops_per_second", "ceiling_share"),
)
Work = dict[str, Any]


class ChunkFailed(Exception):
    """What a chunk needed did not work."""


@dataclass(frozen=True)
class Plan:
    """What to run on.

    Attributes:
        device: cuda or cpu.
        small: tiny networks and few steps.
        out: folder of the results.
    """

    device: str
    small: bool
    out: Path

    @property
    def cards(self) -> int:
        """How many cards there are, or how many processes stand for them."""
        import torch

        return torch.cuda.device_count() if self.device == "cuda" else 2


def words(*parts: object) -> list[str]:
    """Return a command of this Python."""
    return [sys.executable, *map(str, parts)]


def output_of(command: Sequence[str], *, status: tuple[int, ...] = (0,)) -> str:
    """Run a command on this checkout; return its stdout.

    Raises:
        ChunkFailed: another exit status, with the end of what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode not in status:
        raise ChunkFailed(f"{' '.join(command[1:4])}: exit {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


def last_json(text: str) -> dict[str, Any]:
    """Return the JSON object with which an output ends: on its last line, or over several."""
    return dict(json.loads(text[text.rfind("\n{") + 1 :]))


def run_tests(plan: Plan) -> Work:
    """Run the tests that need a card; return how many passed, failed and were left out."""
    listing = plan.out / "tests.xml"
    some = ["tests/cuda", "tests/runtime"] if plan.small else ["tests"]
    output_of(words("-m", "pytest", "-q", "-m", "cuda", f"--junitxml={listing}", *some), status=(0, 1))
    suite = next(ET.parse(listing).iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed}


def bench(plan: Plan, recipe: str, batch: int, compiled: str) -> Work:
    """Return the speed of a recipe's step with so many images."""
    tiny = ("--model.embed-dim", 32, "--model.depth", 2, "--model.num-heads", 2)
    sizes = ("--views.global-size", 64, "--views.local-size", 32, *tiny) if plan.small else ()
    same = ("--model.prototypes", 64 if plan.small else 65536, "--runtime.precision", "bf16")  # as dino_step.py
    output = output_of(
        words(
            *("-m", "mst", "bench", recipe, "--json", "--steps", 2 if plan.small else 30, "--seconds", 20),
            *("--runtime.device", plan.device, "--runtime.compile", compiled),
            *("--train.batch-size", 2 if plan.small else batch, "--train.accumulate", 1, *same, *sizes),
        )
    )
    found = last_json(output)
    return {key: found[key] for key in STEP_KEYS if key in found}


def measure_steps(plan: Plan, name: str, batch: int, *, beside: bool) -> Work:
    """Return the speed of a step, plain and compiled, and of DINO's own arrangement `beside` ours as DINO."""
    modes = ("off",) if plan.small else ("off", "on")
    found = {f"mst, compile {mode}": bench(plan, f"{name}-in1k-100ep", batch, mode) for mode in modes}
    if beside:
        found |= {f"mst as DINO, compile {mode}": bench(plan, f"{name}-in1k-100ep-dino", batch, mode) for mode in modes}
        sizes = ("--side", 64, "--local-side", 32, "--prototypes", 64, "--steps", 4, "--small") if plan.small else ()
        images = found["mst as DINO, compile off"]["images_per_pass"]
        output = output_of(words(HERE / "dino_step.py", "--device", plan.device, "--batch", images, *sizes))
        found["DINO in plain torch"] = last_json(output)
        rates = {key: row["step_images_per_second"] for key, row in found.items()}
        found["ratios"] = {
            f"{key} / DINO in plain torch": rate / rates["DINO in plain torch"]
            for key, rate in rates.items()
            if key.startswith("mst as DINO")
        }
    return found


def drawn_scenes(plan: Plan) -> Path:
    """Return a folder of labelled scenes, drawn once."""
    folder = plan.out / "scenes"
    if not (folder / "complete").exists():
        from mst.data.synthetic.scenes import write_scene_folder

        counts = {"train": 48, "val": 16} if plan.small else SCENES
        write_scene_folder(folder, counts, 32 if plan.small else 128, 0)
        (folder / "complete").touch()
    return folder


def train(plan: Plan, name: str, processes: int, *settings: object) -> tuple[list[dict[str, Any]], float]:
    """Pre-train anew in processes started by torchrun (0: without it); return metrics.jsonl and the seconds it took."""
    recipe = "quickstart" if plan.small else "vit-small-imagenette128"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes) if processes else ()
    began = time.perf_counter()
    run = plan.out / name
    tiny = ("--views.global-size", 32, "--views.local-size", 16) if plan.small else ()
    output_of(
        words(
            *(*launcher, "-m", "mst", "pretrain", recipe, "--data.train", drawn_scenes(plan) / "train"),
            *("--out", run, "--overwrite", "--runtime.device", plan.device, *tiny, *settings),
        )
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, time.perf_counter() - began


def use_all_cards(plan: Plan) -> Work:
    """Train the same steps on one card and on all of them; return speeds and how far the losses are apart."""
    batch, steps = (16, 6) if plan.small else (64 * plan.cards, 60)
    images = (48 if plan.small else SCENES["train"]) // batch * batch
    settings = (
        *("--train.batch-size", batch, "--train.epochs", steps * batch / images, "--runtime.compile", "off"),
        *("--monitor.every-steps", steps // 3, "--checkpoint.every-steps", steps),
    )
    found: dict[str, Any] = {"batch_size": batch, "steps": steps}
    losses = []
    for processes in sorted({1, plan.cards}):
        rows, seconds = train(plan, f"processes-{processes}", processes, *settings)
        last = [row for row in rows if row.get("loss") is not None][-1]
        found[f"{processes} processes"] = {
            **{key: last[key] for key in ("loss", "images_per_second", "data_wait")},
            "seconds": seconds,
        }
        losses.append(last["loss"])
    return {**found, "relative_difference_of_losses": abs(losses[-1] - losses[0]) / abs(losses[0])}


def train_shortly(plan: Plan) -> Work:
    """Pre-train for five minutes with k-NN before, while and after; return speed and accuracies."""
    scenes = drawn_scenes(plan)
    steps, batch, images = (4, 16, 48) if plan.small else (60, 256, SCENES["train"])
    settings = ("--train.batch-size", batch, "--monitor.knn-data", scenes)
    per_epoch = images // batch
    probe = ("--train.epochs", steps / per_epoch, "--monitor.every-steps", steps // 2)
    rows, _ = train(plan, "probe", 0, *settings, *probe)
    rate = [row for row in rows if row.get("images_per_second")][-1]["images_per_second"]
    if not plan.small:
        steps = max(steps, round(TRAINING_SECONDS * rate / batch))
    often = ("--monitor.every-steps", max(1, steps // 20), "--monitor.knn-every-steps", max(1, steps // 4))
    rows, seconds = train(plan, "training", 0, *settings, "--train.epochs", steps / per_epoch, *often)
    accuracies = {row["step"]: row["knn_top1"] for row in rows if row.get("knn_top1") is not None}
    trained = [row for row in rows if row.get("loss") is not None]
    return {
        "steps": steps,
        "seconds": seconds,
        "images_per_second": trained[-1]["images_per_second"],
        "data_wait": trained[-1]["data_wait"],
        "loss": {row["step"]: row["loss"] for row in trained},
        "knn_top1": accuracies,
    }


@dataclass(frozen=True)
class Chunk:
    """Part of the work: what it returns, and the seconds after which it is ended."""

    work: Callable[[Plan], Work]
    limit: float


CHUNKS = {
    "tests": Chunk(run_tests, 240),
    "step of deit-small": Chunk(lambda plan: measure_steps(plan, "deit-small", 128, beside=True), 440),
    "step of swin-tiny": Chunk(lambda plan: measure_steps(plan, "swin-tiny", 64, beside=False), 240),
    "all cards": Chunk(use_all_cards, 200),
    "training": Chunk(train_shortly, 380),
}


def carry_out(name: str, limit: float, plan: Plan) -> dict[str, Any]:
    """Run one chunk in processes of its own; return its row: status done, failed or too long."""
    small = ["--small"] if plan.small else []
    command = words(__file__, "--chunk", name, "--device", plan.device, "--out", plan.out, *small)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    began = time.perf_counter()
    with (plan.out / "log.txt").open("a", encoding="utf-8") as log:
        print(f"\n== {name}", file=log, flush=True)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
        ) as process:
            try:
                said, status = process.communicate(timeout=limit)[0], "done" if process.returncode == 0 else "failed"
            except BaseException as error:
                end_group(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                said, status = "", "too long"
    row = {"status": status, "seconds": round(time.perf_counter() - began, 1)}
    if status == "done":
        return {**row, "result": last_json("\n" + said)}
    return {**row, "reason": f"longer than {limit:g} s" if status == "too long" else said.strip()[-500:]}


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    for number, patience in ((signal.SIGTERM, END), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def identity(plan: Plan) -> dict[str, Any]:
    """Return what a chunk's result belongs to; on anything else it is done again."""
    import torch
    from machine import machine

    about = machine()
    return {
        "rehearsal": plan.device != "cuda" or plan.small,
        "card": torch.cuda.get_device_name() if plan.device == "cuda" else "none: a rehearsal on a CPU",
        "cards": torch.cuda.device_count() if plan.device == "cuda" else 0,
        "commit": about["commit"],
        "versions": about["versions"],
    }


def run_all(plan: Plan, chunks: dict[str, float]) -> int:
    """Run the chunks that are not done yet, write cuda.json after each; return the exit status."""
    (plan.out / "chunks").mkdir(parents=True, exist_ok=True)
    about, rows = identity(plan), dict[str, Any]()
    for name, limit in chunks.items():
        file = plan.out / "chunks" / f"{name.replace(' ', '-')}.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if before.get("identity") == about and before.get("status") == "done":
            print(f"{name}: done before", flush=True)
        else:
            print(f"{name}: at most {limit / 60:.0f} minutes", flush=True)
            before = {"identity": about, **carry_out(name, limit, plan)}
            write(file, before)
            print(f"{name}: {before['status']} after {before['seconds']:.0f} s", flush=True)
        rows[name] = {key: value for key, value in before.items() if key != "identity"}
        complete = len(rows) == len(chunks) and all(row["status"] == "done" for row in rows.values())
        write(plan.out / "cuda.json", {**about, "complete": complete, "chunks": rows})
    failed = [name for name, row in rows.items() if row["status"] != "done" or row["result"].get("failed")]
    said = f"not done: {', '.join(failed)}; see {plan.out / 'log.txt'}, then run it again" if failed else "all is done"
    print(f"{plan.out / 'cuda.json'}: {said}")
    return int(bool(failed))


def write(file: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    aside = file.with_suffix(".aside")
    aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    aside.replace(file)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, refuse where there is no card, run the chunks; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "cuda")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks, few steps: a rehearsal")
    parser.add_argument("--chunk", choices=CHUNKS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("cuda.py: error: torch sees no CUDA card here: use --device cpu --small to rehearse", file=sys.stderr)
        return 2
    if args.device == "cpu" and not args.small:
        print("cuda.py: error: --device cpu can only rehearse: add --small", file=sys.stderr)
        return 2
    plan = Plan(args.device, args.small, args.out.resolve())
    if args.chunk is None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the chunk at work, too
        return run_all(plan, {name: chunk.limit for name, chunk in CHUNKS.items()})
    try:
        print(json.dumps(CHUNKS[args.chunk].work(plan)))
    except ChunkFailed as failure:
        print(failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
