"""Overrides and JSON files: what is understood, and the one line for each mistake."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from mst.config.derive import Measured, check_consistent, derive
from mst.config.keys import allowed, nearest, setting_fields
from mst.config.load import changed_keys, dump_config, flatten, load_config, override
from mst.config.schema import RunConfig, RunPlan
from mst.errors import ConfigError, UsageError
from mst.recipes import base_config

BASE = RunConfig()


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("train.epochs", "2.5", 2.5),
        ("train.batch-size", "64", 64),
        ("train.batch_size", ["64"], 64),
        ("data.train", "photos", ("photos",)),
        ("data.train", ["a", "b"], ("a", "b")),
        ("data.train", ("a", "b"), ("a", "b")),
        ("data.cache", "false", False),
        ("data.cache", "True", True),
        ("data.cache", [], True),
        ("views.global-size", "32", 32),
        ("views.global-size", ["32", "48"], (32, 48)),
        ("views.blur", ["1", "0.5", "0"], (1.0, 0.5, 0.0)),
        ("views.mean", ["0.5"], (0.5,)),
        ("optimizer.clip", "none", None),
        ("objective.strategy", "none", "none"),
        ("model.head-norm", "batch", "batch"),
        ("runtime.workers", "-1", -1),
        ("train.epochs", 3, 3.0),
    ],
)
def test_values(name: str, words: object, value: object) -> None:
    key = name.replace("-", "_")
    assert flatten(override(BASE, {name: words}))[key] == value


@pytest.mark.parametrize(
    ("name", "words", "parts"),
    [
        ("epoch", "3", ["--epoch", "did you mean --train.epochs?"]),
        ("train.batchsize", "3", ["did you mean --train.batch-size?"]),
        ("objectiv.strategy", "none", ["did you mean --objective.strategy?"]),
        ("train", "3", ["is a section", "batch_size"]),
        ("train.batch-size", "0", ["--train.batch-size 0", "whole number from 1 to"]),
        ("train.batch-size", "1.5", ["--train.batch-size 1.5", "whole number"]),
        ("train.epochs", "ten", ["--train.epochs ten", "a number above 0"]),
        ("train.epochs", "inf", ["--train.epochs inf"]),
        ("train.epochs", [], ["--train.epochs has no value"]),
        ("objective.mask-probability", "1.5", ["--objective.mask-probability 1.5", "from 0 to 1"]),
        ("objective.strategy", "lowest", ["lowest", "attention_low, random, block, attention_high, attention_hint"]),
        ("runtime.precision", "fp16", ["fp16", "one of auto, fp32, bf16"]),
        ("model.drop-path", "1", ["from 0 to 0.9"]),
        ("views.blur", ["1", "2", "0"], ["--views.blur 1 2 0", "3 values, each a number from 0 to 1"]),
        ("views.blur", ["1", "1"], ["--views.blur 1 1", "3 values"]),
        ("data.cache", "maybe", ["--data.cache maybe", "true or false"]),
        ("optimizer.clip", "-1", ["a number above 0 and at most 1e+30, or none"]),
        ("train.epochs", "none", ["--train.epochs None", "a number above 0"]),
    ],
)
def test_mistakes_are_one_line(name: str, words: object, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        override(BASE, {name: words})
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_config_file_round_trips(tmp_path: Path) -> None:
    config = override(BASE, {"data.train": ["a", "b"], "views.global-size": ["32", "48"], "optimizer.clip": "none"})
    path = tmp_path / "config.json"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_a_name_that_is_no_utf8_round_trips(tmp_path: Path) -> None:
    config = override(BASE, {"data.train": [os.fsdecode(b"/a/\xff"), "/é"]})
    path = tmp_path / "config.json"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_config_file_may_hold_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train": {"epochs": 3}}))
    assert changed_keys(BASE, load_config(path)) == ["train.epochs"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is not a JSON configuration"),
        ("[]", "is not a JSON configuration"),
        ('{"trian": {}}', "did you mean train"),
        ('{"train": {"epoch": 1}}', "did you mean train.epochs?"),
        ('{"train": {"epochs": "many"}}', "--train.epochs many: must be a number above 0"),
        ('{"train": 3}', "train"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.json")


def test_every_setting_can_be_described_and_found() -> None:
    fields = setting_fields()
    assert len(fields) > 60
    for key, field in fields.items():
        assert "typing" not in allowed(field), key
        assert nearest(key, fields) == key


def test_the_schema_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BASE.train.epochs = 3  # type: ignore[misc]


def files(**contents: bytes) -> Any:
    return pytest.mark.parametrize("content", contents.values(), ids=contents)


NESTED = '{"recipe": "debug", "train": {"epochs": 3}}'


@files(
    nested=NESTED.encode(),
    dotted=b'{"recipe": "debug", "train.epochs": 3}',
    hyphens=b'{"recipe": "debug", "train.epochs": 3, "runtime": {}}',
    mark=b"\xef\xbb\xbf" + NESTED.encode(),
    utf16=NESTED.encode("utf-16"),
)
def test_a_file_changes_the_recipe_it_names(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    assert changed_keys(base_config("debug"), base_config(path)) == ["train.epochs"]
    assert base_config(path).train.epochs == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '{"train": {"epochs": 3}, "train": {"epochs": 4}}', "the key 'train' stands there twice"),
        ("a.json", '{"train": {"epochs": 3}, "train.epochs": 4}', "train.epochs stands there twice"),
        ("a.json", '{"train.epoch": 4}', "did you mean --train.epochs"),
        ("a.json", '{"train": 3}', "train"),
        ("a.yaml", "train:\\n  epochs: 3\\n", "YAML is not read: write JSON"),
    ],
)
def test_files_that_cannot_be_meant(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        base_config(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


EXTREMES = ("-1", "0", "1", "1e308", "-1e308", "1e-308", "0.999999999", str(2**31), str(2**63), "9" * 20, "1" * 400)


@pytest.mark.parametrize("key", setting_fields())
def test_every_setting_at_its_extremes_is_a_plan_or_one_line(key: str) -> None:
    field = setting_fields()[key]
    for word in (*EXTREMES, "", "nan", "x" * 5000, "none"):
        for words in ([word], [word, word], [word] * 3):
            outcome = _plan_or_refusal({key: words})
            if isinstance(outcome, str):
                assert "\n" not in outcome, field
                continue
            assert 0 < outcome.total_steps < 10**13
            assert all(math.isfinite(value) for value in outcome.model_dump().values() if isinstance(value, float))


def _plan_or_refusal(words: dict[str, list[str]]) -> RunPlan | str:
    try:
        config = override(BASE, words)
        check_consistent(config)
        return derive(config, 10_000, measured=Measured((0.5,) * 3, (0.2,) * 3, 1))
    except UsageError as error:
        return str(error)
