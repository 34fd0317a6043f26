from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.pictures import by_sample, write_textures
from mst.data import loader as loader_module
from mst.data import reader, unreadable
from mst.data.decoding import decode_image, read_image
from mst.data.formats.jpeg import Detail
from mst.data.loader import BatchLoader, Flags, StackedBatch, _chunks
from mst.data.reader import ImageCache
from mst.data.sampler import Share, batch_indices, sample_order
from mst.data.sources import ImageIndex, index_images
from mst.data.value_range import Scale
from mst.errors import DataError, RunFailure, UsageError
from mst.runtime.seeding import generator

# Python >= 3.12 remarks on every fork of a process with threads; the children here touch none of their locks.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def crop_one(image: Tensor, draws: torch.Generator) -> tuple[Tensor, ...]:
    """A random 8x8 window and the draw itself."""
    top, left = (int(torch.randint(0, side - 7, (), generator=draws)) for side in image.shape[1:])
    return image[:, top : top + 8, left : left + 8], torch.rand(2, generator=draws)


crop = by_sample(crop_one)


@by_sample
def whole(image: Tensor, draws: torch.Generator) -> tuple[Tensor, ...]:
    return (image,)


@by_sample
def broken(image: Tensor, draws: torch.Generator) -> tuple[Tensor, ...]:
    raise ValueError("a fault of the transform")


@by_sample
def fatal(image: Tensor, draws: torch.Generator) -> tuple[Tensor, ...]:
    os._exit(1)


@by_sample
def stalled(image: Tensor, draws: torch.Generator) -> tuple[Tensor, ...]:
    time.sleep(600)
    return (image,)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return ImageIndex.of(write_textures(tmp_path_factory.mktemp("images"), 21))


def spoil(folder: Path, count: int, bad: list[int]) -> ImageIndex:
    """`count` pictures of which those numbered `bad` are damaged."""
    paths = write_textures(folder, count)
    for number in bad:
        paths[number].write_bytes(b"" if number % 2 else paths[number].read_bytes()[:90])
    return ImageIndex.of(paths)


def run(index: ImageIndex, *, transform: reader.Transform = crop, **options: object) -> list[StackedBatch]:
    settings: dict[str, object] = {"batch_size": 5, "seed": 3, "total_steps": 9, **options}
    with BatchLoader(index, transform, **settings) as loader:
        return list(loader)


def same(a: list[StackedBatch], b: list[StackedBatch]) -> bool:
    return len(a) == len(b) and all(
        (x.step, x.positions) == (y.step, y.positions)
        and torch.equal(x.indices, y.indices)
        and all(torch.equal(s, t) for s, t in zip(x.tensors, y.tensors, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_batches_are_what_their_definition_says(images: ImageIndex) -> None:
    batches = run(images)
    assert [batch.step for batch in batches] == list(range(9))
    for step, batch in enumerate(batches):  # 4 steps per epoch: 2 and a quarter epochs
        assert torch.equal(batch.indices, batch_indices(3, step, 5, 21))
        assert [tuple(t.shape) for t in batch.tensors] == [(5, 3, 8, 8), (5, 2)]
        for b in range(5):
            epoch, position = step // 4, step % 4 * 5 + b
            image = decode_image(images[int(sample_order(3, epoch, 21)[position])])
            expected = crop_one(image, generator(3, epoch, position))
            assert all(torch.equal(t[b], e) for t, e in zip(batch.tensors, expected, strict=True))


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}, {"cache": False}])
def test_workers_and_memory_change_nothing(images: ImageIndex, options: dict[str, object]) -> None:
    assert same(run(images), run(images, **options))


@pytest.mark.parametrize("start", [0, 1, 4, 8, 9, 12])
def test_a_resumed_run_goes_on_where_the_first_stopped(images: ImageIndex, start: int) -> None:
    assert same(run(images)[start:], run(images, start_step=start))


def test_accumulation_cuts_the_same_samples(images: ImageIndex) -> None:
    steps = run(images, batch_size=6, total_steps=4)
    passes = run(images, batch_size=6, total_steps=4, accumulate=3, workers=2)
    assert [batch.step for batch in passes] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(torch.cat([b.indices for b in steps]), torch.cat([b.indices for b in passes]))
    assert torch.equal(torch.cat([b.tensors[0] for b in steps]), torch.cat([b.tensors[0] for b in passes]))


def in_order(batches: list[StackedBatch]) -> list[StackedBatch]:
    """The parts of each step put together again, by the positions that they say."""
    steps: dict[int, list[StackedBatch]] = {}
    for batch in batches:
        steps.setdefault(batch.step, []).append(batch)
    whole = []
    for step, parts in sorted(steps.items()):
        parts.sort(key=lambda part: part.positions.start)
        assert [i for part in parts for i in part.positions] == list(range(parts[-1].positions.stop))
        assert all(len(part.positions) == len(part.indices) for part in parts)
        tensors = tuple(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True))
        positions = range(parts[-1].positions.stop)
        whole.append(StackedBatch(tensors, torch.cat([part.indices for part in parts]), step, positions))
    return whole


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (2, 1), (3, 1), (2, 2), (5, 1), (1, 5)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_shares_of_processes_make_the_same_batch(
    tmp_path: Path, processes: int, accumulate: int, workers: int
) -> None:
    index = spoil(tmp_path, 21, [4, 5, 11])  # replacements are the same ones on any number of processes
    options: dict[str, object] = {"max_unreadable_share": 0.5, "total_steps": 6, "start_step": 2}
    parts = [
        batch
        for rank in range(processes)
        for batch in run(index, accumulate=accumulate, share=Share(rank, processes), workers=workers, **options)
    ]
    assert len(parts) == 4 * processes * accumulate
    assert same(run(index, **options), in_order(parts))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_replaced_by_the_next_and_listed_once(tmp_path: Path, workers: int) -> None:
    index = spoil(tmp_path / "x", 21, [4, 5, 11])
    listing = tmp_path / "unreadable.txt"
    options: dict[str, object] = {"max_unreadable_share": 0.5, "unreadable_file": listing}
    with BatchLoader(index, crop, batch_size=5, seed=3, total_steps=20, workers=workers, **options) as loader:
        batches = list(loader)
    for step, batch in enumerate(batches):
        epoch, first = step // 4, step % 4 * 5
        order = sample_order(3, epoch, 21).tolist()
        for b in range(5):
            at = first + b
            while order[at % 21] in {4, 5, 11}:
                at += 1
            assert batch.indices[b] == order[at % 21]
            image = decode_image(index[order[at % 21]])
            assert torch.equal(batch.tensors[0][b], crop_one(image, generator(3, epoch, first + b))[0])
    rows = [line.split("\t") for line in listing.read_text().splitlines()]
    assert sorted(Path(path).name for path, _ in rows) == ["img_004.jpg", "img_005.jpg", "img_011.jpg"]
    assert all(reason for _, reason in rows)
    assert (loader.unreadable.count, loader.unreadable.files_read) == (3, 21)
    run(index, **options)  # a resumed run does not list them again
    assert len(listing.read_text().splitlines()) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_files_end_the_run(tmp_path: Path, workers: int) -> None:
    index = spoil(tmp_path, 40, [1, 8, 22, 30])
    with pytest.raises(
        DataError, match=r"of the \d+ images read so far are unreadable \(.*%, at most 5.0%\)"
    ) as caught:
        run(index, batch_size=8, total_steps=10, workers=workers)
    assert "\n" not in str(caught.value)
    assert "raise --data.max-unreadable-share" in str(caught.value)
    with pytest.raises(DataError, match=r"or raise --share$"):
        run(index, batch_size=8, total_steps=10, workers=workers, flags=Flags("--workers", "--share"))
    assert len(run(index, batch_size=8, total_steps=10, max_unreadable_share=0.101)) == 10


def test_a_resumed_run_is_not_ended_by_one_bad_file_among_its_last(tmp_path: Path) -> None:
    index = spoil(tmp_path, 40, [int(sample_order(3, 1, 40)[-1])])  # the last sample of the second epoch
    assert len(run(index, batch_size=8, total_steps=10)) == 10
    assert len(run(index, batch_size=8, total_steps=10, start_step=9)) == 1


def test_the_share_is_judged_only_after_enough_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = spoil(tmp_path, 20, [int(sample_order(3, 0, 20)[0])])  # the very first sample
    monkeypatch.setattr(unreadable, "ENOUGH_TO_JUDGE", 20)
    assert len(run(index, batch_size=4, total_steps=10)) == 10
    monkeypatch.setattr(unreadable, "ENOUGH_TO_JUDGE", 4)
    with pytest.raises(DataError):
        run(index, batch_size=4, total_steps=10)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_ends_the_run_at_once(tmp_path: Path, workers: int) -> None:
    index = spoil(tmp_path, 8, list(range(8)))
    with pytest.raises(DataError, match=r"8 images in a row could not be read, the last: .*jpg"):
        run(index, batch_size=4, total_steps=1000, workers=workers)


def test_settings_that_cannot_be(images: ImageIndex) -> None:
    with pytest.raises(DataError, match=r"larger than the data set"):
        run(images, batch_size=22)
    with pytest.raises(UsageError, match=r"batch of 5 has not even an image for each of 6 microbatches$"):
        run(images, accumulate=6)
    with pytest.raises(UsageError, match=r"each of 2 microbatches on 3 processes$"):
        run(images, accumulate=2, share=Share(2, 3))
    with pytest.raises(UsageError, match=r"-1 loader workers"):
        run(images, workers=-1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_transform_is_not_hidden(images: ImageIndex, workers: int) -> None:
    with pytest.raises(ValueError, match=r"a fault of the transform"):
        run(images, transform=broken, workers=workers)


def test_a_dead_worker_is_one_clear_line(images: ImageIndex) -> None:
    with pytest.raises(RunFailure, match=r"a loader process died"):
        run(images, transform=fatal, workers=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_early_leaves_nothing_behind(images: ImageIndex, workers: int) -> None:
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with BatchLoader(images, crop, batch_size=5, seed=0, total_steps=10_000, workers=workers) as loader:
        next(loader)
        assert loader.wait_seconds > 0
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()
    if before:
        assert not {name for name in os.listdir("/dev/shm") if name.startswith("torch_")} - before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_hangs_keeps_nobody(images: ImageIndex, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mst.data.background.CLOSING", 0.1)
    monkeypatch.setattr("mst.data.background.leave_behind", lambda: None)
    loader = BatchLoader(images, stalled, batch_size=5, seed=0, total_steps=9, workers=workers)
    waiting = threading.Thread(target=lambda: suppress_all(lambda: next(loader)), daemon=True)
    waiting.start()
    time.sleep(0.5)
    executor = loader._executor
    assert executor is not None
    started = time.monotonic()
    if workers:
        loader_module._end_workers(executor)
    else:
        executor.shutdown(cancel_futures=True)
    assert time.monotonic() - started < 10


def suppress_all(call: Callable[[], object]) -> None:
    with suppress(Exception):
        call()


def test_pipes_carry_the_same_as_shared_memory(
    images: ImageIndex, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = run(images, workers=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("mst.data.transport.free_shared_memory", lambda: 0)
    piped = run(images, workers=2)
    assert same(shared, piped)
    assert capsys.readouterr().err.count("warning: /dev/shm has") == 1


def test_memory_holds_small_images_until_the_budget_is_spent() -> None:
    cache = ImageCache(3 * (1024 + 12))
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for index in range(5):
        cache.offer(index, image)
    assert [cache.get(index) is not None for index in range(5)] == [True, True, True, False, False]
    roomy = ImageCache(1 << 40)
    roomy.offer(0, torch.zeros(3, 257, 256, dtype=torch.uint8))
    assert roomy.get(0) is None


def test_images_are_decoded_once_with_memory(images: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(images: ImageIndex, position: int, *, channels: int, enough: Detail | None, scale: Scale) -> Tensor:
        seen.append(position)
        return read_image(images, position, channels=channels, enough=enough, scale=scale)

    monkeypatch.setattr(reader, "read_image", counted)
    run(images, batch_size=21, total_steps=4)
    assert len(seen) == 21


def test_grey_images(images: ImageIndex) -> None:
    assert run(images, transform=whole, channels=1)[0].tensors[0].shape == (5, 1, 24, 24)


@pytest.mark.parametrize("samples", [1, 2, 31, 32, 33, 100, 1024])
@pytest.mark.parametrize("workers", [0, 1, 3, 16])
def test_chunks(samples: int, workers: int) -> None:
    chunks = _chunks(range(7, 7 + samples), workers)
    assert [place for chunk in chunks for place in chunk] == list(range(7, 7 + samples))
    sizes = list(map(len, chunks))
    assert sum(sizes) == samples
    assert 1 <= min(sizes) <= max(sizes) <= min(64, min(sizes) + 1)
    assert len(sizes) >= min(samples, workers)


SCRIPT = """
    import signal, sys
    import torch
    from mst.data.loader import BatchLoader
    from mst.data.sources import index_images

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored

    def whole(images, draws):
        return (torch.stack(images),)

    with BatchLoader(index_images(sys.argv[1]), whole, batch_size=4, seed=0, total_steps=10**9, workers=2) as loader:
        try:
            for batch in loader:
                if batch.step == 2:
                    print(*loader._executor._processes, flush=True)
        except KeyboardInterrupt:
            print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="process groups and /proc as on Linux")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_run_nor_speaks(tmp_path: Path, kind: signal.Signals) -> None:
    write_textures(tmp_path / "images", 8)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "images")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        if kind == signal.SIGINT:
            os.killpg(process.pid, kind)  # as Ctrl-C does
        else:
            process.kill()
        out, err = process.communicate(timeout=60)
    if kind == signal.SIGINT:  # after a SIGKILL, a worker that was handing a tensor over may remark on its dead parent
        assert (out.strip(), err) == ("stopped", "")
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("loader processes are still there")


def test_the_index_may_come_from_a_folder(images: ImageIndex) -> None:
    assert same(run(images), run(index_images(images[0].parent)))


def test_large_images_are_transformed_before_more_are_read(images: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(pixels: list[Tensor], draws: list[torch.Generator]) -> tuple[Tensor, ...]:
        sizes.append(len(pixels))
        return crop(pixels, draws)

    sampler = reader.SampleReader(images, noted, channels=3, seed=1)  # type: ignore[arg-type]
    together = sampler.read(reader.Places(0, 3, 8))
    monkeypatch.setattr(reader, "AT_ONCE", 2 * decode_image(images[0]).numel())
    apart = sampler.read(reader.Places(0, 3, 8))
    assert sizes[0] == 8
    assert sum(sizes[1:]) == 8
    assert 1 < max(sizes[1:]) < 8
    assert all(torch.equal(*pair) for pair in zip(together.tensors, apart.tensors, strict=True))
    assert torch.equal(together.indices, apart.indices)
