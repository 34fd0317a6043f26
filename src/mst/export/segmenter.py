"""A segmenter as a graph, and an exported one again: images in, logits and classes of pixels out.

Letters (docs/algorithm.md): B images, C channels, H W pixels, K classes, h w cells of the head's map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mst.errors import CheckpointError
from mst.export.classifier import MOST_CLASSES
from mst.export.network import Outputs
from mst.export.reading import ExportedBackbone, Graph, open_graph
from mst.weights.description import BadDescription, words

MAPS = ("logits", "classes")
"""What the graph of a segmenter can give: [B, K, h, w], and [B, H, W] int64."""


class SegmenterOutputs(Outputs):
    """A segmenter in evaluation mode that returns chosen outputs as a tuple."""

    def __init__(self, segmenter: nn.Module, names: Sequence[str]) -> None:
        """Take a plain copy; it computes on the CPU without gradients.

        Args:
            segmenter: has a `backbone`; normalised images [B, C, H, W] -> logits [B, K, h, w].
            names: of `MAPS`.
        """
        original: Any = segmenter
        super().__init__(original.backbone, names)
        self.names = tuple(name for name in MAPS if name in names)
        other: Any = copy.deepcopy(segmenter).cpu().eval().requires_grad_(False)
        other.backbone = self.backbone
        self.segmenter = other

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for normalised images [B, C, H, W]: the map of the head, the likeliest class of pixels."""
        logits = self.segmenter(images)  # [B, K, h, w]
        found = {"logits": logits}
        if "classes" in self.names:
            found["classes"] = at_size(logits, images).argmax(1)  # [B, H, W]
        return tuple(found[name] for name in self.names)


def at_size(logits: Tensor, images: Tensor) -> Tensor:
    """Return logits bilinearly at the size of the images."""
    return F.interpolate(logits, (images.shape[-2], images.shape[-1]), mode="bilinear", align_corners=False)


class ExportedSegmenter(nn.Module):
    """Logits of images, by another program.

    Attributes:
        backbone: says what its images are; gives no features.
        classes: names; class number = position.
        said: all that the file says of itself.
    """

    def __init__(self, graph: Graph, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = ExportedBackbone(graph, embed_dim=1)
        self.classes, self.said, self._graph = classes, graph.said, graph

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K, h, w] of normalised images [B, C, H, W]."""
        self.backbone.grid(images)
        return self._graph.run(images.detach().cpu().float())["logits"].to(images.device)


def load_exported_segmenter(file: Path) -> ExportedSegmenter:
    """Return the segmenter of a `.onnx` or `.pt2` file, in evaluation mode on the CPU.

    Raises:
        CheckpointError: it is damaged, or holds something else.
        MissingExtra: the program that computes it is not installed.
    """
    graph = open_graph(file)
    if "view" not in graph.said or "logits" not in graph.names:
        raise CheckpointError(f"{file} holds no segmenter with logits: export one with mst export --model FOLDER")
    try:
        classes = words(graph.said, "classes", most=MOST_CLASSES)
    except BadDescription as error:
        raise CheckpointError(f"cannot read {file}: {error}; export it again") from error
    return ExportedSegmenter(graph, classes).eval()
