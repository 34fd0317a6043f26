"""From a timm name and a few overrides to an initialised backbone."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any, NamedTuple

import timm
import torch

from mst.config.schema import ModelConfig
from mst.errors import UsageError
from mst.model.backbone import Backbone, BackboneSpec, LinearInit, Positions, check_image_size
from mst.model.families.eva import EvaBackbone
from mst.model.families.swin import CELL, SwinBackbone
from mst.model.families.vit import VitBackbone
from mst.model.stochastic_depth import replace_drop_paths

FAMILIES: dict[str, type[VitBackbone | EvaBackbone | SwinBackbone]] = {
    "vision_transformer": VitBackbone,
    "deit": VitBackbone,
    "eva": EvaBackbone,
    "swin_transformer": SwinBackbone,
    "swin_transformer_v2": SwinBackbone,
}
"""timm modules whose models this package can read, with their adapters."""


class OwnSizes(NamedTuple):
    """What a timm name stands for.

    Attributes:
        patch_size: pixels per side of a token (Swin: of the last stage).
        embed_dim: width of the tokens (Swin: of the first stage).
        num_heads: of the first block.
        depth: blocks of all stages.
        width: D of the last block.
        parameters: of the whole network.
    """

    patch_size: int
    embed_dim: int
    num_heads: int
    depth: int
    width: int
    parameters: int


def backbone_spec(config: ModelConfig, *, image_size: tuple[int, int], channels: int) -> BackboneSpec:
    """Return what `build_backbone` needs, checked.

    Args:
        config: timm name and overrides.
        image_size: (H, W) of a global crop.
        channels: C.

    Raises:
        UsageError: unknown name, a network without patch tokens, a size that patches do not tile.
    """
    name = config.backbone.split(".")[0]
    family(name)
    own = own_sizes(name)
    width, heads = config.embed_dim or own.embed_dim, config.num_heads or own.num_heads
    if width % heads:
        raise UsageError(
            f"--model.embed-dim {width} is not a multiple of --model.num-heads {heads}: change one of them"
        )
    spec = BackboneSpec(
        name=name,
        image_size=image_size,
        channels=channels,
        patch_size=config.patch_size or own.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
    )
    check_image_size(image_size, spec.patch_size, "crop size")
    return spec


def build_backbone(
    spec: BackboneSpec,
    *,
    drop_path: float = 0.0,
    seed: int = 0,
    init: LinearInit = "trunc_normal",
    positions: Positions = "learned",
) -> Backbone:
    """Build a backbone and initialise it from `seed`; the process's random state is left alone.

    Args:
        spec: from `backbone_spec` or a backbone file.
        drop_path: stochastic depth rate of the last block, linear from zero at the first.
        seed: of the weights.
        init: of the linear layers, see `Backbone.init_weights`.
        positions: learned or fixed position embeddings, see `Backbone.init_weights`.

    Raises:
        UsageError: a network that this package cannot read, or that has no positions to fix.
    """
    adapter = FAMILIES[family(spec.name)]
    arguments = adapter.timm_arguments(spec)
    try:
        with torch.random.fork_rng(devices=[]):
            model: Any = timm.create_model(spec.name, drop_path_rate=drop_path, **adapter.ANY_SIZE, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        raise UsageError(
            f"timm cannot build {spec.name} with {arguments}: {str(error) or 'sizes do not fit'}"
        ) from error
    replace_drop_paths(model)
    backbone = adapter(spec, model)
    backbone.init_weights(seed, init, positions)
    return backbone


def untrained_like(backbone: Backbone, *, seed: int) -> Backbone:
    """Return the same network with fresh weights, on the CPU, in evaluation mode, with the same metadata."""
    known = backbone.metadata
    fresh = build_backbone(
        backbone.spec,
        seed=seed,
        init=known.get("init", "trunc_normal"),
        positions=known.get("positions", "learned"),
    ).eval()
    fresh.metadata = known
    return fresh


def timm_arguments(spec: BackboneSpec) -> dict[str, Any]:
    """Return the keyword arguments with which `timm.create_model(spec.name, ...)` makes the same network."""
    return FAMILIES[family(spec.name)].timm_arguments(spec)


def any_size_arguments(name: str) -> dict[str, Any]:
    """Return what makes timm's network of this name give this package's features for images of other sizes, too.

    Empty where it cannot (Swin): timm's network then refuses other sizes.
    """
    adapter = FAMILIES[family(name)]
    return adapter.ANY_SIZE if adapter.SAME_AT_ANY_SIZE else {}


def family(name: str) -> str:
    """Return the timm module of a model name without a tag.

    Raises:
        UsageError: timm has no such model, or it is none that this package can read.
    """
    for module in FAMILIES:
        if name in timm.list_models(module=module):
            return module
    readable = [known for module in FAMILIES for known in timm.list_models(module=module)]
    if timm.is_model(name):
        raise UsageError(
            f"backbone {name!r} is not a network of patch tokens that this package can mask: "
            f"use a model of {', '.join(FAMILIES)} (for example deit_small_patch16_224)"
        )
    near = difflib.get_close_matches(name, readable, n=3, cutoff=0.3)
    raise UsageError(
        f"backbone {name!r} is not a timm model: did you mean {', '.join(near) or 'deit_small_patch16_224'}?"
    )


@cache
def own_sizes(name: str) -> OwnSizes:
    """Return what a timm name stands for."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    height, width = model.patch_embed.patch_size
    if height != width:
        raise UsageError(f"backbone {name!r} has {height}x{width} px patches: use a model with square patches")
    heads = [int(layer.num_heads) for layer in model.modules() if hasattr(layer, "num_heads")]
    cell = CELL if hasattr(model, "layers") else 1  # Swin: one token of the last stage
    blocks = sum(len(stage.blocks) for stage in model.layers) if cell > 1 else len(model.blocks)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = int(model.num_features if cell > 1 else model.embed_dim)
    return OwnSizes(int(height) * cell, int(model.embed_dim), heads[0], blocks, width, parameters)
