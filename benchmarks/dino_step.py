"""DINO's training step in plain torch, as its authors arrange it, to compare ours with: prints images/s and memory.

Source of the arrangement: Caron et al. 2021 (DINO), algorithm 1, and its published training loop: crops of one size go
through the backbone together, their features through the head together; a loop over pairs of views sums the loss;
gradients are clipped one parameter after the other; then AdamW, the teacher's average, the center. Backbone from timm.
Written anew. Two things are newer than the paper, to be fair: bfloat16 autocast and timm's fused attention.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STUDENT_TEMP, TEACHER_TEMP, MOMENTUM, CENTER_MOMENTUM, CLIP = 0.1, 0.04, 0.996, 0.9, 3.0


class Head(nn.Module):
    """Three layers with GELU, a normalised bottleneck, a weight-normalised last layer of gain one."""

    def __init__(self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1.0)
        self.last.parametrizations.weight.original0.requires_grad = False

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, K] of features [B, D]."""
        logits: Tensor = self.last(F.normalize(self.mlp(features), dim=-1))
        return logits


class Network(nn.Module):
    """A backbone and its head over crops of several sizes."""

    backbone: Any

    def __init__(self, args: argparse.Namespace, *, drop_path: float) -> None:
        super().__init__()
        small: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2} if args.small else {}
        self.backbone = timm.create_model(
            args.model, num_classes=0, img_size=args.side, dynamic_img_size=True, drop_path_rate=drop_path, **small
        )
        self.head = Head(self.backbone.num_features, args.prototypes)

    def forward(self, sizes: list[Tensor]) -> Tensor:
        """Return logits [V*B, K] of crops [v*B, C, h, w] of each size, in their order."""
        logits: Tensor = self.head(torch.cat([self.backbone(crops) for crops in sizes]))
        return logits


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, views: int) -> Tensor:
    """Return the mean cross-entropy over pairs of different views of logits [V*B, K] and [2*B, K]."""
    predictions = (student / STUDENT_TEMP).chunk(views)
    targets = F.softmax((teacher - center) / TEACHER_TEMP, dim=-1).detach().chunk(2)
    terms = [
        torch.sum(-target * F.log_softmax(prediction, dim=-1), dim=-1).mean()
        for i, target in enumerate(targets)
        for j, prediction in enumerate(predictions)
        if i != j
    ]
    return torch.stack(terms).sum() / len(terms)


class Step:
    """The state of a training and its step."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.student = Network(args, drop_path=0.1).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = torch.optim.AdamW([p for p in self.student.parameters() if p.requires_grad], lr=1e-4)
        self.center = torch.zeros(1, args.prototypes, device=device)
        self.device, self.dtype = device, torch.bfloat16

    def __call__(self, large: Tensor, small: Tensor, views: int) -> None:
        """Do one step on global crops [2*B, C, H, W] and local crops [L*B, C, h, w]."""
        with torch.autocast(self.device.type, self.dtype):
            with torch.no_grad():
                teacher = self.teacher([large])
            student = self.student([large, small])
        loss = dino_loss(student.float(), teacher.float(), self.center, views)
        if not torch.isfinite(loss):
            raise SystemExit("the loss is not finite")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.norm()
                if CLIP / (norm + 1e-6) < 1:
                    parameter.grad.mul_(CLIP / (norm + 1e-6))
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.mul_(MOMENTUM).add_((1 - MOMENTUM) * mine)
            batch = teacher.float().mean(dim=0, keepdim=True)
            self.center = self.center * CENTER_MOMENTUM + batch * (1 - CENTER_MOMENTUM)


def main() -> None:
    """Time some steps on crops of noise; print one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--local-side", type=int, default=96)
    parser.add_argument("--locals", type=int, default=6)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="start no step after so long")
    parser.add_argument("--small", action="store_true", help="two narrow blocks, for a rehearsal")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    step = Step(args, device)
    large = torch.randn(2 * args.batch, 3, args.side, args.side, device=device)
    small = torch.randn(args.locals * args.batch, 3, args.local_side, args.local_side, device=device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (len(times) < args.steps and time.perf_counter() - began < args.seconds):
        started = time.perf_counter()
        step(large, small, 2 + args.locals)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[2:])
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    row = {"step_seconds": seconds, "step_images_per_second": args.batch / seconds, "memory_bytes": memory}
    print(json.dumps({**row, "steps": len(times) - 2, "batch": args.batch}))


if __name__ == "__main__":
    main()
