"""What users install goes with Apache-2.0, and the page says under which terms it comes."""

from __future__ import annotations

from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from package.licences import found, licence_of, parsed, requirements

PAGE = Path(__file__).resolve().parents[2] / "docs" / "install.md"


class Package(Distribution):
    """A distribution that says what a test wants."""

    def __init__(self, **said: str) -> None:
        self.said = Message()
        for name, value in {"Name": "some", "Version": "1", **said}.items():
            self.said[name.replace("_", "-")] = value

    @property
    def metadata(self) -> Message:  # type: ignore[override]
        return self.said

    def read_text(self, filename: str) -> None:
        return None

    def locate_file(self, path: object) -> Path:
        return Path(str(path))


def test_everything_that_users_install_may_be_used() -> None:
    rows, _ = found()
    assert len(rows) > 30
    assert [row.fault for row in rows if row.fault] == []


@pytest.mark.parametrize(
    ("said", "terms"),
    [
        ({"License_Expression": "MIT AND (Apache-2.0 OR BSD-2-Clause)"}, (("MIT",), ("Apache-2.0", "BSD-2-Clause"))),
        ({"License": "Apache License 2.0"}, (("Apache-2.0",),)),
        ({"License": "a whole text", "Classifier": "License :: OSI Approved :: MIT License"}, (("MIT",),)),
        ({"License": "GPL-3.0-only OR MIT"}, (("GPL-3.0-only", "MIT"),)),
    ],
)
def test_licences_that_may_be_used(said: dict[str, str], terms: tuple[tuple[str, ...], ...]) -> None:
    licence = licence_of(Package(**said))
    assert licence.terms == terms
    assert not licence.fault


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"License_Expression": "GPL-3.0-or-later"},
        {"License_Expression": "MIT AND AGPL-3.0-only"},
        {"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"},
        {"License_Expression": "LicenseRef-NVIDIA-Proprietary"},  # of somebody else's
        {"License": "see file"},
    ],
)
def test_licences_that_may_not(said: dict[str, str]) -> None:
    assert licence_of(Package(**said)).fault.startswith("some 1: ")


def test_words_are_not_taken_for_names() -> None:
    assert parsed("Copyright (c) 2015, somebody") == ()


def test_the_page_lists_what_is_required() -> None:
    text = PAGE.read_text().lower()
    assert [name for line in requirements() if (name := Requirement(line).name.lower()) not in text] == []
