"""Finding many image files: a first search, a second one that remembers, and one after a single folder changed.

With --tar they are members of one tar file: its headers are read, then its table is remembered, then an epoch is
drawn; then its members are read from a list beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

from machine import machine

from mst.data.files.folders import FRESH
from mst.data.files.tar_listing import ENDING, Listed, listing
from mst.data.order.epochs import EpochOrder
from mst.data.sources import index_images, open_images

ROOM = 1.2
"""Free inodes wanted per file."""


def make_files(root: Path, files: int, folders: int) -> None:
    """Write empty files with names like a camera's, evenly over folders."""
    for number in range(folders):
        folder = root / f"folder_{number:05d}"
        folder.mkdir()
        for position in range(files * number // folders, files * (number + 1) // folders):
            os.close(os.open(folder / f"IMG_{position:08d}.JPEG", os.O_CREAT | os.O_WRONLY))


def searched(root: Path, cache: Path | None) -> tuple[float, int]:
    """Return the seconds of a search and the number of images."""
    started = time.perf_counter()
    index = index_images(root, cache=cache)
    return time.perf_counter() - started, len(index)


def tar_seconds(work: Path, files: int, repetitions: int) -> dict[str, list[float]]:
    """Write a tar file of so many members of a few bytes, and return the seconds of what a plan does with it."""
    seconds: dict[str, list[float]] = {"all headers": [], "remembered": [], "an epoch's order": [], "from a list": []}
    path = work / "x.tar"
    samples = [[Listed(f"{number:09}.jpg", 1024 * number + 512, 9)] for number in range(files)]
    with path.open("wb") as file:
        for number in range(files):
            info = tarfile.TarInfo(f"{number:09}.jpg")
            info.size = 9
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + b"%09d" % number + bytes(503))
        file.write(bytes(10240))
    time.sleep(FRESH / 1e9 + 1)
    for repetition in range(repetitions):
        for name in ("all headers", "remembered"):
            started = time.perf_counter()
            images = open_images(path, cache=work / f"tables{repetition}")
            seconds[name].append(time.perf_counter() - started)
        if bytes(images.read_bytes(files - 1)) != b"%09d" % (files - 1):
            raise SystemExit("the last member is another one")
        started = time.perf_counter()
        EpochOrder(images, 0).of(repetition)
        seconds["an epoch's order"].append(time.perf_counter() - started)
    path.with_suffix(ENDING).write_text(listing(samples))
    for _ in range(repetitions):
        started = time.perf_counter()
        open_images(path)
        seconds["from a list"].append(time.perf_counter() - started)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return seconds


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """Print a table, and write it if asked to."""
    for name, values in seconds.items():
        print(f"{name:20} {min(values):6.2f} - {max(values):.2f} s")
    if arguments.out:
        record = {"machine": machine(), "files": arguments.files, "folders": arguments.folders, "seconds": seconds}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Make the files, search them, remove them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tar", action="store_true", help="members of one tar file, not files")
    parser.add_argument(
        "--under", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    disk = os.statvfs(arguments.under)
    if arguments.tar:
        with tempfile.TemporaryDirectory(prefix="mst-index-", dir=arguments.under) as place:
            report(tar_seconds(Path(place), arguments.files, arguments.repetitions), arguments)
        return
    if disk.f_files and disk.f_favail < ROOM * arguments.files:
        parser.error(
            f"{arguments.under} has {disk.f_favail} inodes free, {arguments.files} files need more: --under DISK"
        )
    work = Path(tempfile.mkdtemp(prefix="mst-index-", dir=arguments.under))
    seconds: dict[str, list[float]] = {
        "without a cache": [],
        "first search": [],
        "second search": [],
        "one folder changed": [],
    }
    try:
        root = work / "images"
        root.mkdir()
        make_files(root, arguments.files, arguments.folders)
        time.sleep(FRESH / 1e9 + 1)  # folders that have just changed are not remembered
        for repetition in range(arguments.repetitions):
            cache = work / f"cache{repetition}"
            seconds["without a cache"].append(searched(root, None)[0])
            seconds["first search"].append(searched(root, cache)[0])
            took, count = searched(root, cache)
            seconds["second search"].append(took)
            (root / "folder_00000" / f"new{repetition}.png").touch()
            took, after = searched(root, cache)
            seconds["one folder changed"].append(took)
            if (count, after) != (arguments.files + repetition, arguments.files + repetition + 1):
                raise SystemExit(f"found {count} and {after} of {arguments.files} files")
    finally:
        shutil.rmtree(work)
    report(seconds, arguments)


if __name__ == "__main__":
    main()
