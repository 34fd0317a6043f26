"""A run has the same end whatever its images lie in, with workers, processes, kills; each source by real commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.calls import call
from commands.test_kill_resume import SETTINGS, finish, kill_at, start, steps_done
from data.sources.test_tar import pack
from mst.runtime.storage.results import read_jsonl

COUNT = 40
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 20, 24, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(stream, "PNG")
    return stream.getvalue()


def folder(place: Path) -> Path:
    place.mkdir()
    for number in range(COUNT):
        (place / f"{number:02}.png").write_bytes(png(number))
    return place


def tar(place: Path) -> str:
    place.mkdir()
    for first in range(0, COUNT, 15):
        members = {f"{number:02}.png": png(number) for number in range(first, min(first + 15, COUNT))}
        pack(place / f"s-{first // 15}.tar", members)
    return f"{place}/s-{{0..2}}.tar"


def parquet(place: Path) -> Path:
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    place.mkdir()
    written.write_table(
        arrow.table({"image": [png(number) for number in range(COUNT)]}), place / "x.parquet", row_group_size=7
    )
    return place


def hugging_face(place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": png(number), "path": None} for number in range(COUNT)]}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(place), num_shards=3)
    return f"hf:{place}"


def array(place: Path) -> Path:
    place.mkdir()
    np.save(place / "x.npy", PIXELS)
    return place / "x.npy"


OTHERS = [tar, parquet, hugging_face, array]


def settings(place: Path, **others: dict[str, object]) -> Path:
    values: dict[str, dict[str, object]] = {**SETTINGS, "data": {"cache": False}}  # type: ignore[dict-item]
    values["train"] = {**values["train"], "epochs": 2}
    for section, changed in others.items():
        values[section] = {**values[section], **changed}
    place.write_text(json.dumps(values))
    return place


def end(run: Path) -> tuple[bytes, list[float]]:
    return (run / "backbone.safetensors").read_bytes(), [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]


def test_a_folder_and_its_tar_give_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = settings(tmp_path / "x.json")
    for make in (folder, tar):
        source = make(tmp_path / make.__name__)
        found = call(capsys, "pretrain", asked, "--data.train", source, "--out", tmp_path / f"run-{make.__name__}")
        assert found.status == 0, found.err
    assert end(tmp_path / "run-folder") == end(tmp_path / "run-tar")


@pytest.mark.slow
def test_every_source_gives_the_same_weights(tmp_path: Path) -> None:
    asked = settings(tmp_path / "x.json")
    sources = [make(tmp_path / make.__name__) for make in (folder, *OTHERS)]  # type: ignore[operator]
    for kind in ("global", "shards"):
        ends = []
        for number, source in enumerate(sources):
            for workers in (0, 2):
                run = tmp_path / f"{kind}-{number}-{workers}"
                words = ("--data.train", source, "--out", run, "--runtime.workers", str(workers), "--data.order", kind)
                finish(start(asked, *map(str, words)))
                ends.append(end(run))
        same = ends if kind == "global" else ends[:2]  # by shards, where the files end matters
        assert all(one == ends[0] for one in same)
        assert all(ends[place] == ends[place + 1] for place in range(0, len(ends), 2))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "order"), [*((make, "global") for make in OTHERS), (tar, "shards")])
def test_killed_inside_a_shard_it_goes_on_with_the_next_sample(
    make: Callable[[Path], Path | str], order: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    asked = settings(tmp_path / "x.json", train={"epochs": 6}, checkpoint={"every_steps": 3})
    words = ("--data.train", str(source), "--data.order", order)
    finish(start(asked, *words, "--out", tmp_path / "whole"))
    killed = start(asked, *words, "--out", tmp_path / "killed")
    kill_at(killed, tmp_path / "killed", 17)
    assert steps_done(tmp_path / "killed") < 30
    finish(start("--resume", tmp_path / "killed"))
    assert end(tmp_path / "killed") == end(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_read_what_one_does(tmp_path: Path) -> None:
    """Bit-equal with lanes; and more processes than shards are no matter."""
    (tmp_path / "one").mkdir()
    pack(tmp_path / "one" / "s.tar", {f"{number:02}.png": png(number) for number in range(COUNT)})
    asked = settings(tmp_path / "x.json", runtime={"lanes": 2}, model={"head_norm": "none"}, train={"accumulate": 1})
    for processes in (1, 2):
        run = tmp_path / f"run-{processes}"
        words = ("--data.train", tmp_path / "one", "--out", run, "--runtime.processes", processes)
        command = [sys.executable, "-m", "mst", "pretrain", str(asked), *map(str, words)]
        assert subprocess.run(command, capture_output=True, timeout=240).returncode == 0
    assert end(tmp_path / "run-1") == end(tmp_path / "run-2")
