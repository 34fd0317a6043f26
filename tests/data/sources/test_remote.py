"""Shards on other machines: fetched once, checked, kept within bounds, and one named error where they cannot be had."""

from __future__ import annotations

import errno
import gc
import importlib.util
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from data.sources.object_stores import Faults, served
from data.sources.test_tar import pack, png
from mst.data.decoding import read_image
from mst.data.order.epochs import EpochOrder
from mst.data.order.room import check_room
from mst.data.packing.pack import PackOptions
from mst.data.packing.pack import pack as pack_images
from mst.data.sources import ImageSource, open_images, remote
from mst.data.sources.shard_cache import ShardCache, Wanted
from mst.data.sources.tar import TarImages
from mst.errors import DataError, MissingExtra, Unreachable, UsageError

pytest.importorskip("aiohttp")
pytest.importorskip("fsspec")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
SHARDS, EACH = 6, 5


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in ("shard_cache", "remote"):
        monkeypatch.setattr(f"mst.data.sources.{module}.FIRST_WAIT", 0.01)
    remote._systems.clear()
    yield
    remote._systems.clear()
    gc.collect()  # sockets that the clients leave open warn here, where that is expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "served"
    place.mkdir()
    for shard in range(SHARDS):
        pack(place / f"s-{shard}.tar", {f"{shard}{image}.png": png(shard * EACH + image) for image in range(EACH)})
    return place


def opened(address: str, tmp_path: Path, room: int = 10**9) -> ImageSource:
    return open_images(address, shard_cache=ShardCache(tmp_path / "cache", room))


def read_all(images: ImageSource) -> list[bytes]:
    return [bytes(images.read_bytes(place)) for place in range(len(images))]


EXPECTED = [png(number) for number in range(SHARDS * EACH)]


def test_each_shard_is_fetched_once(folder: Path, tmp_path: Path) -> None:
    faults = Faults()
    with served(faults, folder) as address:
        images = opened(address + f"/s-{{0..{SHARDS - 1}}}.tar", tmp_path)
        assert read_all(images) == EXPECTED
        images.expect(np.arange(len(images)))
        assert read_all(opened(address + f"/s-{{0..{SHARDS - 1}}}.tar", tmp_path)) == EXPECTED
    assert set(faults.asked.values()) == {1}
    assert images.name(7) == f"{address}/s-1.tar:12.png"
    assert [*images.files()] == []


def test_faults_are_waited_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults(["fail", "cut", "", "slow", "cut", "fail", "cut", "fail"])
    with served(faults, folder) as address:
        assert read_all(opened(address + f"/s-{{0..{SHARDS - 1}}}.tar", tmp_path)) == EXPECTED
    assert "trying again" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".part"]


def test_silence_counts_as_a_failure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE", 0.4)
    with served(Faults(["stall"]), folder) as address:
        assert read_all(opened(address + "/s-0.tar", tmp_path)) == EXPECTED[:EACH]
    assert "s-0.tar: it fell silent: trying again" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["fail", "cut"])
def test_then_there_is_one_error(folder: Path, tmp_path: Path, fault: str) -> None:
    with served(Faults([fault] * 99), folder) as address, pytest.raises(Unreachable) as refused:
        opened(address + "/s-1.tar", tmp_path)
    assert f"{address}/s-1.tar cannot be fetched, 6 times: " in str(refused.value)
    assert "\n" not in str(refused.value)


LARGE = 400_000


def pack_large(place: Path, count: int, size: int = LARGE) -> dict[str, bytes]:
    """Write a shard of images far from each other, with a class each."""
    parts: dict[str, bytes] = {}
    for number in range(count):
        parts |= {f"{number:03}.png": png(number) + bytes(size), f"{number:03}.cls": b"%d" % (number % 3)}
    pack(place, parts)
    return parts


def test_headers_are_read_by_ranges(tmp_path: Path) -> None:
    """Of 50 members of 0.4 MB each, 20 MB in all, 0.6 MB come: a request of 8 KiB for each."""
    (tmp_path / "served").mkdir()
    parts = pack_large(tmp_path / "served" / "s.tar", 50)
    whole = (tmp_path / "served" / "s.tar").stat().st_size
    faults = Faults(["fail", "cut"])
    with served(faults, tmp_path / "served") as address:
        images = opened(address + "/s.tar", tmp_path)
        assert isinstance(images, TarImages)
        assert len(images) == 50
        assert not faults.asked
        assert faults.pieces.total() <= 53
        assert faults.sent.total() < 0.031 * whole
        images.fingerprint()  # 16 pieces, then all of it
        assert (faults.asked.total(), faults.pieces.total()) == (1, 53 + 16)
        assert read_all(images) == [parts[f"{number:03}.png"] for number in range(50)]
        labels = images.labels()
        assert labels is not None
        assert labels.numbers.tolist() == [number % 3 for number in range(50)]
        assert faults.asked.total() == 1
    local = open_images(tmp_path / "served" / "s.tar")
    assert isinstance(local, TarImages)
    for one, other in zip(images.table, local.table, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other  # type: ignore[arg-type]
    assert images.fingerprint() == local.fingerprint()


def test_a_list_beside_a_shard_spares_its_headers(tmp_path: Path) -> None:
    """Of 2 shards of 300 members of 8 kB, 2.5 MB each, the list and 6 pieces come; without, the whole file."""
    (tmp_path / "images").mkdir()
    for number in range(600):
        (tmp_path / "images" / f"{number:03}.png").write_bytes(png(number % 200) + bytes(8000))
    place = tmp_path / "served"
    pack_images(open_images(tmp_path / "images"), place, PackOptions(shard_size=300))
    assert (place / "shard-00000.idx").read_text().splitlines()[0] == "v1.2 300"
    faults = Faults()
    with served(faults, place) as address:
        images = opened(address + "/shard-{00000..00001}.tar", tmp_path)
        assert len(images) == 600
        assert not faults.asked
        assert faults.pieces.total() == 2 * 6
        assert faults.sent.total() < 250_000
        local = open_images(str(place / "*.tar"))
        for position in (0, 299, 300, 599):
            assert images.read_bytes(position) == local.read_bytes(position)
        (place / "shard-00000.idx").unlink()
        opened(address + "/shard-{00000..00001}.tar", tmp_path / "other")
        assert faults.asked.total() == 2


def test_a_server_without_ranges_sends_whole_files(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    parts = pack_large(tmp_path / "served" / "s.tar", 20)
    faults = Faults(ranges=False)
    with served(faults, tmp_path / "served") as address:
        images = opened(address + "/s.tar", tmp_path)
        assert read_all(images) == [parts[f"{number:03}.png"] for number in range(20)]
    assert faults.asked.total() == 2  # the request that showed it, of which nothing was read, and the file
    assert not faults.pieces


def test_tables_of_other_machines_are_remembered(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    pack_large(tmp_path / "served" / "s.tar", 260, 200)
    faults = Faults()
    with served(faults, tmp_path / "served") as address:
        for count, asked in ((260, 1), (260, 1), (261, 2)):  # small members: all of it, and not again
            pack_large(tmp_path / "served" / "s.tar", count, 8000)
            shards = ShardCache(tmp_path / "cache", 10**9)
            assert len(open_images(address + "/s.tar", cache=tmp_path / "index", shard_cache=shards)) == count
            for path in (tmp_path / "cache").iterdir():
                path.unlink()
            assert faults.asked.total() == asked


@pytest.mark.parametrize(
    ("damage", "said"), [(-3000, "unexpected end of data"), (30_000, "cannot be read as a tar file|damaged")]
)
def test_damaged_shards_of_other_machines(tmp_path: Path, damage: int, said: str) -> None:
    (tmp_path / "served").mkdir()
    path = tmp_path / "served" / "s.tar"
    pack_large(path, 12)
    data = bytearray(path.read_bytes())
    place = data.index(b"006.png") if damage > 0 else 0
    path.write_bytes(
        bytes(data[: len(data) - 12_000]) if damage < 0 else bytes(data[:place] + b"x" * 300 + data[place + 300 :])
    )
    with served(Faults(), tmp_path / "served") as address, pytest.raises(DataError, match=said) as refused:
        opened(address + "/s.tar", tmp_path)
    assert "\n" not in str(refused.value)


def test_a_lost_shard_ends_the_reading(folder: Path, tmp_path: Path) -> None:
    faults = Faults()
    with served(faults, folder) as address:
        images = opened(address + "/s-1.tar", tmp_path)
        for path in (tmp_path / "cache").iterdir():
            path.unlink()
        faults.plan = ["fail"] * 99
        with pytest.raises(Unreachable, match="cannot be fetched, 6 times"):
            read_image(images, 0)


def test_bad_addresses(folder: Path, tmp_path: Path) -> None:
    with served(Faults(), folder) as address:
        for text, said in (
            (f"{address}/none.tar", "none.tar does not exist"),
            (f"{address}/s-{{0..9}}.tar", "does not exist"),
            (f"{address}/folder", "is no shard"),
            ("ftp://here/x.tar", "addresses begin with s3://, gs:// or https://"),
        ):
            with pytest.raises(UsageError, match=said) as refused:
                opened(text, tmp_path)
            assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="cannot be reached, 6 times"):
        opened("http://127.0.0.1:9/x.tar", tmp_path)
    if importlib.util.find_spec("gcsfs") is not None:  # which would ask Google
        return
    with pytest.raises(MissingExtra, match=r"gcsfs is not installed: pip install 'mst-pretrain\[gs\]'"):
        opened("gs://bucket/x.tar", tmp_path)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(socket.EAI_NONAME, "no machine of that name is known"), (socket.EAI_AGAIN, "cannot be reached, 6 times")],
)
def test_only_a_name_server_that_cannot_answer_is_asked_again(
    answer: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def lookup(*words: object, **_: object) -> None:
        asked.append(words[0])
        raise socket.gaierror(answer, "not found")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(UsageError, match=said) as refused:
        opened("https://nowhere.invalid/x.tar", tmp_path)
    assert "\n" not in str(refused.value)
    requests = 2  # of one attempt: fsspec asks for the head first, then for all
    assert len(asked) == requests * (1 if answer == socket.EAI_NONAME else 6)


def test_the_cache_is_bounded_and_the_oldest_goes(folder: Path, tmp_path: Path) -> None:
    size = (folder / "s-0.tar").stat().st_size
    faults = Faults()
    with served(faults, folder) as address:
        images = opened(address + f"/s-{{0..{SHARDS - 1}}}.tar", tmp_path, room=3 * size)
        for _ in range(2):
            assert read_all(images) == EXPECTED
            held = [path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.suffix == ".tar"]
            assert sum(held) <= 3 * size
        with pytest.raises(UsageError, match=r"--data.order global needs all 6 shards at once"):
            check_room(images, "global")
        with pytest.raises(UsageError, match=r"--data.order shards has 6 shards in use"):
            check_room(images, "shards")
        check_room(opened(address + "/s-{0..2}.tar", tmp_path, room=3 * size), "global")
        with pytest.raises(DataError, match=r"has 10.2 kB, --data.shard-cache-size is 1 kB: give more"):
            opened(address + "/s-1.tar", tmp_path / "other", room=1000)


def write(wanted: Wanted, place: Path) -> None:
    place.write_bytes(b"x" * wanted.size)


def test_a_full_disk_and_other_troubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, wanted = ShardCache(tmp_path / "cache", 1000), Wanted("s3://b/x.tar", 100, "")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(Unreachable, match=r"cannot keep s3://b/x.tar \(100 bytes\): it is full: make room"):
            cache.open(wanted, write)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unreachable, match="cannot keep"):
        ShardCache(tmp_path / "file", 1000).open(wanted, write)
    marked = Wanted("s3://b/x.tar", 100, '"d41d8cd98f00b204e9800998ecf8427e"')
    with pytest.raises(Unreachable, match="its MD5 is not the one that the store tells"):
        cache.open(marked, write)
    os.close(cache.open(wanted, write))


def hang(folder: str, wanted: Wanted) -> None:
    def never(_: Wanted, place: Path) -> None:
        place.write_bytes(b"half")
        time.sleep(60)

    ShardCache(Path(folder), 1000).open(wanted, never)


@pytest.mark.slow
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    """Its half a file is fetched again by whoever waited for it, and what it left elsewhere is deleted."""
    cache, wanted = ShardCache(tmp_path, 1000), Wanted("s3://b/x.tar", 100, "")
    other = Wanted("s3://b/y.tar", 100, "")
    process = multiprocessing.get_context("spawn").Process(target=hang, args=(str(tmp_path), wanted))
    process.start()
    part = cache.path(wanted).with_name(cache.path(wanted).name + ".part")
    while not part.exists() or part.read_bytes() != b"half":
        time.sleep(0.02)
    os.close(cache.open(other, write))
    assert part.exists()  # at work: nobody deletes it
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    os.close(cache.open(Wanted("s3://b/z.tar", 100, ""), write))
    assert not part.exists()
    os.close(cache.open(wanted, write))
    assert cache.path(wanted).read_bytes() == b"x" * 100


def fetch_all(folder: str, log: str, names: list[str]) -> None:
    def slowly(wanted: Wanted, place: Path) -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(wanted.address + "\n")
        time.sleep(0.02)
        write(wanted, place)

    for name in names:
        os.close(ShardCache(Path(folder), 10_000).open(Wanted(name, 100, ""), slowly))


@pytest.mark.slow
def test_processes_share_what_is_fetched(tmp_path: Path) -> None:
    names = [f"s3://b/{number}.tar" for number in range(10)]
    spawn = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "cache"), str(tmp_path / "log"))
    processes = [spawn.Process(target=fetch_all, args=(*arguments, order)) for order in (names, names[::-1])]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().split()) == sorted(names)


def test_the_order_by_shards_fetches_ahead_and_once(folder: Path, tmp_path: Path) -> None:
    faults = Faults()
    with served(faults, folder) as address:
        images = opened(address + f"/s-{{0..{SHARDS - 1}}}.tar", tmp_path)
        for path in (tmp_path / "cache").iterdir():
            path.unlink()
        faults.asked.clear()
        order = EpochOrder(images, 0, kind="shards")
        images.expect(order.span(0, 0, order.size))
        found = [bytes(images.read_bytes(int(order.of(0)[place]))) for place in range(order.size)]
    assert sorted(found) == sorted(EXPECTED)
    assert set(faults.asked.values()) == {1}


@pytest.mark.slow
def test_an_object_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto behind a server that fails, stalls and stops half-way: every sample once, in order."""
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    store = moto.ThreadedMotoServer(port=0)
    store.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        host, port = store.get_host_and_port()
        faults = Faults(["fail", "cut", "", "slow", "cut", "fail", "cut", ""])
        with served(faults, behind=f"http://{host}:{port}") as address:
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
            client.create_bucket(Bucket="bucket")
            for path in folder.iterdir():
                client.upload_file(str(path), "bucket", f"set/{path.name}")
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            for text in ("s3://bucket/set", f"s3://bucket/set/s-{{0..{SHARDS - 1}}}.tar", "s3://bucket/set/s-*.tar"):
                assert read_all(opened(text, tmp_path)) == EXPECTED
            with pytest.raises(UsageError, match=r"s3://bucket/set/none.tar"):
                opened("s3://bucket/set/none.tar", tmp_path)
            faults.plan = ["fail"] * 999
            with pytest.raises(Unreachable, match=r"s3://bucket/set/s-2.tar cannot be fetched, 6 times"):
                opened("s3://bucket/set/s-2.tar", tmp_path / "other")
    finally:
        store.stop()


@pytest.mark.slow
def test_a_store_as_googles(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of Google's store behind the same faults; it has no ranges, so that files come whole.

    gcsfs repeats requests by itself, for minutes: what is said in the end is left to the other stores.
    """
    stub = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    faults = Faults(["fail", "cut", "", "slow", "cut", "fail", "cut", ""])
    store = stub.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    store.start()
    try:
        for path in [*folder.iterdir(), folder / "large.tar"]:
            if not path.exists():
                pack_large(path, 12)
            place = f"http://127.0.0.1:{port}/upload/storage/v1/b/bucket/o?uploadType=media&name=set/{path.name}"
            with urlopen(Request(place, data=path.read_bytes(), method="POST")) as answer:
                assert answer.status == 200
        with served(faults, behind=f"http://127.0.0.1:{port}") as address:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
            for text in (f"gs://bucket/set/s-{{0..{SHARDS - 1}}}.tar", "gs://bucket/set/s-*.tar"):
                assert read_all(opened(text, tmp_path)) == EXPECTED
            assert len(opened("gs://bucket/set", tmp_path)) == SHARDS * EACH + 12
            with pytest.raises(UsageError, match=r"gs://bucket/set/none.tar"):
                opened("gs://bucket/set/none.tar", tmp_path)
    finally:
        store.stop()
