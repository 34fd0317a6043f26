"""The features of a folder of images with their paths, as a .npz, .npy, .csv or .parquet file."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mst.data.order.room import fetch_soon
from mst.data.sources import ImageSource, open_images
from mst.errors import MissingExtra, UsageError
from mst.evaluate.common.features import Features, FeatureSettings, extract_features
from mst.evaluate.common.image_sets import ImageSet
from mst.model.backbone import Backbone
from mst.paths import user_path
from mst.runtime.names import shown
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.tables import csv_lines
from mst.workflows.subject import ImageOptions, load_subject

SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
WITH_LIST = ".npy"
"""Its paths are in a list beside it."""


def embed(
    backbone: str | Path | Backbone,
    data: str | Path,
    *,
    out: str | Path | None = None,
    limit: int | None = None,
    image: ImageOptions | None = None,
    settings: FeatureSettings | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Features:
    """Return the features of all images under `data`, in the order of their sorted paths.

    Args:
        backbone: a run folder, a backbone file, `random:` before either, or a module in memory.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: also write them: .npz (`features`, `paths`), .csv (path, f0, f1, ...), .parquet (path, feature: a list of
            float32), or .npy with a .txt of paths beside it.
        limit: only this many images, drawn evenly.
        image: size and cropping of the input.
        settings: batch size, threads, compute type, share of unreadable files that is allowed.
        device: auto, cpu, cuda or cuda:N (a module in memory stays where it is).
        seed: of the weights after `random:`.

    Returns:
        `Features`: `features` [n, D] float32, `names` (paths); unreadable files have no row and are listed.

    Raises:
        UsageError: no such backbone or images, too many unreadable files, another suffix, nothing can be written
            there, or a file of such a name is there that this command did not write.
        MissingExtra: .parquet, and the extra `data` is not installed.
    """
    target = None if out is None else _checked_target(user_path(out))
    outputs = None if target is None else _checked_outputs(target, data)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    subject = load_subject(backbone, device=device, seed=seed)
    found = open_images(data, limit=limit, channels=subject.channels)
    fetch_soon(found)
    if target is not None and target.suffix == WITH_LIST:
        _check_lines(target, found)
    no_labels = torch.full((len(found),), -1, dtype=torch.int64)
    options = image or ImageOptions()
    scale = subject.scale(found, options.value_range)
    images = ImageSet(found, no_labels, subject.channels, scale)
    features = extract_features(
        subject.backbone, images, subject.transform(options), settings=settings, title="embedding"
    )
    if target is not None and outputs is not None:
        write_features(outputs, target.name, features)
    return features


def write_features(outputs: Outputs, name: str, features: Features) -> None:
    """Write features and paths: in one file, or .npy with the paths in a .txt beside it."""
    content = io.BytesIO()
    files: list[tuple[str | Path, bytes]] = []
    if name.endswith(".npz"):
        np.savez(content, features=features.features.numpy(), paths=np.array(features.names))
    elif name.endswith(".csv"):
        content.write(csv_text(features).encode("utf-8", "surrogateescape"))
    elif name.endswith(".parquet"):
        write_parquet(content, features)
    else:
        np.save(content, features.features.numpy())
        listing = "".join(f"{path}\n" for path in features.names)
        files.append((Path(name).with_suffix(".txt"), os.fsencode(listing)))
    outputs.write_together([*files, (name, content.getvalue())])


def csv_text(features: Features) -> str:
    """Return a table of path, f0, f1, ...: a row an image, numbers of nine digits, which give the same float32."""
    head = ["path", *(f"f{column}" for column in range(features.features.shape[1]))]
    rows = zip(features.names, features.features.tolist(), strict=True)
    return csv_lines([head, *([path, *(f"{value:.9g}" for value in row)] for path, row in rows)])


def write_parquet(file: io.BytesIO, features: Features) -> None:
    """Write columns `path` (text) and `feature` (a list of D float32)."""
    arrow, parquet = _pyarrow(), importlib.import_module("pyarrow.parquet")
    width = features.features.shape[1]
    values = arrow.array(features.features.numpy().reshape(-1))
    paths = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in features.names]
    columns = {"path": paths, "feature": arrow.FixedSizeListArray.from_arrays(values, width)}
    parquet.write_table(arrow.table(columns), file)


def _pyarrow() -> Any:
    """Return the module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None


def _check_lines(target: Path, images: ImageSource) -> None:
    """Refuse names that do not fit into a list with one path a line.

    Raises:
        UsageError: one has a line break.
    """
    names = map(images.name, range(len(images)))
    name = next((name for name in names if "\n" in name or "\r" in name), None)
    if name is not None:
        raise UsageError(
            f"--out {target}: its list of paths has one a line, and {shown(name)} has a line break in its name: "
            "name a file that ends in .npz, or rename the image"
        )


def _checked_target(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--out {path}: name a file that ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file")
    if path.suffix == ".parquet":
        _pyarrow()
    return path


def _checked_outputs(path: Path, data: str | Path) -> Outputs:
    """Return the place of the files.

    Raises:
        UsageError: one of them is the list of images, or exists and was not written by this command.
    """
    outputs = Outputs(path.parent, "embed", "--out")
    names = [path.name, path.with_suffix(".txt").name] if path.suffix == WITH_LIST else [path.name]
    for name in names:
        if (path.parent / name).resolve() == user_path(data).resolve():
            raise UsageError(f"--out {path} would replace --data {data}: name another file")
    outputs.check(names)
    return outputs
