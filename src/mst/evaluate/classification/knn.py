"""Weighted k-nearest-neighbour classification of features, exact and in bounded memory.

Source: Wu et al. 2018 (InstDisc), section 3.4, as used by DINO (Caron et al. 2021): cosine similarity, a vote of
exp(similarity / 0.07). Differs: both sides are cut into tiles, and equal similarities are decided by the lower training
index, so the result does not depend on the tiles.
Letters: m training samples, n queries, D features, k neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mst.errors import UsageError
from mst.evaluate.classification.neighbors import TILE, nearest_neighbors, query_rows
from mst.evaluate.classification.outcome import Outcome, Watch, accuracies, shares
from mst.evaluate.common.feature_store import FeatureMemory, FeatureSource
from mst.evaluate.common.features import Features, FeatureSettings, counts, device_of, progress_bar, used_precision
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.metrics import rank_of_label
from mst.evaluate.common.protocol import ImageTransform, LowShot
from mst.runtime.limits import check_numbers
from mst.runtime.logging import warn
from mst.runtime.storage.results import Result

if TYPE_CHECKING:
    from mst.model.backbone import Backbone


LARGEST_EXPONENT = 80.0
"""The largest exponent of a vote: a sum of thousands of such votes still fits into float32."""


@dataclass(frozen=True)
class KnnProtocol:
    """Settings of the k-NN evaluation that change its numbers.

    Attributes:
        neighbors: each k that is reported; a k above the number of training images becomes that number.
        headline: the k whose accuracy is `top1` and `top5`: fixed beforehand, not the best on the validation set.
        temperature: of the vote exp(similarity / temperature).
        labels: how many training labels are used.
    """

    neighbors: tuple[int, ...] = (10, 20, 100, 200)
    headline: int = 20
    temperature: float = 0.07
    labels: LowShot = field(default_factory=LowShot)

    def __post_init__(self) -> None:
        check_numbers(self, "neighbors", least=1)
        if self.headline not in self.neighbors:
            known = " ".join(map(str, self.neighbors))
            raise UsageError(f"--headline {self.headline}: must be one of --neighbors {known}")
        check_numbers(self, "temperature", above=0)


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    *,
    num_neighbors: int,
    temperature: float,
    num_classes: int,
    tile: int = TILE,
) -> Tensor:
    """Return class scores [n, C], float32: each of the k nearest training samples votes exp(similarity / temperature).

    A class without a vote has -inf, so it never counts as one of the best five, even if fewer than five have votes.

    Args:
        train_features: [m, D], any length (they are normalised here).
        train_labels: [m], int64 in 0..C-1.
        features: queries [n, D].
        num_neighbors: k; all training samples where there are fewer.
        temperature: divisor of the cosine similarity.
        num_classes: C.
        tile: training samples compared at a time; bounds the memory, not the result.

    Raises:
        UsageError: there are no training samples, or k or the temperature is not positive.
    """
    if num_neighbors < 1 or temperature <= 0:
        raise UsageError(f"num_neighbors {num_neighbors} and temperature {temperature} must be positive")
    labels = train_labels.to(features.device)
    scores = features.new_zeros(len(features), num_classes, dtype=torch.float32)
    rows = query_rows(min(num_neighbors, len(train_labels)), tile)
    for start in range(0, len(features), rows):
        part = slice(start, start + rows)
        similarity, index = nearest_neighbors(train_features, features[part], num_neighbors, tile=tile)
        scores[part] = vote(similarity, labels[index], temperature, num_classes)
    return scores


def vote(similarity: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Return class scores [n, C] from the neighbours' similarities [n, k] and labels [n, k]; -inf without a vote.

    If exp(1 / temperature) does not fit into float32, votes are taken relative to that of the nearest neighbour.
    """
    if temperature * LARGEST_EXPONENT < 1:
        similarity = similarity - similarity[:, :1]
    scores = similarity.new_zeros(len(similarity), num_classes)
    scores.scatter_add_(1, labels, (similarity / temperature).exp())
    voted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels, True)
    return scores.masked_fill_(~voted, -torch.inf)


def knn_accuracy(
    train: Features,
    val: Features,
    *,
    neighbors: Sequence[int],
    temperature: float,
    num_classes: int,
    device: torch.device,
    progress: bool = False,
) -> dict[str, float]:
    """Return `top1_k{k}` with its standard error, in percent, for every k; `top5_k{k}` for more than ten classes.

    Neighbours are searched once, for the largest k. The products run on `device`, which holds one tile of each side at
    a time.
    """
    answers = knn_answers(
        train,
        val,
        neighbors=neighbors,
        headline=neighbors[0],
        temperature=temperature,
        num_classes=num_classes,
        device=device,
        progress=progress,
    )
    return _by_k(answers.ranks, num_classes)


def _by_k(ranks: dict[int, Tensor], num_classes: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for k, rank in ranks.items():
        found |= accuracies(rank, num_classes, f"_k{k}")
    return found


@dataclass(frozen=True)
class KnnAnswers:
    """Rank of the true class [n] for each k, and every class's share of the votes [n, C] at the headline k."""

    ranks: dict[int, Tensor]
    shares: Tensor


def knn_answers(
    train: Features,
    val: Features,
    *,
    neighbors: Sequence[int],
    headline: int,
    temperature: float,
    num_classes: int,
    device: torch.device,
    progress: bool = False,
) -> KnnAnswers:
    """Classify every validation image for every k at once; `knn_accuracy` says how."""
    ranks: dict[int, list[Tensor]] = {k: [] for k in neighbors}
    voted: list[Tensor] = []
    rows = query_rows(min(max(neighbors), len(train.labels)))
    with progress_bar("nearest neighbours", len(val.labels), shown=progress) as advance:
        for start in range(0, len(val.labels), rows):
            part = slice(start, start + rows)
            similarity, index = nearest_neighbors(train.features, val.features[part].to(device), max(neighbors))
            votes, labels = train.labels[index.cpu()].to(device), val.labels[part].to(device)  # [B,k], [B]
            for k in neighbors:
                scores = vote(similarity[:, :k], votes[:, :k], temperature, num_classes)
                ranks[k].append(rank_of_label(scores, labels).cpu())
                if k == headline:
                    voted.append(shares(scores).cpu())
            advance(len(labels))
    return KnnAnswers({k: torch.cat(parts) for k, parts in ranks.items()}, torch.cat(voted))


def evaluate_knn(
    backbone: Backbone,
    data: LabelledSets,
    transform: ImageTransform,
    protocol: KnnProtocol | None = None,
    *,
    settings: FeatureSettings | None = None,
    features: Path | FeatureMemory | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Result:
    """Classify the validation images by their nearest training images.

    Args:
        backbone: frozen.
        data: labelled images.
        transform: of the images.
        protocol: neighbours, temperature, labels.
        settings: batch size, threads and compute type of the backbone.
        features: folder that keeps the features.
        seed: of the drawn training images.
        watch: called with the answers at the headline k.

    Returns:
        Result with the metrics of `Outcome` at the headline k, and `top1_k{k}` (`top5_k{k}` for more than ten classes)
        with `_se`, in percent. k larger than the number of training images is cut; `extra["notes"]` says so.

    Raises:
        UsageError: one class only.
    """
    protocol, settings = protocol or KnnProtocol(), settings or FeatureSettings()
    data.check_classes()
    source = FeatureSource.kept_in(features, backbone, transform, settings)
    train = source.read("training", data.train, protocol.labels.select(data.train.labels, seed=seed))
    val = source.read("validation", data.val)
    used, notes = _cut(protocol, len(train.labels))
    answers = knn_answers(
        train,
        val,
        neighbors=used.neighbors,
        headline=used.headline,
        temperature=used.temperature,
        num_classes=len(data.classes),
        device=device_of(backbone),
        progress=settings.progress,
    )
    ranks = answers.ranks
    outcome = Outcome(answers.shares, val.labels, ranks[used.headline], val.names, val.positions, data.classes)
    outcome.tell(watch)
    return Result(
        task="knn",
        metrics={**outcome.metrics(), **_by_k(ranks, len(data.classes))},
        protocol={**asdict(used), "transform": asdict(transform), "precision": used_precision(settings, backbone)},
        seed=seed,
        extra={**counts(train, val, data.classes), "notes": notes, **outcome.extra()},
    )


def _cut(protocol: KnnProtocol, limit: int) -> tuple[KnnProtocol, list[str]]:
    """Return the protocol for so many training images, and what was changed; warn of it."""
    notes = []
    if max(protocol.neighbors) > limit:
        notes.append(f"k is cut to the {limit} training images")
        warn(f"k-NN: {notes[-1]}")
    neighbors = tuple(sorted({min(k, limit) for k in protocol.neighbors}))
    return replace(protocol, neighbors=neighbors, headline=min(protocol.headline, limit)), notes
