"""Outside programs take what `mst export` writes, where this package is not: timm, transformers, ONNX Runtime.

    PYTHONPATH=src:tests python -m package.outside --backbone RUN --images FOLDER --work DIR [--count 64] [--out FILE]

The backbone is exported in each program's format, and `mst embed` gives the features to compare with. Each program then
runs as its own users write it (`PROGRAMS`), on the image files, with its own decoding and preprocessing, offline, in an
environment that has what the program's packages require and nothing else: links to the packages of this environment
(`package.environments`), never this package; the ONNX one has no torch. The first lines of each program check that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from package.environments import linked, run

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Program:
    """An outside program: its format of export, what is installed for it, what must not be there, and its text."""

    name: str
    format: str
    needs: tuple[str, ...]
    absent: tuple[str, ...]
    text: str


TIMM = """
import timm
import torch
from PIL import Image

model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    features = [model(transform(Image.open(path).convert("RGB"))[None])[0].numpy() for path in paths]
"""
TRANSFORMERS = """
from transformers import pipeline

extract = pipeline("image-feature-extraction", model=folder, device="cpu")
features = [extract(path, pool=True)[0] for path in paths]
"""
ONNX_RUNTIME = """
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(f"{folder}/backbone.onnx", providers=["CPUExecutionProvider"])
said = json.loads(session.get_modelmeta().custom_metadata_map["mst"])
height, width = session.get_inputs()[0].shape[2:]
mean, std = (np.array(said["metadata"][name], np.float32) for name in ("mean", "std"))


def prepared(path):
    image = Image.open(path).convert("RGB")
    if image.size != (width, height):
        tall, wide = round(height * 256 / 224), round(width * 256 / 224)
        scale = max(tall / image.height, wide / image.width)
        tall, wide = max(int(image.height * scale + 1e-6), tall), max(int(image.width * scale + 1e-6), wide)
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        image = image.resize((wide, tall), Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    return ((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]


features = [session.run(["features"], {"images": prepared(path)})[0][0] for path in paths]
"""
BEFORE = """
import importlib.util
import json
import sys

import numpy as np

folder, listed, out, *absent = sys.argv[1:]
there = [name for name in absent if importlib.util.find_spec(name)]
if there:
    sys.exit(f"this environment has {there}")
paths = json.load(open(listed))
"""
AFTER = """
np.save(out, np.stack([np.asarray(feature, np.float32) for feature in features]))
"""
PROGRAMS = (
    Program("timm", "timm", ("timm", "pillow"), ("mst", "transformers", "onnxruntime"), TIMM),
    Program(
        "transformers",
        "hf",
        ("transformers", "timm", "torch", "torchvision", "pillow"),
        ("mst", "onnxruntime"),
        TRANSFORMERS,
    ),
    Program(
        "ONNX Runtime",
        "onnx",
        ("onnxruntime", "pillow", "numpy"),
        ("mst", "torch", "timm", "transformers"),
        ONNX_RUNTIME,
    ),
)


@dataclass(frozen=True)
class Row:
    """How one program's features compare with those of `mst embed`.

    Attributes:
        program: its name and version.
        packages: how many packages its environment has.
        parity: largest difference that the export measured on the same tensors, relative to the largest number.
        difference: the same on image files, with the program's own decoding and preprocessing.
        cosine: the smallest cosine of an image's two features.
        nearest: share of images, in percent, whose nearest other image (by cosine) is the same.
    """

    program: str
    packages: int
    parity: float
    difference: float
    cosine: float
    nearest: float


def mst(*words: object, cwd: Path) -> None:
    """Run a command of this checkout.

    Raises:
        RuntimeError: it failed.
    """
    done = run(sys.executable, "-m", "mst", *words, cwd=cwd, PYTHONPATH=str(ROOT / "src"))
    if done.returncode:
        raise RuntimeError(done.stderr)


def unit(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return rows of length one, without their common mean: else all images look alike."""
    centred = features - features.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def neighbours(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return each row's most similar other row."""
    similar = unit(features) @ unit(features).T
    np.fill_diagonal(similar, -2)
    return similar.argmax(1)


def compared(program: Program, backbone: Path, embedded: Path, work: Path) -> Row:
    """Export for a program, run it where this package is not, and compare.

    Args:
        program: which.
        backbone: a run or a backbone file.
        embedded: features and paths, as `mst embed` wrote them.
        work: a new folder.

    Raises:
        RuntimeError: the export or the program failed.
    """
    own = np.load(embedded)
    pictures = Path(own["paths"][0]).parent
    work.mkdir(parents=True)
    words = ("--format", program.format, "--images", pictures, "--out", "exported")
    mst("export", "--backbone", backbone, *words, cwd=work)
    python = linked(work / "env", program.needs)
    (work / "paths.json").write_text(json.dumps([str(path) for path in own["paths"]]))
    (work / "program.py").write_text(BEFORE + program.text + AFTER)
    done = run(
        python, "program.py", work / "exported", "paths.json", "features.npy", *program.absent, cwd=work, **OFFLINE
    )
    if done.returncode:
        raise RuntimeError(f"{program.name}: {done.stderr}")
    return row_of(program, own["features"], work)


def row_of(program: Program, own: np.ndarray[Any, Any], work: Path) -> Row:
    """Return how the features that a program left in `work` compare with this package's."""
    listed = run(work / "env/bin/python", "-m", "pip", "list", "--format", "json", cwd=work).stdout
    versions = {row["name"].lower(): row["version"] for row in json.loads(listed)}
    found = np.load(work / "features.npy")
    parity = json.loads((work / "exported/parity.json").read_text())
    return Row(
        program=f"{program.name} {versions[program.needs[0]]}",
        packages=len(versions.keys() - {"pip", "setuptools"}),
        parity=largest(parity),
        difference=float(np.abs(found - own).max() / np.abs(own).max()),
        cosine=float((unit(found) * unit(own)).sum(1).min()),
        nearest=float((neighbours(found) == neighbours(own)).mean() * 100),
    )


def largest(parity: dict[str, Any]) -> float:
    """Return the largest relative difference of features in an export's parity.json."""
    return max(float(row["outputs"]["features"]["relative"]) for row in parity["measured"])


def table(rows: list[Row]) -> str:
    """Return the rows in Markdown."""
    heads = ("program", "packages there", "same tensors", "same files", "smallest cosine", "same neighbour, %")
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        numbers = (f"{row.parity:.1e}", f"{row.difference:.1e}", f"{row.cosine:.5f}", f"{row.nearest:.0f}")
        lines.append((row.program, str(row.packages), *numbers))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def compare_all(backbone: Path, images: Path, work: Path, count: int) -> list[Row]:
    """Return a row for each program; `count` images are drawn evenly from those below `images`."""
    work.mkdir(parents=True, exist_ok=True)
    mst("embed", "--backbone", backbone, "--data", images, "--limit", count, "--out", work / "all.npz", cwd=work)
    (work / "pictures").mkdir()
    for number, path in enumerate(np.load(work / "all.npz")["paths"]):
        shutil.copyfile(path, work / "pictures" / f"{number:05}{Path(str(path)).suffix}")
    embedded = work / "embedded.npz"
    mst("embed", "--backbone", backbone, "--data", work / "pictures", "--out", embedded, cwd=work)
    rows = []
    for program in PROGRAMS:
        place = work / program.format
        rows.append(compared(program, backbone, embedded, place))
        shutil.rmtree(place / "env")
    return rows


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", type=Path, required=True, help="a run folder or a backbone file")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--count", type=int, default=64, help="images to compare on")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    words = parser.parse_args()
    rows = compare_all(words.backbone.resolve(), words.images.resolve(), words.work.resolve(), words.count)
    print(table(rows))
    if words.out:
        words.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
