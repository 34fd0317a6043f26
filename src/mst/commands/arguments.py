"""The words after `mst pretrain` or `mst plan`: a recipe, the command's own options, and --section.key overrides.

tyro describes the flags (`--help`); the words are collected here and converted by pydantic, so that every mistake is
one line that names the flag, the value and what is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from mst.config.keys import flag, is_flag, is_open_ended, setting_fields, suggestion, takes_several
from mst.config.load import known_key
from mst.config.schema import RunConfig, Settings
from mst.errors import ConfigError, UsageError

Options = TypeVar("Options")
Words = dict[str, list[str]]
SHORT = {"init": "model.init_from"}
"""Settings that have a short flag as well."""


def parse_arguments(argv: Sequence[str], options: Options, *, positional: str | None) -> tuple[Options, Words]:
    """Sort words into the command's options and the settings to override.

    Args:
        argv: the words after the command.
        options: a frozen dataclass with the defaults: a `bool` is a flag without value, a `str` takes one word.
            A field named `settings` is left alone: it is there for `--help`.
        positional: the field that takes the one word without a flag; None = there is none.

    Returns:
        The options, and the words of each setting by its dotted key.

    Raises:
        UsageError: an unknown flag (the nearest is named), a missing or an unexpected word.
    """
    own = {field.name: getattr(options, field.name) for field in fields(options)}  # type: ignore[arg-type]
    own.pop("settings", None)
    found: dict[str, Any] = {}
    words: Words = {}
    current: str | None = None
    for token in _split_equals(argv):
        if token.startswith("--"):
            _require_value(current, own, found)
            name = token[2:].replace("-", "_")
            current = _open_flag(name, own, positional, found, words)
        elif current in words and _has_room(current, words[current]):
            words[current].append(token)
        elif current in own and current not in found:
            found[current] = token
        elif positional is not None and positional not in found:
            found[positional] = token
        else:
            raise UsageError(f"unexpected word {token}: expected {_shape(positional)}")
    _require_value(current, own, found)
    return replace(options, **found), words  # type: ignore[type-var]


def _require_value(current: str | None, own: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse an option that another flag, or the end, follows at once."""
    if current is not None and current in own and current not in found:
        raise UsageError(f"{flag(current)} needs a value")


def _shape(positional: str | None) -> str:
    return f"one {positional} and then --option value" if positional else "only --option value"


def _split_equals(argv: Sequence[str]) -> list[str]:
    """Write `--key=value` as `--key value`."""
    return [part for token in argv for part in (token.split("=", 1) if token.startswith("--") else [token])]


def _open_flag(
    name: str, own: dict[str, Any], positional: str | None, found: dict[str, Any], words: Words
) -> str | None:
    """Note a flag; return the key that the next words belong to."""
    if name in own and name != positional:
        if isinstance(own[name], bool):
            found[name] = True
            return None
        found.pop(name, None)
        return name
    name = SHORT.get(name, name)
    if name.startswith("no_") and isinstance(own.get(name.removeprefix("no_")), bool):
        found[name.removeprefix("no_")] = False
        return None
    settings = setting_fields()
    section, _, leaf = name.partition(".")
    negated = f"{section}.{leaf.removeprefix('no_')}"
    if name not in settings and leaf.startswith("no_") and negated in settings and is_flag(settings[negated]):
        words[negated] = ["false"]
        return None
    if name not in settings and name not in Settings.model_fields:
        known = suggestion(name, [*own, *settings], prefix="--").replace("_", "-")
        raise ConfigError(f"unknown option {flag(name)}{known}")
    key = known_key(name)
    if not (is_open_ended(settings[key]) and key in words):
        words[key] = []
    return key


def _has_room(key: str, words: list[str]) -> bool:
    """Whether a setting takes one more word."""
    return takes_several(setting_fields()[key]) or not words


def wants_help(argv: Sequence[str]) -> bool:
    """Whether -h or --help is among the words."""
    return "-h" in argv or "--help" in argv


def show_help(options: type[object], prog: str) -> int:
    """Write every option and setting with its meaning and default to stdout; return exit status 0."""
    import tyro

    try:
        tyro.cli(options, prog=prog, args=["--help"])
    except SystemExit:
        sys.stdout.flush()
    return 0


def require_data(config: RunConfig) -> None:
    """Refuse a run without images.

    Raises:
        UsageError: --data.train is missing.
    """
    if not config.data.train or not all(config.data.train):  # "" would be the working directory
        raise UsageError("--data.train is missing: name a folder of images (searched at any depth) or a list of paths")
