"""Reads the licences of what users install from the installed packages.

    PYTHONPATH=src:tests python -m package.licences

A licence is read from the expression of PEP 639, else from the old field, else from the classifiers. What cannot be
read is an error, and so is a licence that binds who uses the package (GPL, AGPL) or that nobody has looked at. NVIDIA's
libraries, which torch for CUDA brings, are proprietary and listed as such: users take them from NVIDIA, this package
neither contains nor links them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from package.environments import OWN, closure

ROOT = Path(__file__).resolve().parents[2]
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0"),
    *("MIT-CMU", "PSF-2.0", "Unlicense", "Zlib", "Apache-2.0 WITH LLVM-exception"),
}
"""SPDX names of licences that ask for no more than notices."""
BY_FILE = {"MPL-2.0"}
"""Copyleft of single files: a dependency under it may be used and shipped beside Apache-2.0 unchanged."""
PROPRIETARY = {"LicenseRef-NVIDIA-Proprietary"}
"""Allowed for NVIDIA's libraries only, which come with torch for CUDA."""
WORDS = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "freebsd": "BSD-2-Clause",
    "mit license": "MIT",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
}
"""What packages call their licence where they do not use SPDX's names; a plain "BSD" is the one with most terms."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9.+]*-[A-Za-z0-9.+-]+")
"""What looks like a name of SPDX."""
NO_LICENCE = {"OSI Approved", "DFSG approved", "Other/Proprietary License"}
"""Classifiers that name a kind of licence and not which."""
READ = {
    "faster-coco-eval": "Apache-2.0",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
}
"""Packages that name no licence: read by a person, in the file that they ship or on the page of the project."""


@dataclass(frozen=True)
class Licence:
    """What a package says: its name, version, and licences of which all apply, each a choice of one or more."""

    package: str
    version: str
    said: str
    terms: tuple[tuple[str, ...], ...]

    @property
    def fault(self) -> str:
        """Why the package may not be used, or nothing."""
        if not self.terms:
            said = " ".join(self.said.split())[:60]
            return f"{self.package} {self.version}: its licence cannot be read ({said!r}): look into its files"
        allowed = PERMISSIVE | BY_FILE | (PROPRIETARY if self.package.startswith(("nvidia-", "cuda-")) else set())
        wrong = [" or ".join(choice) for choice in self.terms if not set(choice) & allowed]
        return f"{self.package} {self.version}: {', '.join(wrong)} is not known to go with Apache-2.0" if wrong else ""


def parsed(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the terms of an SPDX expression or of a package's own words; none if nothing is recognised."""
    terms = []
    for part in re.split(r"\s+AND\s+", text.strip(" ()")):
        choice = tuple(WORDS.get(word.strip(" ()").lower(), word.strip(" ()")) for word in re.split(r"\s+OR\s+", part))
        terms.append(choice)
    known = PERMISSIVE | BY_FILE | PROPRIETARY
    readable = all(word in known or NAME.fullmatch(word) for choice in terms for word in choice)
    return tuple(terms) if readable else ()


def licence_of(package: Distribution) -> Licence:
    """Return what an installed package says of its licence."""
    said = package.metadata
    name = package.name.lower().replace("_", "-")
    lines = [line for line in said.get_all("Classifier", []) if line.startswith("License ::")]
    classes = [word for line in lines if (word := line.rpartition("::")[2].strip()) not in NO_LICENCE]
    texts = [READ.get(name, ""), said.get("License-Expression") or "", said.get("License") or "", " OR ".join(classes)]
    for text in filter(None, texts):
        if terms := parsed(text):
            return Licence(name, package.version, text, terms)
    return Licence(name, package.version, " ".join(filter(None, texts)), ())


def requirements() -> list[str]:
    """Return what users can install: the dependencies, and those of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for extra, some in project["optional-dependencies"].items() if extra != "dev" for text in some]
    return [*project["dependencies"], *(text for text in extras if not text.startswith(OWN))]


def found() -> tuple[list[Licence], list[str]]:
    """Return the licences of everything that users can install and that is installed here, and what is not."""
    packages, missing = closure(requirements())
    return sorted((licence_of(package) for package in packages.values()), key=lambda row: row.package), missing


def table(rows: list[Licence]) -> str:
    """Return the packages by licence, in Markdown."""
    by: dict[str, list[str]] = {}
    for row in rows:
        by.setdefault(" and ".join(" or ".join(choice) for choice in row.terms), []).append(row.package)
    lines = [f"| {licence} | {', '.join(names)} |" for licence, names in sorted(by.items())]
    return "\n".join(["| licence | packages |", "|---|---|", *lines])


def main() -> int:
    """Print the table; the exit status is 1 where a licence is at fault."""
    rows, missing = found()
    print(table(rows))
    if missing:
        print("not installed here, so not looked at:", ", ".join(missing))
    faults = [row.fault for row in rows if row.fault]
    print(*faults, sep="\n", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
