"""Compare exact k-NN search with a plain chunked torch version and, where it is installed, faiss-cpu's flat index.

100,000 x 10,000 features of 384 numbers, k = 200. Each repetition runs every contender in a fresh process, in turn, and
takes wall time, CPU time and the memory that the search adds to the features; prints medians, spreads and ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
MEASURES = ("seconds", "cpu_seconds", "added_gb", "whole_process_gb")


def features(count: int, dim: int, seed: int) -> Tensor:
    """Return clustered random features [count, dim]: a hundred centres and noise."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(100, dim, generator=torch.Generator().manual_seed(0))
    return centres[torch.randint(100, (count,), generator=draw)] + torch.randn(count, dim, generator=draw)


def ours(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search with mst; return indices [n, k]."""
    from mst.evaluate.classification.neighbors import nearest_neighbors, query_rows

    rows = query_rows(k)
    return torch.cat([nearest_neighbors(train, queries[i : i + rows], k)[1] for i in range(0, len(queries), rows)])


def plain(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search with a topk per chunk, merged by another; return indices [n, k]."""
    train = F.normalize(train, dim=1)
    found = []
    for i in range(0, len(queries), 1024):
        part = F.normalize(queries[i : i + 1024], dim=1)
        best, index = part.new_empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64)
        for start in range(0, len(train), 16384):
            value, column = (part @ train[start : start + 16384].T).topk(k, dim=1)
            best, index = torch.cat([best, value], 1), torch.cat([index, column + start], 1)
            best, order = best.topk(k, dim=1)
            index = index.gather(1, order)
        found.append(index)
    return torch.cat(found)


def flat(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search with faiss' IndexFlatIP; return indices [n, k]."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(F.normalize(train, dim=1).numpy())
    return torch.from_numpy(index.search(F.normalize(queries, dim=1).numpy(), k)[1])


SEARCHES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"mst": ours, "plain": plain, "faiss": flat}


def worker(args: argparse.Namespace) -> None:
    """Search once and print what it took."""
    train, queries = features(args.train, args.dim, 1), features(args.queries, args.dim, 2)
    SEARCHES[args.worker](train[:2000], queries[:64], min(args.k, 100))  # libraries, threads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    index = SEARCHES[args.worker](train, queries, args.k)
    row = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row |= {"added_gb": (peak - before) / 2**20, "whole_process_gb": peak / 2**20}
    print("RESULT " + json.dumps(row | {"checksum": int(index.sort(dim=1).values[:100].sum())}))


def run_once(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Run one contender in a fresh process."""
    numbers = [f"--{key}={getattr(args, key)}" for key in ("train", "queries", "dim", "k")]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    command = [sys.executable, __file__, f"--worker={name}", *numbers]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise SystemExit(f"{name} gave no result (exit {done.returncode}):\n{done.stderr[-2000:]}")


def spread(values: list[float]) -> dict[str, float]:
    """Return median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Run the contenders in turn; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", default="", help="write the table here")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    from machine import machine

    names = [name for name in SEARCHES if name != "faiss" or importlib.util.find_spec("faiss")]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for repetition in range(args.repetitions):
        for name in names:
            rows[name].append(run_once(name, args))
            print(f"repetition {repetition + 1}: {name} {rows[name][-1]}", file=sys.stderr, flush=True)
    table = {
        "settings": {key: getattr(args, key) for key in ("train", "queries", "dim", "k", "repetitions")},
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "same_neighbours": len({row["checksum"] for parts in rows.values() for row in parts}) == 1,
        **{name: {key: spread([row[key] for row in parts]) for key in MEASURES} for name, parts in rows.items()},
    }
    for name in names[1:]:
        pairs = list(zip(rows[name], rows["mst"], strict=True))
        table[f"{name} / mst"] = {key: spread([a[key] / b[key] for a, b in pairs]) for key in MEASURES[:2]}
    print(json.dumps(table, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
