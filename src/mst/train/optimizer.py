"""AdamW with one rule for weight decay, and gradient clipping per parameter tensor, both as DINO does them.

Source: Caron et al. 2021, section 3.2 and appendix; Loshchilov and Hutter 2019 (AdamW).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mst.config.schema import OptimizerConfig
from mst.model.pair import TeacherStudent, own_part
from mst.parallel.replicas import l2_norms

DECAYED, UNDECAYED = 0, 1


def trained_parameters(pair: TeacherStudent) -> list[tuple[str, nn.Parameter]]:
    """Return the student's and the decoder's parameters that learn, by name, in a fixed order."""
    modules = [("student", pair.student), ("decoder", pair.decoder)]
    return [
        (f"{part}.{name}", parameter)
        for part, module in modules
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: not to biases and not to 1-D tensors."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def build_optimizer(pair: TeacherStudent, config: OptimizerConfig) -> AdamW:
    """Return AdamW over all that learns, in two groups: with decay, without.

    The fused kernel updates each element by itself on CPU and CUDA, so a step is bit-repeatable.
    """
    named = trained_parameters(pair)
    groups = [
        {"params": [p for name, p in named if is_decayed(name, p)]},
        {"params": [p for name, p in named if not is_decayed(name, p)]},
    ]
    return AdamW(groups, lr=0.0, betas=config.betas, weight_decay=0.0, fused=True)


def set_step_values(optimizer: AdamW, *, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate, and the weight decay of the group that has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.param_groups[DECAYED]["weight_decay"] = weight_decay
    optimizer.param_groups[UNDECAYED]["weight_decay"] = 0.0


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that are there."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_per_tensor_(
    parameters: Iterable[nn.Parameter],
    max_norm: float | None,
    norms: Callable[[Sequence[Tensor]], Tensor] = l2_norms,
) -> Tensor:
    """Scale each parameter's gradient by itself so that its L2 norm is at most `max_norm`, in place.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: None only measures.
        norms: takes gradients, returns their L2 norms [P].

    Returns:
        The norms before clipping [P], float32, one per parameter with a gradient.
    """
    grads = gradients(parameters)
    if not grads:
        return torch.zeros(0)
    stacked = norms(grads)  # [P]
    if max_norm is not None:
        scales = (max_norm / (stacked + 1e-6)).clamp(max=1.0)  # [P]
        torch._foreach_mul_([own_part(gradient) for gradient in grads], list(scales.unbind()))
    return stacked
