"""Parquet, Arrow and Hugging Face data sets: which column and split are meant, labels, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mst.data.decoding import UnreadableImage, read_image
from mst.data.sources import open_images
from mst.data.sources.columns import ColumnImages
from mst.data.sources.huggingface import parse, split_of_name
from mst.errors import DataError, UsageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8 + number, 9), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(number) for number in range(10)]
STRUCTS = [{"bytes": data, "path": f"{place}.png"} for place, data in enumerate(IMAGES)]
NAMES = {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def noted(table: Any, features: dict[str, Any]) -> Any:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata)


def write(path: Path, features: dict[str, Any] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    table = table if features is None else noted(table, features)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, 4)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("values", [IMAGES, STRUCTS], ids=["bytes", "structs"])
def test_rows_are_read_one_by_one(tmp_path: Path, suffix: str, values: list[Any]) -> None:
    first = write(tmp_path / f"a.{suffix}", image=values[:7], other=["x"] * 7)
    write(tmp_path / f"b.{suffix}", image=values[7:], other=["x"] * 3)
    images = open_images(tmp_path)
    assert isinstance(images, ColumnImages)
    assert len(images) == 10
    for place in (*range(9, -1, -1), 3, 8):
        assert bytes(images.read_bytes(place)) == IMAGES[place]
        assert bytes(images.read_bytes(place, 8)) == IMAGES[place][:8]
        assert images.size(place) == len(IMAGES[place])
    assert images.name(6) == f"{first}[6]"
    assert images.name(9) == f"{tmp_path}/b.{suffix}[2]"
    assert images.runs().tolist() == [7, 10]
    chosen = images.only(np.array([9, 0, 8]))
    assert bytes(chosen.read_bytes(1)) == IMAGES[0]
    assert chosen.runs().tolist() == [1, 2, 3]
    assert images.labels() is None


def test_the_cache_of_row_groups_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", image=IMAGES)
    room = 2 * sum(map(len, IMAGES[:3])) + 200
    monkeypatch.setattr("mst.data.sources.columns.MOST_KEPT", room)
    images = open_images(tmp_path / "a.parquet")
    assert isinstance(images, ColumnImages)
    for place in range(10):
        assert bytes(images.read_bytes(place)) == IMAGES[place]
        assert 0 < sum(size for _, size in images._kept._blocks.values()) <= room
    assert len(images._kept._blocks) < 4


def test_classes(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", NAMES, image=STRUCTS[:4], label=[2, 0, 2, 1])
    labels = open_images(tmp_path / "a.parquet").labels()
    assert labels is not None
    assert (labels.classes, labels.numbers.tolist()) == (("cat", "dog", "owl"), [2, 0, 2, 1])
    write(tmp_path / "b.parquet", image=IMAGES[:3], label=["y", "x", "y"])
    labels = open_images(tmp_path / "b.parquet", limit=2).labels()
    assert labels is not None
    assert (labels.classes, labels.numbers.tolist()) == (("x", "y"), [1, 0])
    write(tmp_path / "c.parquet", NAMES, image=STRUCTS[:2], label=[1, None])
    with pytest.raises(DataError, match=r"c.parquet\[1\] has no class: its column label is empty there"):
        open_images(tmp_path / "c.parquet").labels()
    write(tmp_path / "d.parquet", NAMES, image=STRUCTS[:2], label=[1, 3])
    with pytest.raises(DataError, match=r"d.parquet\[1\] is of class 3: 3 classes have names in label"):
        open_images(tmp_path / "d.parquet").labels()
    write(tmp_path / "e.parquet", image=IMAGES[:2], label=[0.5, 1.5])
    with pytest.raises(DataError, match="the column label holds neither numbers nor names"):
        open_images(tmp_path / "e.parquet").labels()


def test_which_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", left=IMAGES[:2], right=IMAGES[2:4], n=[1, 2])
    with pytest.raises(UsageError, match=r"several columns that may hold images: left, right: name one, .*:COLUMN"):
        open_images(tmp_path / "a.parquet")
    assert bytes(open_images(f"{tmp_path}/a.parquet:right").read_bytes(1)) == IMAGES[3]
    with pytest.raises(UsageError, match=r"has no column middle: left \(binary\), right"):
        open_images(f"{tmp_path}/a.parquet:middle")
    with pytest.raises(DataError, match="the column n holds no images but int64"):
        open_images(f"{tmp_path}/a.parquet:n")
    write(tmp_path / "b.parquet", mask=IMAGES[:2], image=IMAGES[2:4])
    assert bytes(open_images(tmp_path / "b.parquet").read_bytes(0)) == IMAGES[2]
    write(tmp_path / "c.parquet", NAMES, other=IMAGES[:2], image=STRUCTS[2:4])
    assert bytes(open_images(tmp_path / "c.parquet").read_bytes(0)) == IMAGES[2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a", "b"]}, r"has no column of images \(bytes, or bytes and path\): text \(string\)"),
        ({"image": [b"no image", b"nor this"]}, "the column image holds no images: none of 2 rows looked at begins"),
        ({"image": pa.array([None, None], pa.binary())}, "the row holds no image|holds no images"),
        ({"image": pa.array([], pa.binary())}, "holds no rows"),
    ],
)
def test_columns_without_images(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    write(tmp_path / "x.parquet", **columns)
    with pytest.raises(DataError, match=said) as refused:
        open_images(tmp_path / "x.parquet")
    assert "\n" not in str(refused.value)


def test_an_empty_row_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", image=[STRUCTS[0], {"bytes": None, "path": "x"}, None])
    images = open_images(tmp_path / "x.parquet")
    read_image(images, 0)
    for place in (1, 2):
        with pytest.raises(UnreadableImage, match=rf"x.parquet\[{place}\]: the row holds no image"):
            read_image(images, place)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x.{suffix}", image=IMAGES)
    data = path.read_bytes()
    for content in (b"", b"nothing of the kind" * 9, data[: len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises((UsageError, DataError), match=f"x.{suffix}") as refused:
            open_images(path).read_bytes(9)
        assert "\n" not in str(refused.value)


def test_files_of_different_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=IMAGES[:2])
    write(tmp_path / "b.parquet", photo=IMAGES[:2])
    with pytest.raises(DataError, match=r"b.parquet has its images in photo, .*a.parquet in image"):
        open_images(tmp_path)
    write(tmp_path / "c.arrow", photo=IMAGES[:2])
    with pytest.raises(DataError, match=r"shards of several kinds \(.arrow, .parquet\)"):
        open_images(tmp_path)


def test_names_of_hugging_face() -> None:
    assert parse("hf:a/b") == ("a/b", "", "")
    assert parse("hf:a/b:test") == ("a/b", "test", "")
    assert parse("hf:a:test:img") == ("a", "test", "img")
    assert parse("hf:a::img") == ("a", "", "img")
    for text in ("hf:", "hf::train", "hf:a:b:c:d"):
        with pytest.raises(UsageError, match=r"hf:NAME\[:split\]\[:column\] is expected"):
            parse(text)


def test_folders_of_splits(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00002.parquet", image=STRUCTS[:3])
    write(tmp_path / "data/train-00001-of-00002.parquet", image=STRUCTS[3:5])
    write(tmp_path / "data/validation-00000-of-00001.parquet", image=STRUCTS[5:])
    assert len(open_images(f"hf:{tmp_path}")) == 5
    assert len(open_images(f"hf:{tmp_path}:validation")) == 5
    assert len(open_images(f"hf:{tmp_path}:train:image")) == 5
    with pytest.raises(UsageError, match=r"no split nonesuch: train, validation"):
        open_images(f"hf:{tmp_path}:nonesuch")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither a saved data set nor parquet or Arrow files"):
        open_images(f"hf:{tmp_path}/empty")


def test_what_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": STRUCTS[:6], "label": [0, 1, 0, 1, 0, 0]}
    whole = datasets.Dataset.from_dict(rows, features=kinds)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(2))}).save_to_disk(str(tmp_path / "both"))
    for source in (f"hf:{tmp_path}/one", f"{tmp_path}/one", f"{tmp_path}/both", f"hf:{tmp_path}/both:train"):
        images = open_images(source)
        assert [bytes(images.read_bytes(place)) for place in range(6)] == IMAGES[:6]
        labels = images.labels()
        assert labels is not None
        assert (labels.classes, labels.numbers.tolist()) == (("cat", "dog"), rows["label"])
    assert len(open_images(f"hf:{tmp_path}/both:test")) == 2
    with pytest.raises(UsageError, match=r"hf:no/such-set is neither a folder nor .*: fetch it first"):
        open_images("hf:no/such-set")


def test_a_damaged_row_of_an_arrow_file_is_one_row(tmp_path: Path) -> None:
    """Such an offset ended the process."""
    path = tmp_path / "a.arrow"
    table = pa.table({"image": pa.array(IMAGES, pa.binary())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    data = bytearray(path.read_bytes())
    offsets = np.cumsum([0, *map(len, IMAGES)]).astype("<i4").tobytes()
    data[data.index(offsets) + 4 * 7 + 3] = 0x7F  # the end of row 6 and the start of row 7
    path.write_bytes(data)
    source = open_images([str(path)])
    for row in range(10):
        if row in {6, 7}:
            with pytest.raises(UnreadableImage, match="the file is damaged here"):
                read_image(source, row)
        else:
            assert read_image(source, row).shape[2] == 8 + row


def test_files_that_number_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    other = {**NAMES, "label": {"names": ["dog", "cat", "owl"], "_type": "ClassLabel"}}
    write(tmp_path / "train-0.parquet", NAMES, image=IMAGES[:5], label=[0, 1, 2, 0, 1])
    write(tmp_path / "train-1.parquet", other, image=IMAGES[5:], label=[0, 1, 2, 0, 1])
    source = open_images([str(tmp_path)])
    assert isinstance(source, ColumnImages)
    with pytest.raises(DataError, match=r"by other names .cat, dog, owl and dog, cat, owl.: which number"):
        source.labels()


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["[]", '{"window": 3}', "[" * 100_000, "", '{"splits'])
def test_other_files_may_have_the_names_of_notes(tmp_path: Path, name: str, content: str) -> None:
    for place, data in enumerate(IMAGES):
        (tmp_path / f"{place}.png").write_bytes(data)
    (tmp_path / name).write_text(content)
    assert len(open_images([str(tmp_path)])) == 10


@pytest.mark.parametrize("content", ['{"_data_files": []}', '{"_data_files": [3]}', "{"])
def test_a_damaged_note_beside_arrow_files_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path / "data-0.arrow", image=IMAGES)
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(DataError, match="is no data set that datasets saved"):
        open_images([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train2017.tar", "train"),
        ("val-shard-000.tar", "val"),
        ("valid_part0.tar", "valid"),
        ("x-test_chunk-3.parquet", "test"),
        ("train000.arrow", "train"),
        ("trainee2.tar", ""),
        ("latest.tar", ""),
    ],
)
def test_names_that_tell_a_split(name: str, split: str) -> None:
    assert split_of_name(name) == split
