"""Labelled images in tar, parquet, Hugging Face's form and on another machine: the folder's numbers, to the digit."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands.calls import call
from commands.test_finetune import FAST, VIT, saved
from commands.test_sources_alike import settings
from data.pictures import write_textures
from data.sources.object_stores import Faults, served
from data.sources.test_columns import NAMES, write
from data.sources.test_tar import pack
from mst.data.sources import remote
from mst.runtime.storage.results import read_jsonl

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
CLASSES = ("cat", "dog", "owl")
EACH = {"train": 4, "val": 3}
PARTS = ("val", "valid", "validation", "test", "testing")
QUIET = ["--no-progress", "--device", "cpu"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("vit"), VIT)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "folder"
    for part, count in EACH.items():
        for number, name in enumerate(CLASSES):
            write_textures(root / part / name, count, start=100 * number + (50 if part == "val" else 0), size=40)
    return root


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for module in ("shard_cache", "remote"):
        monkeypatch.setattr(f"mst.data.sources.{module}.FIRST_WAIT", 0.01)
    monkeypatch.setenv("MST_SHARD_CACHE", str(tmp_path / "cache"))
    remote._systems.clear()
    yield
    remote._systems.clear()
    gc.collect()  # sockets that the clients leave open warn here, where that is expected


def rows(images: Path, part: str) -> list[tuple[str, bytes]]:
    """Return class and bytes of each image, the classes in turn, as people's shards have them."""
    found = [
        (number, path.parent.name, path.read_bytes())
        for path in (images / part).rglob("*.*")
        for number in [sorted(path.parent.iterdir()).index(path)]
    ]
    return [(name, data) for _, name, data in sorted(found)]  # by number, then by class


def tars(images: Path, root: Path, part: str = "val") -> Path:
    root.mkdir(exist_ok=True)
    for name, own in (("train", "train"), (part, "val")):
        found = rows(images, own)
        for shard in range(2):
            members: dict[str, bytes] = {}
            for place in range(len(found) * shard // 2, len(found) * (shard + 1) // 2):
                members |= {f"{place:03}.cls": found[place][0].encode(), f"{place:03}.jpg": found[place][1]}
            pack(root / f"{name}-{shard}.tar", members)
    return root


def parquets(images: Path, root: Path, part: str = "val") -> Path:
    for name, own in (("train", "train"), (part, "val")):
        found = rows(images, own)
        encoded = [{"bytes": data, "path": None} for _, data in found]
        write(root / f"{name}-0.parquet", NAMES, image=encoded, label=[CLASSES.index(label) for label, _ in found])
    return root


def hugging_face(images: Path, root: Path, part: str = "val") -> str:
    return f"hf:{parquets(images, root, part)}"


def saved_by_datasets(images: Path, root: Path, part: str = "val") -> str:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    sets = {}
    for name, own in (("train", "train"), (part, "val")):
        found = rows(images, own)
        columns = {"image": [{"bytes": data, "path": None} for _, data in found], "label": [name for name, _ in found]}
        sets[name] = datasets.Dataset.from_dict(columns, features=kinds)
    datasets.DatasetDict(sets).save_to_disk(str(root))
    return f"hf:{root}"


def pattern(images: Path, root: Path, part: str = "val") -> str:
    tars(images, root, part)
    return f"{root}/{{train,{part}}}-{{0,1}}.tar"


MADE = [tars, parquets, hugging_face, saved_by_datasets, pattern]
Make = Callable[[Path, Path, str], Path | str]


def scored(capsys: pytest.CaptureFixture[str], task: str, backbone: Path, data: object, *words: object) -> Any:
    answer = call(capsys, "evaluate", task, "--backbone", backbone, "--data", data, "--json", *QUIET, *words)
    assert answer.status == 0, answer.err
    return json.loads(answer.out)["metrics"]


def tuned(capsys: pytest.CaptureFixture[str], backbone: Path, data: object, out: Path) -> Any:
    answer = call(capsys, "finetune", "--backbone", backbone, "--data", data, "--out", out, "--json", *FAST)
    assert answer.status == 0, answer.err
    losses = [row["loss"] for row in read_jsonl(out / "metrics.jsonl") if "loss" in row]
    return json.loads(answer.out)["metrics"], losses, (out / "backbone.safetensors").read_bytes()


@pytest.mark.parametrize("form", [*zip(MADE, PARTS, strict=True)], ids=PARTS)
def test_knn_and_linear_are_those_of_the_folder(
    form: tuple[Make, str], images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = form[0](images, tmp_path / "made", form[1])
    assert scored(capsys, "knn", backbone, made) == scored(capsys, "knn", backbone, images)
    linear = ("--epochs", "2", "--lrs", "0.1")
    assert scored(capsys, "linear", backbone, made, *linear) == scored(capsys, "linear", backbone, images, *linear)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*zip(MADE, PARTS, strict=True)], ids=PARTS)
def test_finetune_is_that_of_the_folder(
    form: tuple[Make, str], images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = form[0](images, tmp_path / "made", form[1])
    assert tuned(capsys, backbone, made, tmp_path / "b") == tuned(capsys, backbone, images, tmp_path / "a")


def test_from_another_machine(images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a server that fails, stalls and stops half-way, then one that never answers."""
    tars(images, tmp_path / "served", "valid")
    faults = Faults(["fail", "cut", "", "slow", "cut", "fail"])
    with served(faults, tmp_path / "served") as address:
        data = f"{address}/{{train,valid}}-{{0,1}}.tar"
        assert scored(capsys, "knn", backbone, data) == scored(capsys, "knn", backbone, images)
        asked = faults.asked.total()
        assert scored(capsys, "knn", backbone, data)  # from the cache
        assert faults.asked.total() == asked
        faults.plan = ["cut"] * 99
        (tmp_path / "served" / "train-1.tar").write_bytes((tmp_path / "served" / "train-0.tar").read_bytes())
        words = ("evaluate", "knn", "--backbone", backbone, "--data", data, *QUIET)
        answer = call(capsys, *words)
    assert answer.status == 1
    assert f"{address}/train-1.tar cannot be fetched, 6 times: " in answer.err
    assert "Traceback" not in answer.err


def test_other_commands_from_another_machine(
    images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars(images, tmp_path / "served", "valid")
    with served(Faults(["fail", "cut"]), tmp_path / "served") as address:
        data = f"{address}/train-{{0,1}}.tar"
        embedded = call(capsys, "embed", "--backbone", backbone, "--data", data, "--out", tmp_path / "x.csv", *QUIET)
        assert embedded.status == 0, embedded.err
        names = [line.partition(",")[0] for line in (tmp_path / "x.csv").read_text().splitlines()[1:]]
        assert names[0] == f"{address}/train-0.tar:000.jpg"
        assert len(names) == 12
        inspected = call(capsys, "inspect", data, "--val", f"{address}/valid-{{0,1}}.tar", "--json")
        row = json.loads(inspected.out)
        assert (row["images"], row["unreadable"], row["parts"]) == (21, [], {"train": 12, "val": 9})
        packed = call(capsys, "pack", data, tmp_path / "packed", "--json")
        assert json.loads(packed.out)["packed"] == 12
        assert json.loads(packed.out)["classes"] == [*CLASSES]
        refused = call(capsys, "embed", "--backbone", backbone, "--data", f"{address}/none.tar", "--out", "x.csv")
        assert refused.line == f"mst: error: {address}/none.tar does not exist"


@pytest.mark.slow
def test_while_training_from_another_machine(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tars(images, tmp_path / "served", "valid")
    asked = settings(tmp_path / "x.json")
    found = []
    with served(Faults(["fail", "cut"]), tmp_path / "served") as address:
        for number, data in enumerate((images, f"{address}/{{train,valid}}-{{0,1}}.tar")):
            run = tmp_path / f"run-{number}"
            words = ("--data.train", images / "train", "--monitor.knn-data", data, "--monitor.knn-every-steps", "2")
            answer = call(capsys, "pretrain", asked, *words, "--out", run)
            assert answer.status == 0, answer.err
            found.append([row["metrics"] for row in read_jsonl(run / "results.jsonl")])
    assert found[0]
    assert found[0] == found[1]


@pytest.mark.slow
def test_predictions_on_another_machine(
    images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned(capsys, backbone, images, tmp_path / "run")
    shards = tars(images, tmp_path / "served", "valid")
    words = ("predict", "classification", "--model", tmp_path / "run", "--no-progress")
    with served(Faults(["fail", "cut"]), shards) as address:
        found = []
        for place in (str(shards), address):
            out = tmp_path / f"{len(found)}.csv"
            answer = call(capsys, *words, "--data", f"{place}/valid-{{0,1}}.tar", "--out", out)
            assert answer.status == 0, answer.err
            found.append(out.read_text().replace(place, ""))
    assert found[0] == found[1]


def test_a_table_from_another_machine(
    images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{path.relative_to(images)},{path.parent.name},{part}\n"
        for part in EACH
        for path in sorted((images / part).rglob("*.jpg"))
    ]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(rows))
    expected = scored(capsys, "knn", backbone, images)
    with served(Faults(), tmp_path) as address:
        assert scored(capsys, "knn", backbone, images, "--labels", f"{address}/t.csv") == expected
        words = ("evaluate", "knn", "--backbone", backbone, "--data", images, "--labels")
        assert call(capsys, *words, f"{address}/x.csv").line == f"mst: error: {address}/x.csv does not exist"


def test_what_is_refused(
    images: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tars(images, tmp_path / "served", "valid")
    words = ("evaluate", "knn", "--backbone", backbone, *QUIET, "--data")
    assert "2 of 2 files do not exist, the first:" in call(capsys, *words, f"{tmp_path}/none-{{0,1}}.tar").line
    with served(Faults(), tmp_path / "served") as address:
        data = f"{address}/{{train,valid}}-{{0,1}}.tar"
        said = call(capsys, *words, data, "--labels", tmp_path / "x.csv").line
        assert f"--labels {tmp_path}/x.csv: {data} is made of shards, whose labels are in them" in said
        monkeypatch.setenv("MST_SHARD_CACHE_SIZE", "40kB")
        said = call(capsys, *words, data).line
        assert "has 2 shards of" in said
        assert "and MST_SHARD_CACHE_SIZE is 4e-05 GB: give that much" in said
        monkeypatch.setenv("MST_SHARD_CACHE_SIZE", "much")
        assert "MST_SHARD_CACHE_SIZE=much: a size such as 500MB or 2TB is expected" in call(capsys, *words, data).line
