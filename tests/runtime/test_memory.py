"""How much memory there is; what a process frees it keeps, once told to: seen by the pages that must be made anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mst.runtime.memory import _of_groups, available_memory

PROGRAM = """
import ctypes, resource, sys
from mst.runtime.memory import keep_freed_memory
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.memset.argtypes, library.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
told = keep_freed_memory() if sys.argv[1] == "keep" else False
def touch():
    blocks = [library.malloc(2**22) for _ in range(3)]
    for block in blocks:
        library.memset(block, 1, 2**22)
    for block in blocks:
        library.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(word: str, **variables: str) -> tuple[bool, int]:
    command, environment = [sys.executable, "-c", PROGRAM, word], {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    told, pages = done.stdout.split()
    return told == "1", int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_freed_memory_is_used_again_unless_the_user_says_otherwise() -> None:
    told, pages = new_pages("keep")
    if not told:
        pytest.skip("this C library has no mallopt")
    assert pages < 100
    assert new_pages("leave")[1] > 1000
    assert new_pages("keep", MALLOC_MMAP_THRESHOLD_="65536")[1] > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux only")
def test_large_tensors_begin_anywhere() -> None:
    """Not at a page, as torch's large pages ask for: with those the process grew with every step."""
    program = "import mst, torch; print([torch.empty(2**21 + n).data_ptr() % 4096 for n in range(8)])"
    known = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=known)
    assert any(json.loads(done.stdout))
    asked = known | {"THP_MEM_ALLOC_ENABLE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=asked)
    assert not any(json.loads(done.stdout))


def test_resident_memory_follows_what_is_taken() -> None:
    """In a process of its own: this one may have kept enough freed memory to need nothing new."""
    program = """
from mst.runtime.memory import resident_memory
before = resident_memory()
taken = bytearray(b"1") * 2**27
print(resident_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < 2**28


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_control_groups_of_version_2_from_the_processs_own_up(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/slice/job\n")
    root = tmp_path / "fs"
    group(root, {"memory.stat": "inactive_file 5\n"})  # the root has no limit
    group(root / "slice", {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "inactive_file 300\n"})
    group(root / "slice" / "job", {"memory.max": "max\n", "memory.current": "700\n", "memory.stat": "file 1\n"})
    assert list(_of_groups(tmp_path / "cgroup", root)) == [400]


def test_control_groups_of_version_1_also_where_only_the_containers_own_is_seen(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n")
    stat = {"memory.stat": "inactive_file 1\ntotal_inactive_file 20\n"}
    group(tmp_path / "fs" / "memory", {"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "100", **stat})
    assert list(_of_groups(tmp_path / "cgroup", tmp_path / "fs")) == [420]


def test_without_control_groups(tmp_path: Path) -> None:
    assert list(_of_groups(tmp_path / "cgroup", tmp_path)) == []
    assert 2**20 < available_memory() < 2**50


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_the_limit_of_the_address_space_counts() -> None:
    program = "from mst.runtime.memory import available_memory; print(available_memory())"
    command = ["bash", "-c", f"ulimit -v 2000000; '{sys.executable}' -c '{program}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 10**8 < int(done.stdout) < 2_048_000_000
