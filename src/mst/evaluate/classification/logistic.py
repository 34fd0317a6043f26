"""Logistic regression on frozen features, solved to convergence; the penalty is chosen on a held-out part of train.

Source: the logistic probes of CLIP (Radford et al. 2021, appendix A.3: L-BFGS, the L2 strength swept on held-out data)
and of MSN (Assran et al. 2022, section 4: low-shot classification with few labels). Differs: features are centred and
divided by one number, their overall deviation, so that a penalty means the same for every backbone; afterwards the
chosen penalty is solved again on all training images.
Letters: n samples, D features, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.errors import RunFailure, UsageError
from mst.evaluate.classification.linear_probe import held_out_mask
from mst.evaluate.classification.outcome import Outcome, Watch
from mst.evaluate.common.feature_store import FeatureMemory, FeatureSource
from mst.evaluate.common.features import FeatureSettings, counts, device_of, progress_bar, used_precision
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.metrics import accuracy, rank_of_label
from mst.evaluate.common.pooling import Pool, blocks_in, check_pool, part_scales
from mst.evaluate.common.protocol import ImageTransform, LowShot
from mst.runtime.limits import check_numbers
from mst.runtime.noise import accuracy_se
from mst.runtime.storage.results import Result

if TYPE_CHECKING:
    from mst.model.backbone import Backbone

CHUNK = 8192
"""Samples whose class scores are held at once."""


@dataclass(frozen=True)
class LogisticProtocol:
    """Settings of the logistic probe that change its numbers.

    Attributes:
        penalties: factors to try for half the squared L2 norm of the weights, which is added to the mean cross-entropy;
            the best on the held-out part is reported, the larger of equally good ones.
        iterations: steps of L-BFGS for each penalty, at most.
        tolerance: the solver stops when no element of the gradient is larger.
        blocks: how many last blocks give their features, side by side (fewer if the backbone has fewer).
        pool: of a block, cls: the CLS token; mean, std, max, min: of the patch tokens; several side by side.
        held_out_share: share of each class's training images on which the penalty is chosen.
        labels: how many training labels are used.
    """

    penalties: tuple[float, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
    iterations: int = 300
    tolerance: float = 1e-5
    blocks: int = 1
    pool: Pool = ("cls",)
    held_out_share: float = 0.1
    labels: LowShot = field(default_factory=LowShot)

    def __post_init__(self) -> None:
        check_numbers(self, "penalties", "tolerance", above=0)
        check_numbers(self, "iterations", "blocks", least=1)
        check_pool(self.pool)
        if not 0.0 < self.held_out_share < 1.0:
            raise UsageError(f"--held-out-share {self.held_out_share}: must lie between 0 and 1")


@dataclass(frozen=True)
class Solution:
    """A classifier: weight [D, C] and bias [C], float64, and whether the solver reached the tolerance."""

    weight: Tensor
    bias: Tensor
    converged: bool

    def ranks(self, x: Tensor, y: Tensor) -> Tensor:
        """Return how many classes rank before the true one [n], for features [n, D] and labels [n]."""
        parts = [
            rank_of_label(x[start : start + CHUNK].to(self.weight) @ self.weight + self.bias, y[start : start + CHUNK])
            for start in range(0, len(x), CHUNK)
        ]
        return torch.cat(parts) if parts else y

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the class probabilities [n, C], float64 on the CPU, for features [n, D]."""
        parts = [
            (x[start : start + CHUNK].to(self.weight) @ self.weight + self.bias).softmax(1).cpu()
            for start in range(0, len(x), CHUNK)
        ]
        return torch.cat(parts)


def solve(
    x: Tensor, y: Tensor, penalty: float, protocol: LogisticProtocol, *, num_classes: int, start: Solution | None = None
) -> Solution:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2; the bias is free.

    Args:
        x: features [n, D], float32.
        y: labels [n], int64.
        penalty: above 0.
        protocol: most steps and tolerance.
        num_classes: C.
        start: where to begin; None = zero.

    Raises:
        RunFailure: the solution is not finite.
    """
    weight = start.weight.clone() if start else x.new_zeros(x.shape[1], num_classes, dtype=torch.float64)  # [D,C]
    bias = start.bias.clone() if start else x.new_zeros(num_classes, dtype=torch.float64)  # [C]
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=protocol.iterations,
        max_eval=2 * protocol.iterations,
        tolerance_grad=protocol.tolerance,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, weight.grad, bias.grad = loss_and_gradient(x, y, weight, bias, penalty)
        return loss

    with torch.no_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
        _, by_weight, by_bias = loss_and_gradient(x, y, weight, bias, penalty)
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        raise RunFailure(f"logistic regression diverged at penalty {penalty:g}: give larger --penalties")
    largest = max(float(by_weight.abs().max()), float(by_bias.abs().max()))
    return Solution(weight, bias, largest <= protocol.tolerance)


def loss_and_gradient(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [] and its gradients [D, C] and [C], a chunk of samples at a time, in the weight's type.

    In float32 the line search would stop at a gradient of about 1e-4, where the loss of two points is no longer exact
    enough to tell which is lower.
    """
    loss = penalty / 2 * weight.square().sum()
    by_weight, by_bias = penalty * weight, torch.zeros_like(bias)
    for begin in range(0, len(x), CHUNK):
        part, labels = x[begin : begin + CHUNK].to(weight), y[begin : begin + CHUNK]
        log_share = (part @ weight + bias).log_softmax(1)  # [B,C]
        loss = loss + F.nll_loss(log_share, labels, reduction="sum") / len(x)
        error = (log_share.exp() - F.one_hot(labels, len(bias))) / len(x)  # [B,C]
        by_weight, by_bias = by_weight + part.T @ error, by_bias + error.sum(0)
    return loss, by_weight, by_bias


def solve_path(
    x: Tensor, y: Tensor, protocol: LogisticProtocol, *, num_classes: int, progress: bool
) -> dict[float, Solution]:
    """Return the solution for every penalty, the largest first; each starts from the solution before."""
    found: dict[float, Solution] = {}
    last: Solution | None = None
    with progress_bar("logistic regression", len(protocol.penalties), shown=progress) as advance:
        for penalty in sorted(set(protocol.penalties), reverse=True):
            last = found[penalty] = solve(x, y, penalty, protocol, num_classes=num_classes, start=last)
            advance(1)
    return found


def evaluate_logistic(
    backbone: Backbone,
    data: LabelledSets,
    transform: ImageTransform,
    protocol: LogisticProtocol | None = None,
    *,
    settings: FeatureSettings | None = None,
    features: Path | FeatureMemory | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Result:
    """Fit logistic regression to frozen features of the training images, score it on the validation images.

    Args:
        backbone: frozen.
        data: labelled images.
        transform: of the images.
        protocol: penalties, steps, labels.
        settings: batch size, threads and compute type of the backbone.
        features: folder that keeps the features.
        seed: of the drawn labels and of the held-out part.
        watch: called with the answers.

    Returns:
        Result with the metrics of `Outcome` (penalty chosen on the held-out part, solved again on all training images)
        and `top1_held_out`, in percent, each with its standard error `_se`; `extra["penalty"]` is the chosen one,
        `extra["converged"]` whether it was solved.

    Raises:
        UsageError: one class only, or several penalties but no class with two training images to choose one on.
    """
    protocol, settings = protocol or LogisticProtocol(), settings or FeatureSettings()
    data.check_classes()
    source, device = FeatureSource.kept_in(features, backbone, transform, settings, protocol.pool), device_of(backbone)
    chosen = protocol.labels.select(data.train.labels, seed=seed)
    train = source.read("training", data.train, chosen, blocks=protocol.blocks)
    val = source.read("validation", data.val, blocks=protocol.blocks)
    held_out = held_out_mask(train.labels, protocol.held_out_share, seed=seed)
    if len(protocol.penalties) > 1 and not bool(held_out.any()):
        raise UsageError("no class has two training images to choose a penalty on: name one with --penalties")
    mean, scale = train.features.mean(0), part_scales(train.features, protocol.pool, backbone.embed_dim)  # [D]
    check_scale(scale)
    x, y = ((train.features - mean) / scale).to(device), train.labels.to(device)  # [n,D], [n]
    classes = len(data.classes)
    penalty, metrics, near = _chosen(x, y, held_out.to(device), protocol, classes, progress=settings.progress)
    final = solve(x, y, penalty, protocol, num_classes=classes, start=near)
    on_val = ((val.features - mean) / scale).to(device)  # [n,D]
    ranks = final.ranks(on_val, val.labels.to(device)).cpu()
    outcome = Outcome(final.probabilities(on_val), val.labels, ranks, val.names, val.positions, data.classes)
    outcome.tell(watch)
    blocks = blocks_in(train.features, protocol.pool, backbone.embed_dim)
    used = {"blocks": blocks, "transform": asdict(transform)}
    return Result(
        task="logistic",
        metrics={**outcome.metrics(), **metrics},
        protocol={**asdict(protocol), **used, "precision": used_precision(settings, backbone)},
        seed=seed,
        extra={**counts(train, val, data.classes), "penalty": penalty, "converged": final.converged, **outcome.extra()},
    )


def _chosen(
    x: Tensor, y: Tensor, out: Tensor, protocol: LogisticProtocol, classes: int, *, progress: bool
) -> tuple[float, dict[str, float], Solution | None]:
    """Return the penalty that is best on the samples `out` [n], bool, its accuracy there with standard error, and the
    solution without these samples, which is near that of all; None where there are none.
    """
    if not bool(out.any()):
        return protocol.penalties[0], {}, None
    path = solve_path(x[~out], y[~out], protocol, num_classes=classes, progress=progress)
    scores = {each: accuracy(found.ranks(x[out], y[out]), 1) for each, found in path.items()}
    penalty = best_penalty(scores)
    se = round(accuracy_se(scores[penalty], int(out.sum())), 6)
    return penalty, {"top1_held_out": scores[penalty], "top1_held_out_se": se}, path[penalty]


def check_scale(scale: Tensor) -> None:
    """Refuse features that cannot be standardised.

    Raises:
        UsageError: they are the same for all images.
        RunFailure: they do not fit into float32.
    """
    if not float(scale.min()) > 0:
        raise UsageError("all training images have the same features: there is nothing to learn from")
    if float(scale.max()) == float("inf"):
        raise RunFailure("the features are too large to be standardised in float32: the backbone has diverged")


def best_penalty(scores: dict[float, float]) -> float:
    """Return the penalty with the highest accuracy, the larger one among equals."""
    return max(scores, key=lambda penalty: (scores[penalty], penalty))
