"""Whether the first step of a fine-tuning fits into memory: known before anything is written, said in one line."""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from mst.engine.fitting import MicrobatchSize, check_counted
from mst.engine.footprint import training_bytes
from mst.engine.layer_decay import build_optimizer, parameter_groups
from mst.finetune.classifier import Classifier
from mst.model.bounds import most_of_scores, most_of_tokens
from mst.parallel.shares import own_share
from mst.runtime.device import select_device, select_precision
from mst.views.normalise import normalise
from mst.workflows.finetuning.batches import mixed_loss
from mst.workflows.finetuning.start import FinetuneConfig, Network


def check_fits(config: FinetuneConfig, network: Network, model: Classifier) -> None:
    """Refuse a training whose first step cannot fit into the memory of its device; warn where it is tight.

    Raises:
        UsageError: it cannot; says what is needed and available, and which option to change to what.
    """
    asked = microbatch_of(config)
    count = partial(counted_bytes, config, network, model)
    check_counted(asked, count, most=most_bytes(network, model, asked.images))


def microbatch_of(config: FinetuneConfig) -> MicrobatchSize:
    """Return what a microbatch is."""
    protocol, parts = config.protocol, config.protocol.accumulate * own_share().size
    return MicrobatchSize(
        min(protocol.batch_size, -(-protocol.images // parts) * protocol.repeats),
        protocol.batch_size,
        protocol.accumulate,
        select_device(config.device, flag="--device"),
        smaller="smaller images (--size)",
        network="a smaller network (--backbone)",
    )


def most_bytes(network: Network, model: Classifier, images: int) -> int:
    """Return an upper bound of the bytes of a step, from the sizes of network and images alone."""
    spec, pixels = network.spec, network.spec.channels * prod(network.spec.image_size)
    tokens = prod(spec.image_size) // spec.patch_size**2 + 1
    fixed = 24 * sum(parameter.numel() for parameter in model.parameters()) + 2**28
    each = 24 * pixels + most_of_tokens(spec, kept=tokens, seen=tokens) + most_of_scores(spec, tokens)
    return round(fixed + images * (each + 24 * model.head.out_features))


def counted_bytes(config: FinetuneConfig, network: Network, model: Classifier, images: int, most: int) -> int:
    """Return the memory of a step whose microbatches have so many images.

    Raises:
        TooManyBytes: more than `most`.
    """
    protocol, device = config.protocol, select_device(config.device, flag="--device")
    dtype, _ = select_precision(config.running.precision, device)
    shape = images, network.spec.channels, *network.spec.image_size

    def loss(like: nn.Module) -> Tensor:
        pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        labels = torch.zeros(images, dtype=torch.int64, device=device)
        views = normalise(pixels, network.mean, network.std)
        draw = np.random.default_rng(0)
        return mixed_loss(like, views, labels, protocol=protocol, classes=model.head.out_features, draw=draw)

    return training_bytes(
        model,
        lambda like: build_optimizer(parameter_groups(like, weight_decay=protocol.weight_decay)),
        loss,
        device=device,
        dtype=dtype,
        microbatches=protocol.accumulate,
        most=most,
    )
