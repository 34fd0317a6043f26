"""What a process frees it keeps, once it is told to: seen by the pages that the system has to make anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
