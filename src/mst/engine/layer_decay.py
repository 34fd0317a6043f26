"""Parameter groups with layer-wise learning rates and one rule for weight decay, and the optimizer over them.

Source: BEiT (Bao et al. 2022, appendix), used by MAE and ViTDet for fine-tuning. Which layer a parameter lies in and
which ones take no decay is timm's knowledge (`group_matcher`, `no_weight_decay`). Differs from timm's own
`param_groups_layer_decay` in that the backbone may be a part of a larger network: all around it is the topmost layer.
"""

from __future__ import annotations

from typing import Any, Literal

from timm.models import group_parameters
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mst.model.backbone import Backbone

OptimizerName = Literal["adamw", "sgd"]
MOMENTUM = 0.9


def layer_numbers(model: nn.Module) -> tuple[dict[str, int], int]:
    """Return how deep each parameter of the backbone inside `model` lies, and the number that all others have.

    Embeddings are 0; the blocks count from 1 through all stages, a Swin's merging with the block that follows and the
    final norm with the last block. Without a `Backbone` inside, nothing has a depth and the number is 0.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, Backbone):
            network = module.model
            inner: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
            stage = network.layers[-1] if hasattr(network, "layers") else network
            last = {id(parameter) for parameter in stage.blocks[-1].parameters()}
            above = 1 + max(inner[name] for name, parameter in network.named_parameters() if id(parameter) in last)
            start = f"{prefix}." if prefix else ""
            numbers = {f"{start}model.{name}": min(layer, above) for name, layer in inner.items()}
            return {**numbers, f"{start}mask_token": 0}, above
    return {}, 0


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the trained parameters of `model` in groups for an optimizer.

    Each group has `scale`: the loop gives it that share of the learning rate, `layer_decay` to the power of the layers
    above it. Biases, 1-D tensors and what timm exempts (embeddings, tokens, bias tables) have no weight decay.

    Args:
        model: a `Backbone`, or a network with one anywhere inside; what does not require a gradient is left out.
        weight_decay: of the others.
        layer_decay: rate of a layer over that of the layer above it.
    """
    numbers, top = layer_numbers(model)
    exempt = _exempt(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
            groups.setdefault((numbers.get(name, top), decayed), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": weight_decay if decayed else 0.0,
            "scale": layer_decay ** (top - layer),
        }
        for (layer, decayed), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(groups: list[dict[str, Any]], name: OptimizerName = "adamw") -> Optimizer:
    """Return AdamW, or SGD with momentum 0.9, over `parameter_groups`; the loop sets the learning rates.

    The fused kernels update each element by itself, so a step is bit-repeatable.
    """
    if name == "sgd":
        return SGD(groups, lr=0.0, momentum=MOMENTUM, fused=True)
    return AdamW(groups, lr=0.0, fused=True)


def _exempt(model: nn.Module) -> set[str]:
    """Return the names that timm exempts from weight decay, as `model` has them."""
    return {
        f"{prefix}.model.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, Backbone)
        for name in module.model.no_weight_decay()
    }
