"""Clean environments: made from this one's installed packages, without downloading them again.

`linked` makes a new virtual environment that has what a list of requirements asks for, and what that asks for in turn,
as links to the files of this environment, and nothing else. This package itself is never linked. What is not asked for
is not there: an import that nobody declared fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = "mst-pretrain"
LIMIT = 600.0
"""Seconds that one program may take."""


def closure(requirements: Iterable[str]) -> tuple[dict[str, Distribution], list[str]]:
    """Return what requirements ask for, directly or through others: what is installed here by name, what is not."""
    found: dict[str, Distribution] = {}
    missing: list[str] = []
    asked = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while asked:
        wanted = asked.pop()
        name = canonicalize_name(wanted.name)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            missing.append(str(wanted))
            continue
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                asked += needs(found[name], extra)
    return found, missing


def needs(of: Distribution, extra: str = "") -> list[Requirement]:
    """Return what a distribution asks for on this machine; with an extra, what that adds."""
    plain = [wanted for text in of.requires or () if applies(wanted := Requirement(text), "")]
    if not extra:
        return plain
    return [wanted for text in of.requires or () if applies(wanted := Requirement(text), extra) and wanted not in plain]


def applies(wanted: Requirement, extra: str) -> bool:
    """Return whether a requirement's marker holds on this machine."""
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def linked(folder: Path, requirements: Iterable[str]) -> Path:
    """Make an environment in `folder` that has just the requirements, and return its Python.

    Raises:
        LookupError: one of them is not installed here.
    """
    packages, missing = closure(requirements)
    if missing:
        raise LookupError(f"not installed here: {', '.join(missing)}")
    assert OWN not in packages
    python = empty(folder)
    inside = site_packages(folder)
    for package in packages.values():
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            link, target = inside / top, Path(str(package.locate_file(top)))
            if target.exists() and not link.exists():
                link.symlink_to(target, target_is_directory=target.is_dir())
    return python


def empty(folder: Path, interpreter: str = sys.executable) -> Path:
    """Make an environment that has pip alone, and return its Python."""
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True, timeout=LIMIT)
    return folder / "bin" / "python"


def site_packages(folder: Path) -> Path:
    """Return the folder of an environment (of this Python's version) where packages lie."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


def run(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program away from this checkout: nothing of its surroundings leads to this package."""
    return subprocess.run(
        [str(word) for word in words],
        env=outside(os.environ) | variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def outside(variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those that add to Python's path, and with one compute thread."""
    kept = {name: value for name, value in variables.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"OMP_NUM_THREADS": "1"}
