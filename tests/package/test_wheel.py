"""The package as users get it: built, looked into, installed where nothing else is, and used."""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from mst.version import VERSION
from package.environments import empty, linked, run, site_packages

ROOT = Path(__file__).resolve().parents[2]
STEM = f"mst_pretrain-{VERSION}"
DATA = re.compile(r"\.(png|jpe?g|webp|tiff?|npy|npz|pt|pth|safetensors|ckpt|csv|json|jsonl|tar|xz|zip|parquet|onnx)$")
ELSEWHERE = ("tests/", "benchmarks/", "runs/", "examples/")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Built:
    """The two files that are published."""

    wheel: Path
    sdist: Path

    def in_wheel(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as file:
            return set(file.namelist())

    def in_sdist(self) -> set[str]:
        with tarfile.open(self.sdist) as file:
            return {member.name.removeprefix(f"{STEM}/") for member in file if member.isfile()}


def in_checkout(pattern: str = "*") -> set[str]:
    """Return the files of the package in this checkout, relative to src/."""
    found = (path for path in (ROOT / "src" / "mst").rglob(pattern) if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(ROOT / "src")) for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist from a copy of what git knows, and the wheel from the sdist, as `python -m build` does."""
    work = tmp_path_factory.mktemp("build")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, work / "source" / name)
    python = empty(work / "builder")
    done = run(python, "-m", "pip", "install", "--quiet", "build", cwd=work)
    if done.returncode:
        pytest.skip(f"the program `build` cannot be had: {done.stderr[-300:]}")
    made = run(python, "-m", "build", "--outdir", work / "dist", work / "source", cwd=work)
    assert made.returncode == 0, made.stdout + made.stderr
    return Built(work / "dist" / f"{STEM}-py3-none-any.whl", work / "dist" / f"{STEM}.tar.gz")


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    information = f"{STEM}.dist-info/"
    inside = {name for name in built.in_wheel() if not name.startswith(information)}
    assert inside == in_checkout()
    assert {"mst/py.typed", "mst/report/report.html.j2", "mst/report/report.css"} <= inside
    assert {f"mst/recipes/{path.name}" for path in (ROOT / "src/mst/recipes").glob("*.py")} <= inside
    assert f"{information}licenses/LICENSE" in built.in_wheel()
    assert not [
        name for name in built.in_wheel() if name.startswith(("tests", "benchmarks", "runs")) or DATA.search(name)
    ]


def test_what_the_wheel_says_of_itself(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as file:
        said = email.message_from_bytes(file.read(f"{STEM}.dist-info/METADATA"))
        entries = file.read(f"{STEM}.dist-info/entry_points.txt").decode()
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("mst-pretrain", VERSION, "Apache-2.0")
    assert said.get_all("License-File") == ["LICENSE"]
    assert "Your images" in str(said.get_payload())  # the README
    assert "mst = mst.cli:main" in entries


def test_the_sdist_has_what_a_build_needs(built: Built) -> None:
    inside = built.in_sdist()
    assert {f"src/{name}" for name in in_checkout()} | {"LICENSE", "README.md", "pyproject.toml"} <= inside
    assert not [name for name in inside if name.startswith(ELSEWHERE) or DATA.search(name)]


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel where just its declared requirements are, by pip, without an index: all must be there."""
    folder = tmp_path_factory.mktemp("clean")
    with zipfile.ZipFile(built.wheel) as file:
        said = email.message_from_bytes(file.read(f"{STEM}.dist-info/METADATA"))
    required = [text for text in said.get_all("Requires-Dist", []) if "extra ==" not in text]
    python = linked(folder / "env", required)
    done = run(python, "-m", "pip", "install", "--no-index", "--find-links", "", built.wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    checked = run(python, "-m", "pip", "check", cwd=folder)
    assert checked.returncode == 0, checked.stdout
    return folder


def mst(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(folder / "env/bin/mst", *words, cwd=folder)


EVERY_MODULE = """
import importlib, pkgutil, mst
for name in mst.__all__:
    getattr(mst, name)
for module in pkgutil.walk_packages(mst.__path__, "mst."):
    if module.name != "mst.__main__":
        importlib.import_module(module.name)
print(mst.__file__)
"""
DRAW = """
from pathlib import Path
from mst.data.synthetic.scenes import write_scene_folder
write_scene_folder(Path("drawn"), {"train": 16, "val": 8}, size=40)
"""


def test_every_name_and_module_is_imported(installed: Path) -> None:
    done = run(installed / "env/bin/python", "-c", EVERY_MODULE, cwd=installed)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == site_packages(installed / "env") / "mst"


def test_the_commands_answer(installed: Path) -> None:
    assert mst(installed, "--version").stdout.split()[-1] == VERSION
    assert "pretrain" in mst(installed, "help").stdout
    assert "debug" in mst(installed, "recipes").stdout
    doctor = mst(installed, "doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    states = {finding["about"]: finding["found"] for finding in json.loads(doctor.stdout)["findings"]}
    assert states["mst"].startswith(VERSION)
    assert states["extra onnx"] == "without onnx, onnxscript, onnxruntime"
    refused = mst(installed, "export", "--backbone", "none", "--format", "onnx", "--out", "exported")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


def test_a_run_from_images_to_report(installed: Path) -> None:
    drawn = run(installed / "env/bin/python", "-c", DRAW, cwd=installed)
    assert drawn.returncode == 0, drawn.stderr
    words = ["--train.batch-size", "8", "--train.epochs", "2", "--runtime.workers", "0", "--runtime.precision", "fp32"]
    for call in (
        ["pretrain", "debug", "--data.train", "drawn/train", "--out", "run", *words],
        ["embed", "--backbone", "run", "--data", "drawn/val", "--out", "features.npz"],
        ["export", "--backbone", "run", "--format", "timm", "--out", "exported"],
        ["report", "run"],
    ):
        done = mst(installed, *call)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Warning" not in done.stderr, done.stderr
    rows = [json.loads(line) for line in (installed / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row.get("step", 0) for row in rows) == 4
    assert (installed / "run/report.html").stat().st_size > 10_000
    missing = mst(installed, "export", "--backbone", "run", "--format", "onnx", "--out", "graph")
    assert missing.returncode == 2
    assert "is not installed: pip install 'mst-pretrain[onnx]'" in missing.stderr


def test_nothing_that_was_not_declared_is_there(installed: Path) -> None:
    for module in ("pytest", "onnx", "onnxruntime", "transformers", "sklearn", "torchmetrics"):
        done = run(installed / "env/bin/python", "-c", f"import {module}", cwd=installed)
        assert "ModuleNotFoundError" in done.stderr, module
