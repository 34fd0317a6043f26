"""Softmax classifiers with one learning rate each, trained together with a single matrix product per step.

The gradient of softmax cross-entropy is written out, x^T (softmax - onehot) / B; the update is that of
`torch.optim.SGD` with momentum and no weight decay.
Letters: B batch, D features, R learning rates, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.evaluate.common.metrics import rank_of_label


class LinearHeads:
    """R independent classifiers D -> C; weights normal with standard deviation 0.01, biases zero (as in DINO)."""

    def __init__(
        self,
        features: int,
        num_classes: int,
        rates: Sequence[float],
        *,
        momentum: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        one = 0.01 * torch.randn(features, 1, num_classes, generator=generator)  # every rate starts at the same point
        self.weight = one.expand(-1, len(rates), -1).contiguous().to(device)  # [D,R,C]
        self.bias = torch.zeros(len(rates), num_classes, device=device)  # [R,C]
        self.rates = torch.tensor(rates, device=device)[:, None]  # [R,1]
        self.momentum = momentum
        self.weight_step = torch.zeros_like(self.weight)
        self.bias_step = torch.zeros_like(self.bias)

    def logits(self, x: Tensor) -> Tensor:
        """Return [B, R, C] for features [B, D]."""
        return (x @ self.weight.flatten(1)).view(-1, *self.bias.shape) + self.bias

    def step(self, x: Tensor, y: Tensor, factor: float) -> None:
        """Take one SGD step on features [B, D] and labels [B], each rate times `factor`; nothing for an empty batch."""
        if len(x) == 0:
            return
        gradient = self.logits(x).softmax(2) - F.one_hot(y, self.bias.shape[1])[:, None]  # [B,R,C]
        gradient /= len(x)
        self.weight_step.mul_(self.momentum).add_((x.T @ gradient.flatten(1)).view_as(self.weight))
        self.bias_step.mul_(self.momentum).add_(gradient.sum(0))
        self.weight -= factor * self.rates * self.weight_step
        self.bias -= factor * self.rates * self.bias_step

    def finite(self) -> Tensor:
        """Return which classifiers have finite weights [R], bool; the others diverged."""
        return self.weight.isfinite().all(2).all(0) & self.bias.isfinite().all(1)

    def probabilities(self, x: Tensor, which: int, *, chunk: int = 4096) -> Tensor:
        """Return the class probabilities [n, C], float64 on the CPU, of the classifier of one learning rate."""
        parts = [
            self.logits(x[start : start + chunk].to(self.weight.device))[:, which].double().softmax(1).cpu()
            for start in range(0, len(x), chunk)
        ]
        return torch.cat(parts)

    def ranks(self, x: Tensor, y: Tensor, *, chunk: int = 4096) -> Tensor:
        """Return how many classes each classifier ranks before the true one [R, n], for features [n, D]."""
        device = self.weight.device
        ranks = torch.empty(len(self.rates), len(x), dtype=torch.int64)
        for start in range(0, len(x), chunk):
            scores = self.logits(x[start : start + chunk].to(device))  # [B,R,C]
            labels = y[start : start + chunk].to(device)[:, None].expand(-1, scores.shape[1])  # [B,R]
            found = rank_of_label(scores.flatten(0, 1), labels.flatten())  # [B*R]
            ranks[:, start : start + chunk] = found.view_as(labels).T
        return ranks
