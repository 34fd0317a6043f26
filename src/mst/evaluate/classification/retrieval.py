"""Image retrieval: a database is ranked by cosine similarity to each validation image; images of its class are right.

Source: mean average precision over the whole ranking as in instance retrieval (Philbin et al. 2007) and recall@k, the
share of queries with a right image among the first k (Jegou et al. 2011; Oh Song et al. 2016). Exact: the whole
database is ranked, equal similarities by index; a batch of queries at a time bounds the memory.
Letters: m database images, n queries, D features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mst.errors import UsageError
from mst.evaluate.classification.neighbors import TILE, tiles, unit
from mst.evaluate.common.feature_store import FeatureMemory, FeatureSource
from mst.evaluate.common.features import FeatureSettings, counts, device_of, progress_bar, used_precision
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.metrics import percent
from mst.evaluate.common.protocol import ImageTransform, LowShot
from mst.evaluate.common.uncertainty import mean_se
from mst.runtime.noise import accuracy_se
from mst.runtime.storage.results import Result

if TYPE_CHECKING:
    from mst.model.backbone import Backbone

BUDGET = 2**23
"""Similarities of a batch of queries with the whole database."""


@dataclass(frozen=True)
class RetrievalProtocol:
    """Settings of the retrieval evaluation that change its numbers.

    Attributes:
        database: where the validation images are looked up: in the training images, or in all other validation images.
        ranks: each k of recall@k.
        labels: how many training images the database has.
    """

    database: Literal["train", "val"] = "train"
    ranks: tuple[int, ...] = (1, 5, 10)
    labels: LowShot = field(default_factory=LowShot)

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise UsageError(f"--ranks {self.ranks}: name numbers of at least 1")


@dataclass(frozen=True)
class Retrieved:
    """What was found for those queries that have a right image in the database.

    Attributes:
        precision: average precision of each [q].
        first: rank of its first right image [q], 0 = best.
        alone: number of queries without a right image, which are left out.
    """

    precision: Tensor
    first: Tensor
    alone: int


def retrieve(
    database: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    same: bool = False,
    rows: int | None = None,
    progress: bool = False,
) -> Retrieved:
    """Rank the database for every query.

    Args:
        database: features [m, D].
        labels: its classes [m].
        queries: features [n, D]; the products run on their device.
        query_labels: their classes [n].
        same: the queries are the database: each leaves itself out.
        rows: queries at a time; None = as many as the memory budget allows.
        progress: show a bar.
    """
    if len(database) - same < 1:
        raise UsageError("retrieval needs at least one image to find")
    rows = rows or max(1, BUDGET // len(database))
    labels, query_labels = labels.to(queries.device), query_labels.to(queries.device)
    precision, first, alone = [], [], 0
    with progress_bar("retrieval", len(queries), shown=progress) as advance:
        for start in range(0, len(queries), rows):
            part = unit(queries[start : start + rows])  # [B,D]
            scores = torch.cat([found for _, found in tiles(database, part, TILE)], 1)  # [B,m]
            own = torch.arange(start, start + len(part), device=scores.device)[:, None]
            if same:
                scores.scatter_(1, own, -torch.inf)  # last, and never right
            order = scores.argsort(dim=1, descending=True, stable=True)  # [B,m]
            right = labels[order] == query_labels[start : start + rows, None]
            if same:
                right &= order != own
            some = right.any(1)
            precision.append(average_precision(right[some]))
            first.append(right[some].int().argmax(1))
            alone += int((~some).sum())
            advance(len(part))
    return Retrieved(torch.cat(precision), torch.cat(first), alone)


def average_precision(right: Tensor) -> Tensor:
    """Return the mean of the precision at each right place [n], float64.

    Args:
        right: whether each place, best first, holds a right image [n, m], bool; at least one in each row.
    """
    found = right.cumsum(1)  # [n,m]
    place = torch.arange(1, right.shape[1] + 1, device=right.device)
    return (found.double() / place * right).sum(1) / right.sum(1)


def evaluate_retrieval(
    backbone: Backbone,
    data: LabelledSets,
    transform: ImageTransform,
    protocol: RetrievalProtocol | None = None,
    *,
    settings: FeatureSettings | None = None,
    features: Path | FeatureMemory | None = None,
    seed: int = 0,
) -> Result:
    """Look up the validation images in a database.

    Args:
        backbone: frozen.
        data: labelled images.
        transform: of the images.
        protocol: database and ranks.
        settings: batch size, threads and compute type of the backbone.
        features: folder that keeps the features.
        seed: of the drawn training images.

    Returns:
        Result with `map` and `recall_at_{k}` in percent, each with its standard error `_se`; `extra["queries_alone"]`
        queries had no right image.

    Raises:
        UsageError: one class only, or no query has a right image.
    """
    protocol, settings = protocol or RetrievalProtocol(), settings or FeatureSettings()
    data.check_classes(protocol.database)
    source = FeatureSource.kept_in(features, backbone, transform, settings)
    val = source.read("validation", data.val)
    same = protocol.database == "val"
    chosen = protocol.labels.select(data.train.labels, seed=seed)
    base = val if same else source.read("training", data.train, chosen)
    queries = val.features.to(device_of(backbone))
    found = retrieve(base.features, base.labels, queries, val.labels, same=same, progress=settings.progress)
    if not len(found.precision):
        raise UsageError("no validation image has another image of its class to find: use --database train")
    metrics = {"map": percent(found.precision.mean().item())}
    if len(found.precision) > 1:
        metrics["map_se"] = percent(mean_se(found.precision))
    for k in protocol.ranks:
        metrics[f"recall_at_{k}"] = percent((found.first < k).double().mean().item())
        metrics[f"recall_at_{k}_se"] = round(accuracy_se(metrics[f"recall_at_{k}"], len(found.first)), 6)
    extra = counts(base, val, data.classes) | {"queries_alone": found.alone} | ({"train_images": 0} if same else {})
    return Result(
        task="retrieval",
        metrics=metrics,
        protocol={**asdict(protocol), "transform": asdict(transform), "precision": used_precision(settings, backbone)},
        seed=seed,
        extra=extra,
    )
