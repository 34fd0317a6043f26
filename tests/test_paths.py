"""Paths as users write them: `~`, bytes that are no UTF-8, what no file can be called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mst.errors import UsageError
from mst.paths import like_named, user_path, user_source


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tilde_is_the_home_folder_once_and_twice(home: Path) -> None:
    assert user_path("~") == home
    assert user_path("~/runs/a") == home / "runs" / "a"
    assert user_path(Path("~/runs/a")) == home / "runs" / "a"
    assert user_path(user_path("~/runs/a")) == home / "runs" / "a"


def test_a_file_that_is_called_tilde_is_written_with_its_folder(home: Path) -> None:
    assert user_path("./~/a") == home / "~" / "a"
    assert user_path(user_path("./~")) == home / "~"
    assert user_path("a~b/~") == Path("a~b/~")


def test_names_keep_their_bytes() -> None:
    name = os.fsdecode(b"caf\xe9 [x] /a")
    assert os.fsencode(user_path(name)) == b"caf\xe9 [x] /a"
    assert user_path(b"caf\xe9") == Path(os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "a path is empty"),
        ("a\0b", "holds a NUL character"),
        ("\ud800", "characters that no file name can have"),
        (3, "3 is no path: give a text or a pathlib.Path"),
        (None, "None is no path"),
        ("~nobody-of-this-name/a", "there is no user nobody-of-this-name: write the whole path"),
    ],
)
def test_what_is_no_path_is_refused(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        user_path(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("home", ["", None])
def test_without_a_home_a_tilde_is_refused(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda text: text)  # as without an entry in passwd
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(UsageError, match="HOME is not set and this user has no home folder: write the whole path"):
        user_path("~/a")
    assert user_path("a") == Path("a")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("~/runs/a", "{home}/runs/a"),
        ("random:~/runs/a", "random:{home}/runs/a"),
        ("vit_small_patch16_224=~/w.pth", "vit_small_patch16_224={home}/w.pth"),
        ("random:vit_tiny.augreg=~/w.pth", "random:vit_tiny.augreg={home}/w.pth"),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("scenes:200", "scenes:200"),
        ("runs/~", "runs/~"),
    ],
)
def test_sources_expand_what_follows_their_prefix(value: str, expected: str, home: Path) -> None:
    assert user_source(value) == expected.format(home=home)
    assert user_source(user_source(value)) == expected.format(home=home)


def test_a_missing_path_is_told_from_what_is_named_like_it(tmp_path: Path) -> None:
    (tmp_path / "cells" / "train").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert like_named(tmp_path / "cell") == f" (did you mean {tmp_path / 'cells'}?)"
    assert like_named(tmp_path / "cels" / "train") == f" (did you mean {tmp_path / 'cells'}?)"
    assert like_named(tmp_path / "cells" / "trian") == f" (did you mean {tmp_path / 'cells' / 'train'}?)"
    assert like_named(tmp_path / "quite different") == ""
    assert like_named(tmp_path / "cells") == ""
    (tmp_path / "labels\n.csv").touch()
    assert like_named(tmp_path / "labels.csv") == ""  # it could not be shown on a line
