"""Tries the lowest and the newest supported versions: `make versions`.

    PYTHONPATH=src:tests python -m package.versions lowest newest --work DIR [--python lowest=python3.11] [--out FILE]

`lowest` has exactly the versions after `>=` in pyproject.toml's dependencies and in the extras that tests need,
`newest` what pip finds. Each gets an environment of its own with this Python, or with the one that `--python` names,
runs the chosen part of the suite in it, prints a row, and is deleted again (5 GB each, with torch for CUDA). pip's own
variables (PIP_FIND_LINKS, PIP_INDEX_URL, ...) say where packages come from.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from package.environments import OWN, empty, outside

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("detection", "tiff", "data", "onnx", "transformers")
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "scikit-learn", "torchmetrics", "pycocotools")
SHOWN = ("torch", "torchvision", "timm", "numpy", "pillow", "pydantic", "tyro", "transformers", "onnxruntime")
PART = (
    *("tests/config", "tests/objective", "tests/views", "tests/model", "tests/checkpoint/test_store.py"),
    *("tests/evaluate/common", "tests/evaluate/classification/test_knn.py", "tests/data/test_decoding.py"),
    *("tests/commands/test_pretrain.py", "tests/commands/test_export.py"),
)
"""What touches most of torch, torchvision, timm, numpy, Pillow, pydantic and tyro, in minutes."""
LIMIT = 3600.0
"""Seconds that the tests may take."""


def declared() -> tuple[list[Requirement], list[Requirement]]:
    """Return what users get (the dependencies, with extras), and the tools of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    users = [Requirement(text) for text in (*project["dependencies"], *(t for e in EXTRAS for t in optional[e]))]
    return users, [wanted for text in optional["dev"] if (wanted := Requirement(text)).name in TOOLS]


def lowest(wanted: Requirement) -> str:
    """Return the requirement of exactly the lowest version that is accepted."""
    bounds = [part.version for part in wanted.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise SystemExit(f"{wanted}: give one lower bound")
    return f"{wanted.name}=={bounds[0]}"


def install(python: Path, which: str) -> None:
    """Install the versions of `which` into an empty environment."""
    users, tools = declared()
    words = [lowest(wanted) if which == "lowest" else str(wanted) for wanted in users]
    command = [str(python), "-m", "pip", "install", "--quiet", *words, *(str(tool) for tool in tools)]
    if subprocess.run(command).returncode:
        raise SystemExit(f"{which}: these versions cannot be installed together (pip says why, above)")


def installed(python: Path) -> dict[str, str]:
    """Return the versions of the packages that are shown."""
    said = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True)
    versions = {row["name"].lower(): row["version"] for row in json.loads(said.stdout)}
    assert OWN not in versions
    own = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    return {"python": own} | {name: versions[name] for name in SHOWN if name in versions}


def tried(python: Path, part: tuple[str, ...]) -> dict[str, Any]:
    """Run the tests from the sources of this checkout, and return how they ended.

    Warnings are no errors here: packages of one year warn of those of another.
    """
    began = time.monotonic()
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-W", "default", *part]
    paths = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    with subprocess.Popen(command, cwd=ROOT, env=outside(paths), stdout=subprocess.PIPE, text=True) as running:
        lines = []
        for line in running.stdout or ():
            lines.append(line.rstrip())
            print("   ", lines[-1], flush=True)
    took = round(time.monotonic() - began)
    return {"status": running.returncode, "said": lines[-1] if lines else "", "seconds": took}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    heads = ["versions", "python", *SHOWN, "tests"]
    lines = [heads, ["---"] * len(heads)]
    lines += [[row["which"], *(row["versions"].get(name, "-") for name in heads[1:-1]), row["said"]] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Try what is asked for; the exit status is 1 where a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", nargs="+", choices=("lowest", "newest"))
    parser.add_argument("--work", type=Path, required=True, help="a folder for the environments")
    parser.add_argument("--python", nargs="*", default=[], metavar="WHICH=PYTHON", help="e.g. newest=python3.13")
    parser.add_argument("--tests", nargs="*", default=PART, help="other tests than the chosen ones")
    parser.add_argument("--keep", action="store_true", help="do not delete the environments; use one that is there")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    words = parser.parse_args()
    interpreters = dict(pair.split("=", 1) for pair in words.python)
    rows = []
    for which in words.which:
        folder = words.work / which
        python = folder / "bin/python"
        if not python.exists():
            install(empty(folder, interpreters.get(which, sys.executable)), which)
        rows.append({"which": which, "versions": installed(python), **tried(python, tuple(words.tests))})
        if not words.keep:
            shutil.rmtree(folder)
    print(table(rows))
    if words.out:
        words.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["status"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
