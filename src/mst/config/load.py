"""A base configuration plus overrides, or a JSON file, into a checked `RunConfig`; every mistake is one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from mst.config.keys import (
    SHORT,
    allowed,
    choices,
    flag,
    is_flag,
    is_open_ended,
    setting_fields,
    suggestion,
    takes_several,
)
from mst.config.schema import Choice, RunConfig, Settings, ViewsConfig
from mst.errors import ConfigError, UsageError
from mst.paths import absolute_place, like_named, user_path

Overrides = Mapping[str, object]
"""Dotted key -> value; hyphens and underscores are the same; a text or list of texts is converted to the key's type."""


def known_key(name: str) -> str:
    """Return the dotted key that `name` means.

    Raises:
        ConfigError: there is no such key; the nearest is named.
    """
    key = name.replace("-", "_")
    key = SHORT.get(key, key)
    fields = setting_fields()
    if key in fields:
        return key
    if key in Settings.model_fields:
        inside = ", ".join(Settings.model_fields[key].annotation.model_fields)  # type: ignore[union-attr]
        raise ConfigError(f"{flag(key)} is a section; its keys are {inside}")
    known = suggestion(key, fields, prefix="--").replace("_", "-")
    raise ConfigError(f"unknown setting {flag(name)}{known} (all settings: mst pretrain --help-all)")


def override(base: RunConfig, overrides: Overrides) -> RunConfig:
    """Return `base` with some keys replaced.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or outside its range.
    """
    values = base.model_dump(mode="python")
    keys = [known_key(name) for name in overrides]
    for key, value in zip(keys, overrides.values(), strict=True):
        section, _, leaf = key.partition(".")
        values[section][leaf] = _from_words(key, value)
    _let_statistics_give_way(values, keys)
    return _stated(_checked(values), keys)


def _stated(config: RunConfig, keys: Iterable[str]) -> RunConfig:
    """Return a configuration whose choice knows that these keys were set: they stay, or are no choice any more."""
    choice = config.choice
    if choice is None:
        return config
    keys = tuple(dict.fromkeys((*choice.given, *keys)))
    reasons = {key: reason for key, reason in choice.reasons.items() if key not in keys}
    return config.model_copy(update={"choice": choice.model_copy(update={"given": keys, "reasons": reasons})})


def with_given(config: RunConfig, keys: Iterable[str]) -> RunConfig:
    """Return a configuration that knows that a user set these keys (dotted or short): all others are its recipe's."""
    return config.model_copy(update={"given": tuple(dict.fromkeys((*config.given, *map(known_key, keys))))})


def _let_statistics_give_way(values: dict[str, Any], keys: Iterable[str]) -> None:
    """Measure mean and deviation where a recipe's own are those of another number of channels than was asked for."""
    if "data.channels" not in keys or {"views.mean", "views.std"} & set(keys):
        return
    views, default = values["views"], ViewsConfig()
    if (tuple(views["mean"]), tuple(views["std"])) == (default.mean, default.std):
        return  # measured anyhow, unless they fit
    fits = [name for name in ("mean", "std") if str(len(views[name])) == str(values["data"]["channels"])]
    if "auto" not in (views["mean"], views["std"]) and not fits:
        views["mean"] = views["std"] = "auto"


def as_chosen(config: RunConfig, stored: RunConfig) -> RunConfig:
    """Return a configuration with what a run with these settings has chosen for itself, where it has."""
    if stored.choice is None:
        return config
    values = flatten(stored)
    chosen = override(config.model_copy(update={"choice": None}), {key: values[key] for key in stored.choice.reasons})
    return chosen.model_copy(update={"choice": stored.choice})


def with_minutes(config: RunConfig, minutes: float | None) -> RunConfig:
    """Return a configuration whose run shall take so long; None = as long as it says itself.

    A recipe that leaves its settings to the images keeps doing so; of any other the number of epochs alone is chosen.
    """
    if minutes is None:
        return config
    choice = config.choice
    if choice is None or choice.facts:
        choice = Choice(given=tuple(key for key in setting_fields() if key != "train.epochs"))
    return config.model_copy(update={"choice": choice.model_copy(update={"minutes": minutes})})


def load_config(path: str | Path, base: Callable[[str], RunConfig] | None = None) -> RunConfig:
    """Read a configuration: the `config.json` of a run, or a file with only the keys that differ from the defaults.

    Keys are nested (`{"train": {"epochs": 10}}`) or dotted (`{"train.epochs": 10}`); the text is UTF-8, 16 or 32.

    Args:
        path: the file.
        base: takes the file's `recipe` and returns what its keys change; None = the defaults.

    Raises:
        ConfigError: the file is missing, is not JSON, or holds an unknown key, one key twice or a bad value.
    """
    path = user_path(path)
    values = _read(path)
    if isinstance(values.get("task"), str):
        task = values["task"]
        raise ConfigError(f"{path} holds the settings of mst {task}, not of mst pretrain: go on with mst {task}")
    config = _checked(_over(values, base, path), where=f"{path}: ")
    own = _keys_of(values)
    if "given" not in values and len(own) < len(setting_fields()):  # not the settings of a run, which are all there
        config = with_given(config, own)
    if config.choice is None or "choice" in values:
        return config
    return _stated(config, _keys_of(values))


def _keys_of(values: dict[str, Any]) -> list[str]:
    """Return the dotted keys that a file's object sets."""
    keys = [known_key(name) for name in values if "." in name]
    nested = [f"{name}.{key}" for name, value in values.items() if isinstance(value, dict) for key in value]
    return [*keys, *nested]


def _read(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file."""
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=_no_key_twice)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist{like_named(path)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        hint = " (YAML is not read: write JSON)" if path.suffix.lower() in {".yaml", ".yml"} else ""
        raise ConfigError(f"{path} is not a JSON configuration: {error}{hint}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a JSON configuration: expected an object of sections")
    return values


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _over(values: dict[str, Any], base: Callable[[str], RunConfig] | None, path: Path) -> dict[str, Any]:
    """Return the values by section, laid over those of the recipe that they name."""
    recipe = values.get("recipe")
    found: dict[str, Any] = base(recipe).model_dump(mode="python") if base and isinstance(recipe, str) else {}
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if dot:
            key = known_key(name).partition(".")[2]
            nested = values.get(section)
            if isinstance(nested, dict) and key in nested:
                raise ConfigError(f"{path}: {name} stands there twice")
            found[section] = {**_section(found, section), key: value}
        elif isinstance(value, dict):
            found[section] = {**_section(found, section), **value}
        else:
            found[name] = value
    return found


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name, {})
    return section if isinstance(section, dict) else {}


def require_data(config: RunConfig) -> None:
    """Refuse a run without images.

    Raises:
        UsageError: --data.train is missing.
    """
    if not config.data.train or not all(config.data.train):  # "" would be the working directory
        raise UsageError("--data.train is missing: name a folder of images (searched at any depth) or a list of paths")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return `config` with its paths made absolute, so that a run can be resumed from any working directory."""
    data, model, monitor = config.data, config.model, config.monitor
    labelled = {"knn_data": monitor.knn_data, "knn_labels": monitor.knn_labels}
    labelled = {key: None if place is None else absolute_place(place) for key, place in labelled.items()}
    shards = None if data.shard_cache is None else _absolute(data.shard_cache)
    return config.model_copy(
        update={
            "data": data.model_copy(update={"train": tuple(map(absolute_place, data.train)), "shard_cache": shards}),
            "model": model.model_copy(update={"init_from": _absolute_source(model.init_from)}),
            "monitor": monitor.model_copy(update=labelled),
        }
    )


def _absolute(path: str) -> str:
    return os.path.abspath(user_path(path))


def _absolute_source(source: str | None) -> str | None:
    return source if source is None or source.startswith("timm:") else _absolute(source)


def dump_config(config: RunConfig) -> str:
    """Return the JSON text that `load_config` reads back to an equal record."""
    return json_text(config)


def json_text(record: BaseModel) -> str:
    """Return a record as JSON; names that are not UTF-8 keep their bytes (as `os.fsdecode` gives them), escaped."""
    try:
        return record.model_dump_json(indent=2) + "\n"
    except PydanticSerializationError:
        return json.dumps(record.model_dump(mode="json"), indent=2) + "\n"


def flatten(config: RunConfig) -> dict[str, object]:
    """Return every setting as dotted key -> value."""
    values = config.model_dump(mode="python")
    return {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in setting_fields()}


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the dotted keys whose values differ."""
    before, after = flatten(old), flatten(new)
    return [key for key in before if before[key] != after[key]]


def _from_words(key: str, value: object) -> object:
    """Turn the words of a flag into what pydantic converts: one text, a tuple of texts, or None."""
    field = setting_fields()[key]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, list | tuple):
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        return value  # a typed value from Python
    if not words and is_flag(field):
        return True
    if not words:
        raise ConfigError(f"{flag(key)} has no value: it must be {allowed(field)}")
    if len(words) == 1 and words[0].lower() == "none":
        return "none" if "none" in allowed(field).replace(", or none", "") else None
    if len(words) == 1 and words[0] in choices(field.annotation):
        return words[0]
    return tuple(words) if is_open_ended(field) or (takes_several(field) and len(words) > 1) else words[0]


def _checked(values: dict[str, Any], where: str = "") -> RunConfig:
    """Validate; the first error of pydantic becomes one line."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(where + _one_line(error, values)) from None


def _one_line(error: ValidationError, values: dict[str, Any]) -> str:
    """Name the key, the value received and the values allowed."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location[:2])
    fields = setting_fields()
    if first["type"] == "extra_forbidden":
        known = [*fields, *Settings.model_fields, "recipe"]
        return f"unknown setting {key}{suggestion(key, known)}"
    if key not in fields:
        return f"{key}: {first['msg']}, received {_show(first['input'])}"
    received = values[location[0]][location[1]]
    near = suggestion(_show(received), choices(fields[key].annotation))
    return f"{flag(key)} {_show(received)}: must be {allowed(fields[key])}{near}"


def _show(value: object) -> str:
    """Write a value as it was typed."""
    return " ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
