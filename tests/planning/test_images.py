"""Which images a run learns from: what k-NN scores is left out, under any name and through any split."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mst.config.load import override
from mst.config.schema import RunConfig
from mst.data.labels.copies import positions_of
from mst.data.sources import ImageIndex
from mst.errors import DataError, UsageError
from mst.planning.images import FoundImages, found_images
from mst.runtime.storage.rundir import RunDir
from mst.workflows.pretraining import next_command

PER_CLASS = 10


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two class folders of noise."""
    draw = np.random.default_rng(0)
    for name in ("good", "bad"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "cells" / name / f"{name}{number}.bmp")  # all of one size
    return tmp_path / "cells"


def found(train: Path, labelled: Path, **monitor: object) -> FoundImages:
    values = {f"monitor.{key}": value for key, value in monitor.items()}
    return found_images(
        override(RunConfig(), {"data.train": [str(train)], "monitor.knn_data": str(labelled), **values})
    )


def names(source: object) -> set[str]:
    return {source.name(position) for position in range(len(source))}  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_validation_images_are_not_learned_from(cells: Path, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    all_of_them = found(cells, cells, knn_val_share=share)
    assert len(all_of_them.learned) == 2 * PER_CLASS
    left = found(cells, cells, knn_val_share=share, knn_exclude=True)
    assert left.labelled is not None
    scored = left.labelled.split.scored.paths
    assert len(scored) == round(2 * PER_CLASS * share)
    assert names(left.learned) == names(all_of_them.learned) - names(scored)
    assert f"{len(scored)} of 20 images of --data.train are not learned from" in capsys.readouterr().err


def test_copies_under_other_names_are_left_out(cells: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(cells.rglob("*.bmp")):
        shutil.copy(path, flat / f"copy-{path.name}")
    left = found(flat, cells, knn_exclude=True)
    assert left.labelled is not None
    scored = {f"copy-{Path(name).name}" for name in names(left.labelled.split.scored.paths)}
    assert {Path(name).name for name in names(left.learned)} == {path.name for path in flat.iterdir()} - scored


def test_labels_in_a_table_may_be_split_by_seed(cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [(path.relative_to(cells), path.parent.name) for path in sorted(cells.rglob("*.bmp"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    one, other = (found(cells, cells, knn_labels=str(table), knn_split_seed=seed, knn_exclude=True) for seed in (0, 1))
    assert names(one.learned) != names(other.learned)
    assert len(one.learned) == len(other.learned) == 16


def test_the_next_command_makes_the_same_split(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    config = override(RunConfig(), {"monitor.knn_data": "cells", "monitor.knn_split_seed": 12345678})
    assert next_command(config, run).endswith("--data cells --split-seed 12345678 --compare")
    labelled = override(config, {"monitor.knn_labels": "a b.csv", "monitor.knn_val_share": 0.25})
    assert "--labels 'a b.csv' --val-share 0.25 --split-seed 12345678" in next_command(labelled, run)
    assert next_command(RunConfig(), run).startswith("mst evaluate baselines --backbone")


def test_nothing_left_is_refused(cells: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    both = found(cells, cells, knn_exclude=True)
    assert both.labelled is not None
    shutil.copy(both.labelled.split.scored.paths.name(0), one / "only.bmp")
    with pytest.raises(DataError, match=r"all 1 images are validation images of --monitor\.knn-data"):
        found(one, cells, knn_exclude=True)


def test_positions_are_those_of_a_comparison_of_all(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    contents = [bytes(draw.integers(0, 2, int(draw.integers(1, 4)), dtype=np.uint8)) for _ in range(40)]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(content)
    images, others = paths[:30], [*paths[30:], paths[3]]
    expected = [
        position
        for position, path in enumerate(images)
        if path in others or path.read_bytes() in {other.read_bytes() for other in others}
    ]
    assert positions_of(ImageIndex.of(images), ImageIndex.of(others)).tolist() == expected


def test_the_labels_column_may_be_named(cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [(path.relative_to(cells), path.parent.name, "x") for path in sorted(cells.rglob("*.bmp"))]
        csv.writer(file).writerows([("Datei", "Zustand", "Typ"), *rows])
    with pytest.raises(DataError, match=r"holds the labels: name it with --monitor\.knn-label-column"):
        found(cells, cells, knn_labels=str(table))
    with pytest.raises(UsageError, match=r"--monitor\.knn-label-column Zustandd: .*did you mean Zustand\?"):
        found(cells, cells, knn_labels=str(table), knn_label_column="Zustandd")
    left = found(cells, cells, knn_labels=str(table), knn_label_column="Zustand")
    assert left.labelled is not None
    assert len(left.labelled.classes) == 2
    config = override(RunConfig(), {"monitor.knn_data": "cells", "monitor.knn_labels": "t.csv"})
    words = next_command(override(config, {"monitor.knn_label_column": "Zustand"}), RunDir(tmp_path))
    assert "--labels t.csv --label-column Zustand --compare" in words
