"""Whether a checkpoint's contents fit what they are to be loaded into, looked at before anything is changed.

A digest says that a file is as it was written, not that it belongs here: torch's optimizers take a state of any shape,
and their fused kernels then write past its end. Each function raises `Unfit`, whose message names the entry and what is
wrong with it; the caller puts the checkpoint's path before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mst.weights.tensors import oddity, strange_number, type_name

STEP, SQUARES = "step", ("exp_avg_sq", "max_exp_avg_sq")
STATE_KEYS: dict[type[Optimizer], frozenset[str]] = {
    AdamW: frozenset({STEP, "exp_avg", "exp_avg_sq"}),
    Adam: frozenset({STEP, "exp_avg", "exp_avg_sq"}),
    SGD: frozenset({"momentum_buffer"}),
}
"""What an optimizer keeps for a parameter, once it has had a gradient."""
SCHEDULED = ("lr", "weight_decay", "initial_lr")
"""Settings of a group that a loop sets anew in each step."""
MOST_COUNTED = 2**53
"""Counts are whole up to here, whatever they went through."""


class Unfit(ValueError):
    """A part of a checkpoint cannot be loaded; the message names the entry, what it is and what it must be."""


def check_module(part: object, module: nn.Module, name: str) -> None:
    """Refuse a state dictionary that is not exactly this module's: names, shapes, types, finite numbers.

    Args:
        part: what the checkpoint holds.
        module: what it is to be loaded into; not changed.
        name: of the part, for the message.

    Raises:
        Unfit: with counts and the first entry that differs.
    """
    values, expected = _mapping(part, name), module.state_dict()
    for names, what in ((expected.keys() - values.keys(), "misses"), (values.keys() - expected.keys(), "also has")):
        if names:
            first = min(map(str, names))
            raise Unfit(f"{name} {what} {len(names)} of {len(expected)} tensors (first {first})")
    for key, like in expected.items():
        check_tensor(values[key], like, f"{name} {key}")
        if key.endswith("running_var"):
            _check_not_negative(values[key], f"{name} {key}")


def check_tensor(value: object, like: Tensor, name: str, *, finite: bool = True) -> None:
    """Refuse what is no dense tensor of the shape and type of `like`, or, with `finite`, holds NaN or infinity.

    Raises:
        Unfit: it is so.
    """
    if (odd := oddity(value)) is not None:
        raise Unfit(f"{name} {odd}")
    assert isinstance(value, Tensor)
    if value.shape != like.shape:
        raise Unfit(f"{name} has shape {list(value.shape)} instead of {list(like.shape)}")
    if value.dtype != like.dtype:
        raise Unfit(f"{name} has type {type_name(value.dtype)} instead of {type_name(like.dtype)}")
    if finite and (found := strange_number(value)) is not None:
        raise Unfit(f"{name} holds {found}")


def check_optimizer(part: object, optimizer: Optimizer, name: str = "optimizer", *, steps: int) -> None:
    """Refuse an optimizer's state that this optimizer could not have written after `steps` steps.

    Args:
        part: what the checkpoint holds.
        optimizer: what it is to be loaded into, with its parameters; not changed.
        name: of the part, for the message.
        steps: done so far; no counter may be above.

    Raises:
        Unfit: other groups, settings of another kind, a state of another shape, numbers that are not finite.
    """
    values = _mapping(part, name)
    groups, states = values.get("param_groups"), _mapping(values.get("state"), f"{name} state")
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        count = len(groups) if isinstance(groups, list) else "no"
        raise Unfit(f"{name} has {count} parameter groups instead of {len(own)}")
    for number, (group, expected) in enumerate(zip(groups, own, strict=True)):
        _check_group(_mapping(group, f"{name} group {number}"), expected, f"{name} group {number}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unknown = [key for key in states if type(key) is not int or not 0 <= key < len(parameters)]
    if unknown:
        raise Unfit(f"{name} has a state of parameter {unknown[0]!r}; there are {len(parameters)}")
    needed = next((keys for kind, keys in STATE_KEYS.items() if isinstance(optimizer, kind)), None)
    storages: dict[int, str] = {}
    for key, state in states.items():
        place = f"{name} state of parameter {key}"
        found = _mapping(state, place)
        if needed is not None and found.keys() != needed and found:
            raise Unfit(f"{place} has {_listed(found)} instead of {_listed(needed)}")
        for entry, value in found.items():
            _check_entry(value, parameters[key], entry, f"{place}, {entry},", steps)
            _check_storage(value, f"{place}, {entry},", storages)


def whole(values: Mapping[str, Any], key: str, *, most: int = MOST_COUNTED) -> int:
    """Return the count `values[key]`.

    Raises:
        Unfit: it is missing, or no whole number from 0 to `most`.
    """
    value = values.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise Unfit(f"{key} is {_short(value)}: must be a whole number from 0 to {most}")
    return value


def number(values: Mapping[str, Any], key: str, *, least: float = -sys.float_info.max) -> float:
    """Return the finite number `values[key]`.

    Raises:
        Unfit: it is missing, no number, not finite or below `least`.
    """
    value = values.get(key)
    if not isinstance(value, int | float) or type(value) is bool or not least <= value <= sys.float_info.max:
        limit = f" of at least {least:g}" if least >= 0 else ""
        raise Unfit(f"{key} is {_short(value)}: must be a finite number{limit}")
    return float(value)


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the values by name at `values[key]`.

    Raises:
        Unfit: they are missing, or something else.
    """
    return _mapping(values.get(key), key)


def _mapping(value: object, name: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise Unfit(f"{name} is {'missing' if value is None else type(value).__name__} instead of values by name")
    return value


def _check_group(group: Mapping[Any, Any], expected: Mapping[str, Any], name: str) -> None:
    """Refuse a group of other parameters, or with settings of another kind.

    A switch that only one version of torch knows may be missing or in excess.
    """
    if group.get("params") != expected["params"]:
        raise Unfit(f"{name} is not of the {len(expected['params'])} parameters here")
    for key, own in expected.items():
        if key not in group and (own is None or type(own) is bool):
            continue
        saved = group.get(key)
        if key in SCHEDULED:
            number(group, key, least=0.0)
        elif key != "params" and not _same(saved, own):
            raise Unfit(f"{name} has {key} {_short(saved)} instead of {own}")


def _same(saved: object, own: object) -> bool:
    """Whether a setting is the same; a sequence may have become a list."""
    if isinstance(own, tuple | list):
        return isinstance(saved, tuple | list) and len(saved) == len(own) and all(map(_same, saved, own))
    return type(saved) is type(own) and saved == own and not isinstance(own, Tensor)


def _check_entry(value: object, parameter: Tensor, entry: object, place: str, steps: int) -> None:
    """Refuse what an optimizer cannot keep under `entry` for a parameter."""
    if value is None and entry == "momentum_buffer":  # before the first gradient
        return
    if entry == STEP:
        count = value.item() if isinstance(value, Tensor) and oddity(value) is None and value.ndim == 0 else None
        if not isinstance(count, float) or not 0 <= count <= steps or count != int(count):
            raise Unfit(f"{place} is {_short(value)}: must be a whole number of type float32 from 0 to {steps}")
        return
    check_tensor(value, parameter, place)
    if entry in SQUARES:
        _check_not_negative(value, place)  # type: ignore[arg-type]
    if _layout(value) != _layout(parameter):  # type: ignore[arg-type]
        raise Unfit(f"{place} lies in memory in another order than its parameter")


def _check_not_negative(value: Tensor, place: str) -> None:
    if value.numel() and value.min().item() < 0:
        raise Unfit(f"{place} holds {value.min().item():g}: a mean of squares is not below 0")


def _check_storage(value: object, place: str, storages: dict[int, str]) -> None:
    """Refuse memory that two entries share: a step would write it twice."""
    if isinstance(value, Tensor) and value.numel():
        other = storages.setdefault(value.untyped_storage().data_ptr(), place)
        if other is not place:
            raise Unfit(f"{place} shares its memory with {other.rstrip(',')}")


def _layout(value: Tensor) -> list[int]:
    """Return the strides of all dimensions in which there is a second element."""
    return [step for size, step in zip(value.shape, value.stride(), strict=True) if size > 1]


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"


def _short(value: object) -> str:
    """Return a value as one short line."""
    if value is None:
        return "missing"
    if isinstance(value, Tensor):
        text = str(value.item()) if value.numel() == 1 and oddity(value) is None else f"a tensor {list(value.shape)}"
    else:
        text = (
            " ".join(repr(value).split())
            if isinstance(value, str | int | float | list | tuple)
            else type(value).__name__
        )
    return text if len(text) <= 40 else f"{text[:40]}..."
