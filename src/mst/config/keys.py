"""The settings by their dotted names: which there are, what each may be, and the nearest one to a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from mst.config.schema import SIZE, Section, Settings

CLOSE_ENOUGH = 0.5
"""Smallest similarity (difflib's ratio) of a name worth suggesting."""


SHORT = {
    "init": "model.init_from",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "optimizer.lr",
    "seed": "runtime.seed",
    "channels": "data.channels",
}
"""Settings that have a short name as well, where a command has no option of that name itself."""


def setting_fields() -> dict[str, FieldInfo]:
    """Return every setting as `section.key` -> its field, in the schema's order."""
    return {
        f"{section}.{key}": field
        for section, outer in Settings.model_fields.items()
        if isinstance(outer.annotation, type) and issubclass(outer.annotation, Section)
        for key, field in outer.annotation.model_fields.items()
    }


def flag(key: str) -> str:
    """Return a dotted key as it is written on the command line: `train.batch_size` -> `--train.batch-size`.

    The name of a field that would be a word of Python ends in `_`: `continue_` -> `--continue`.
    """
    return "--" + key.rstrip("_").replace("_", "-")


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name most like `word`, or None when none is.

    The last part of a dotted name counts as well, so `epochs` finds `train.epochs`.
    """
    candidates = {name: name for name in names}
    candidates |= {name.rpartition(".")[2]: name for name in reversed(candidates) if "." in name} | candidates
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=CLOSE_ENOUGH)
    return candidates[close[0]] if close else None


def suggestion(word: str, names: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean X?`, or nothing when no name is near."""
    found = nearest(word, names)
    return f"; did you mean {prefix}{found}?" if found else ""


def is_flag(field: FieldInfo) -> bool:
    """Whether a setting is on or off."""
    return field.annotation is bool


def takes_several(field: FieldInfo) -> bool:
    """Whether a setting is written as several words (a tuple, or a number or a tuple)."""
    return any(get_origin(part) is tuple for part in _alternatives(field.annotation))


def is_open_ended(field: FieldInfo) -> bool:
    """Whether a setting is a list of any length, to which a repeated flag adds."""
    return any(get_args(part)[-1:] == (Ellipsis,) for part in _alternatives(field.annotation))


def allowed(field: FieldInfo) -> str:
    """Return in words which values a setting may have: `a number from 0 to 1`, `one of auto, fp32, bf16`."""
    return describe_type(field.annotation, field.metadata)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the words that a type allows; none where it is no choice of words."""
    parts = (part for part in _alternatives(annotation) if get_origin(part) is Literal)
    return tuple(str(choice) for part in parts for choice in get_args(part))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Split `A | B` into its parts; anything else is its own only part."""
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def describe_type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return in words what a type allows, with the limits found in its metadata."""
    if get_origin(annotation) in {Union, UnionType}:
        parts = [describe_type(part) for part in get_args(annotation) if part is not NoneType]
        return " or ".join(parts) + (", or none" if NoneType in get_args(annotation) else "")
    if hasattr(annotation, "__metadata__"):  # Annotated[base, ...]
        limits = [item for extra in annotation.__metadata__ for item in getattr(extra, "metadata", [extra])]
        return describe_type(get_args(annotation)[0], limits)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        if items[-1] is Ellipsis:
            return f"a list of values, each {describe_type(items[0])}"
        return f"{len(items)} values, each {describe_type(items[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(annotation, str(annotation)) + _describe_limits(metadata)


def _describe_limits(metadata: Iterable[Any]) -> str:
    """Describe Ge, Gt, Le and Lt limits in words."""
    low = high = ""
    limits = list(metadata)
    if any(getattr(limit, "pattern", None) == SIZE for limit in limits):
        return " such as 500MB or 2TB"
    for limit in limits:
        match limit:
            case Ge(ge=bound):
                low = f"from {bound:g}"
            case Gt(gt=bound):
                low = f"above {bound:g}"
            case Le(le=bound):
                high = f"to {bound:g}"
            case Lt(lt=bound):
                high = f"below {bound:g}"
            case _:
                continue
    if low and not high:
        low = low.replace("from", "of at least")
    if low.startswith("above") and high.startswith("to"):
        high = high.replace("to", "at most", 1)
    joint = " " if high.startswith("to") else " and "
    return f" {low}{joint if low and high else ''}{high}" if low or high else ""
