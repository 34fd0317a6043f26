"""What pyproject.toml says is true: names, version, licence, extras, and what the sources import."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mst.data.sources import remote
from mst.export import onnx_file
from mst.planning import doctor
from mst.version import VERSION
from package.environments import OWN, closure, needs

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "mst"
WHOLE: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = WHOLE["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPERS, COMBINED = {"dev"}, {"all", "export"}
TEXTS = [
    *(path for path in ROOT.glob("*") if path.suffix in {".md", ".cff"} or path.name == "Makefile"),
    *(path for folder in ("docs", "src", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.[mp][dy]")),
]
NAMED = re.compile(rf"(?:{OWN}|'\.)\[([a-z0-9,_ -]+)\]")
"""Extras in `mst-pretrain[...]` or `-e '.[...]'`."""
PYTHONS = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def extras_in(requirements: list[str]) -> set[str]:
    return {extra for text in requirements for extra in Requirement(text).extras}


def test_name_and_version() -> None:
    assert PROJECT["name"] == OWN
    assert PROJECT["version"] == VERSION
    assert PROJECT["scripts"] == {"mst": "mst.cli:main"}
    assert f'title: "{OWN}:' in (ROOT / "CITATION.cff").read_text()


def test_licence() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()
    files = [path for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)]
    assert [path.name for path in files] == ["LICENSE"]
    assert "Apache License" in files[0].read_text()[:200]
    # PEP 639: a licence expression stands alone.
    assert not [word for word in PROJECT["classifiers"] if word.startswith("License ::")]


def test_pythons() -> None:
    """The lowest Python that is named is the lowest that is accepted, and the one that the tools check for."""
    named = sorted(PYTHONS.findall(" ".join(PROJECT["classifiers"])), key=lambda text: int(text[2:]))
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(f"{python}.0" in allowed for python in named)
    assert f"3.{int(named[0][2:]) - 1}.99" not in allowed
    assert WHOLE["tool"]["mypy"]["python_version"] == named[0]
    assert WHOLE["tool"]["ruff"]["target-version"] == "py" + named[0].replace(".", "")
    assert f"Python {named[0]} or later" in (ROOT / "README.md").read_text()


def test_each_extra_brings_something() -> None:
    for extra, requirements in EXTRAS.items():
        assert requirements, f"extra {extra} is empty"
        assert not names(requirements) & names(PROJECT["dependencies"]), extra
    assert extras_in(EXTRAS["export"]) == {"onnx", "transformers"}
    told = extras_in(EXTRAS["all"])
    assert told | extras_in(EXTRAS["export"]) == set(EXTRAS) - FOR_DEVELOPERS - {"all"}


def test_doctor_looks_at_each_extra() -> None:
    assert set(doctor.EXTRAS) == set(EXTRAS) - FOR_DEVELOPERS - COMBINED
    of = packages_distributions()
    for extra, modules in doctor.EXTRAS.items():
        installed = {canonicalize_name(name) for module in modules for name in of.get(module, [])}
        assert installed <= names(EXTRAS[extra]), extra


@cache
def nodes() -> list[tuple[Path, ast.Call | ast.Import | ast.ImportFrom]]:
    """Return the calls and imports of all sources, anywhere in a file."""
    kinds = ast.Call | ast.Import | ast.ImportFrom
    return [
        (path, node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]


def raised() -> Iterator[str]:
    """Yield the extras that errors name, where they are written as words."""
    for _, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "MissingExtra":
            last = node.args[-1]
            if isinstance(last, ast.Constant):
                yield str(last.value)


def test_errors_name_extras_that_exist() -> None:
    found = set(raised()) | {onnx_file.EXTRA} | {extra for _, extra in remote.EXTRAS.values()}
    assert found == set(EXTRAS) - FOR_DEVELOPERS - COMBINED, "errors name these and no others"


def test_install_lines_name_extras_that_exist() -> None:
    found = [(path, inside) for path in TEXTS for inside in re.findall(NAMED, path.read_text())]
    assert len(found) > 5, "the pattern finds install lines"
    for path, inside in found:
        assert {extra.strip() for extra in inside.split(",")} <= set(EXTRAS), f"{path}: {inside}"


def imported() -> Iterator[tuple[Path, str]]:
    """Yield the top-level modules that the sources import."""
    for path, node in nodes():
        if isinstance(node, ast.Import):
            yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield path, node.module.partition(".")[0]


def test_what_is_imported_is_declared() -> None:
    """Each import is of the standard library, of what the package requires, of what that requires, or of an extra."""
    of = packages_distributions()
    declared = names(PROJECT["dependencies"])
    second = {
        canonicalize_name(wanted.name)
        for package in closure(PROJECT["dependencies"])[0].values()
        if canonicalize_name(package.name) in declared
        for wanted in needs(package)
    }
    optional = {name for extra, some in EXTRAS.items() if extra not in FOR_DEVELOPERS for name in names(some)}
    for path, module in imported():
        if module in sys.stdlib_module_names or module == "mst" or module not in of:
            continue
        homes = {canonicalize_name(name) for name in of[module]}
        assert homes & (declared | second | optional), f"{path}: {module} is in no dependency"


def test_what_is_declared_is_used() -> None:
    """A dependency of every user is imported by the sources, or by torch for them."""
    used = {module for _, module in imported()} | {"tensorboard"}  # through torch.utils.tensorboard
    of = packages_distributions()
    homes = {canonicalize_name(name) for module in used for name in of.get(module, [])}
    assert names(PROJECT["dependencies"]) <= homes


def test_files_that_are_not_python_are_shipped() -> None:
    patterns = WHOLE["tool"]["setuptools"]["package-data"]["mst"]
    for path in SOURCE.rglob("*"):
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            name = str(path.relative_to(SOURCE))
            assert any(fnmatch(name, pattern) for pattern in patterns), f"{name} is in no pattern of package-data"
