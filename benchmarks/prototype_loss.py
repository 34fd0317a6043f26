"""Memory and time of the prototype loss, chunked against straightforward, each in its own process.

Both start from the same vectors, prototypes and teacher probabilities and end with the gradients of vectors and
prototypes, in float32, added to gradients that are there, as for every part of a step but the first. "Extra" is the
process's peak above what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

SRC = Path(__file__).resolve().parent.parent / "src"


def measure(kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the extra peak in MB and the processor seconds of one forward and backward pass."""
    import torch

    from mst.objective.dino import count_pairs, self_distillation_loss, view_targets
    from mst.objective.prototypes import prototype_cross_entropy

    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(args.views, args.batch, args.width, generator=draws).requires_grad_()
    weight = torch.randn(args.prototypes, args.width, generator=draws).requires_grad_()
    probs = torch.rand(2, args.batch, args.prototypes, generator=draws)

    def run(x: torch.Tensor, probs: torch.Tensor, weight: torch.Tensor) -> float:
        """Return the loss after adding its gradients, with a backward pass per part as the training step does it."""
        if kind == "straightforward":
            terms: list[torch.Tensor] = [self_distillation_loss(x @ weight.t(), probs, 0.1)]
            terms[0].backward()  # type: ignore[no-untyped-call]
            return terms[0].item()
        total, pairs = 0.0, count_pairs(2, len(x)) * x.shape[1]
        own, others = view_targets(probs)
        for part, targets in ((x[:2], own), (x[2:], others)):
            term = prototype_cross_entropy(part, weight, targets, 0.1) / pairs
            term.backward()  # type: ignore[no-untyped-call]
            total += term.item()
        return total

    few = [tensor.detach().clone().requires_grad_() for tensor in (x[:, :1], weight[:64])]
    run(few[0], probs[:, :1, :64], few[1])
    x.grad, weight.grad = torch.zeros_like(x), torch.ones_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    value = run(x, probs, weight)
    seconds = time.process_time() - started
    assert x.grad is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"extra_mb": peak / 1024, "seconds": seconds, "loss": value, "gradient": x.grad.norm().item()}


def main() -> None:
    """Run both, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--out", default="", help="write the figures here as JSON")
    parser.add_argument("--kind", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        print(json.dumps(measure(args.kind, args)))
        return
    rows = {}
    for kind in ("straightforward", "chunked"):
        done = subprocess.run(
            [sys.executable, __file__, "--kind", kind, *sys.argv[1:]],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(SRC)},
        )  # fmt: skip
        rows[kind] = json.loads(done.stdout.splitlines()[-1])
        print(kind, rows[kind], flush=True)
    rows["chunked / straightforward"] = {
        key: rows["chunked"][key] / rows["straightforward"][key] for key in ("extra_mb", "seconds")
    }
    print(rows["chunked / straightforward"])
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key not in {"kind", "out"}}
        Path(args.out).write_text(json.dumps({"machine": machine(), "settings": settings, **rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
