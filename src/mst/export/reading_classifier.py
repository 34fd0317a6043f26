"""What was exported with a classifier as a classifier again, computed by the program it was exported for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mst.errors import CheckpointError
from mst.export.classifier import MOST_CLASSES, SCORES, Head
from mst.export.reading import GRAPHS, ExportedBackbone, Graph, load_weights, open_graph, weights_or_graph
from mst.model.backbone import Backbone
from mst.weights.description import BadDescription, words


class ExportedClassifier(nn.Module):
    """Class scores of images.

    Attributes:
        backbone: says what its images are; in a graph without features it gives none.
        classes: names; class number = position.
        head: of a file of weights; None = the graph gives the scores.
    """

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], head: Head | None, graph: Graph | None) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        self.head = None if head is None else head.layer
        self._graph = graph

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [B, K] of normalised images [B, C, H, W] whose softmax are the probabilities."""
        if self.head is not None:
            scores: Tensor = self.head(self.backbone(images))
            return scores
        assert self._graph is not None
        self.backbone.grid(images)
        found = self._graph.run(images.detach().cpu().float())
        scores = found["logits"] if "logits" in found else found["probabilities"].log()
        return scores.to(images.device)


def load_exported_classifier(path: Path) -> tuple[ExportedClassifier, Path]:
    """Return what was exported with a classifier, in evaluation mode on the CPU, and its file.

    Args:
        path: a folder of `mst export --model`, or its `.onnx` or `.pt2` file.

    Raises:
        CheckpointError: a file is missing or damaged, or holds a backbone without a classifier.
        MissingExtra: the program that computes it is not installed.
    """
    file = weights_or_graph(path)
    without = f"{path} holds a backbone without a classifier: export the fine-tuned run with mst export --model RUN"
    if file.suffix not in GRAPHS:
        backbone, head = load_weights(file)
        if head is None:
            raise CheckpointError(without)
        return ExportedClassifier(backbone, head.classes, head, None).eval(), file
    graph = open_graph(file)
    if not set(SCORES) & set(graph.names):
        raise CheckpointError(without)
    try:
        classes = words(graph.said, "classes", most=MOST_CLASSES)
    except BadDescription as error:
        raise CheckpointError(f"cannot read {file}: {error}; export it again") from error
    scores = graph.run(torch.zeros(1, graph.spec.channels, *graph.spec.image_size))
    if any(scores[name].shape != (1, len(classes)) for name in SCORES if name in scores):
        raise CheckpointError(f"{file} gives other scores than for its {len(classes)} classes: export it again")
    width = scores["features"].shape[1] if "features" in scores else 1
    backbone = ExportedBackbone(graph, width)
    return ExportedClassifier(backbone.eval(), classes, None, graph).eval(), file
