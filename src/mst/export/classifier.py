"""A backbone with its linear classifier: timm's own network with a head, or a graph that gives class scores.

Letters (docs/algorithm.md): B images, C channels, H W pixels, D embedding size, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mst.errors import CheckpointError
from mst.export.network import OUTPUTS, Outputs, tokens_by_name
from mst.model.backbone import Backbone
from mst.model.backbone_file import REMEDY, read_backbone_description
from mst.model.build import build_backbone
from mst.weights.description import BadDescription, read_description, word, words
from mst.weights.files import load_exactly

SCORES = ("logits", "probabilities")
"""What a graph with a classifier gives beside the backbone's outputs: [B, K] both."""
MOST_CLASSES = 1 << 16


@dataclass(frozen=True)
class Head:
    """What a fine-tuning put on a backbone.

    Attributes:
        layer: D to K.
        classes: names; class number = position.
    """

    layer: nn.Linear
    classes: tuple[str, ...]


class ClassifierOutputs(Outputs):
    """A backbone and its classifier in evaluation mode; returns chosen outputs as a tuple."""

    def __init__(self, backbone: Backbone, layer: nn.Linear, names: Sequence[str]) -> None:
        """Take plain copies of both; they compute on the CPU without gradients."""
        super().__init__(backbone, names)
        self.names = tuple(name for name in (*SCORES, *OUTPUTS) if name in names)
        self.layer = copy.deepcopy(layer).cpu().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for normalised images [B, C, H, W]."""
        tokens = self.backbone(images, want="tokens", importance="importance" in self.names)
        logits = self.layer(tokens.cls)  # [B, K]
        found = tokens_by_name(tokens)
        found |= {"logits": logits, "probabilities": logits.softmax(dim=-1)}
        return tuple(found[name] for name in self.names)


def with_classifier(backbone: Backbone, head: Head) -> tuple[dict[str, Tensor], str]:
    """Return the weights of timm's network with this head, under timm's names, and the name of the classifier there.

    A network with a second classifier on its distillation token (DeiT) averages the two, and this package's feature is
    the average of the two tokens: both get the same layer.
    """
    network: Any = copy.deepcopy(backbone.model).cpu()
    network.reset_classifier(len(head.classes))
    layers = _classifiers(network)
    for layer in layers:
        layer.load_state_dict(head.layer.state_dict())
    name = next(name for name, module in network.named_modules() if module is layers[0])
    return {key: tensor.detach().contiguous() for key, tensor in network.state_dict().items()}, name


def stored(file: Path) -> tuple[tuple[str, ...], str | None]:
    """Return what the description beside an exported file of weights says.

    Returns:
        Names of the classes, none for a backbone without classifier; and the kind of transformers' own network, whose
        names the weights have, None for timm's.

    Raises:
        CheckpointError: the description is missing or damaged.
    """
    description = file.with_suffix(".json")
    try:
        values = read_description(description)
        classes = words(values, "classes", most=MOST_CLASSES) if "classes" in values else ()
        return classes, word(values, "transformers") if "transformers" in values else None
    except (OSError, BadDescription) as error:
        raise CheckpointError(f"cannot read {description}: {error}; {REMEDY}") from error


def load_with_classifier(file: Path) -> tuple[Backbone, Head]:
    """Return backbone and classifier of a file that `with_classifier` filled, in evaluation mode.

    Raises:
        CheckpointError: it is missing, damaged, or not the network that its description says.
    """
    spec, metadata = read_backbone_description(file)
    classes, _ = stored(file)

    def build() -> Backbone:
        backbone = build_backbone(spec)
        backbone.model.reset_classifier(len(classes))
        return backbone

    backbone = load_exactly(file, build, _network, REMEDY)
    layers = _classifiers(backbone.model)
    for other in layers[1:]:
        if not torch.equal(other.weight, layers[0].weight) or not torch.equal(other.bias, layers[0].bias):
            raise CheckpointError(f"{file}: the two classifiers of {spec.name} differ, which this package has not")
    backbone.model.reset_classifier(0)
    backbone.metadata = metadata
    return backbone.eval(), Head(layers[0].eval(), classes)


def _classifiers(network: Any) -> tuple[nn.Linear, ...]:
    found = network.get_classifier()
    return found if isinstance(found, tuple) else (found,)


def _network(backbone: Backbone) -> nn.Module:
    network: nn.Module = backbone.model
    return network
