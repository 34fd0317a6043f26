"""How much memory there is; and a setting by which the C library keeps freed memory for the next step.

By default it returns large blocks to the system at once. The next step then gets new pages, which the system fills with
zeros at the first touch. Source: mallopt(3) of the GNU C library.

torch's `THP_MEM_ALLOC_ENABLE` (large pages for large tensors) does not go with this: it asks for blocks that begin
at a page, and with them the process grew with every step (benchmarks/README.md).
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

OPTIONS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 2**26),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""Environment variable: (number of the option, value). The values are bytes, and the number of arenas: with few of
them, memory that one thread frees serves another. Blocks above the mapping threshold are always returned."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether its C library has such a setting.

    Options that the user has set in the environment are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = [option for name, option in OPTIONS.items() if name not in os.environ]
    answers = [mallopt(number, size) for number, size in wanted]
    return all(answer == 1 for answer in answers)


def resident_memory() -> int:
    """Return the bytes of this process that are in memory now; where the system does not say, the most so far."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]  # proc(5): size, resident, ...
        return int(pages) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def available_memory() -> int:
    """Return the bytes of memory that this process can still have.

    The least of: what the system has available, swap included (proc(5)); what is left of the limits of the process's
    control groups (cgroups(7), versions 1 and 2; inactive file cache counts as free); what is left of `ulimit -v`.
    """
    return max(0, min([_of_system(), *_of_groups(), *_of_limits()]))


def _of_system() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return sum(int(lines[key].split()[0]) << 10 for key in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_limits() -> Iterator[int]:
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY or not sys.platform.startswith("linux"):
        return
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    yield soft - int(pages) * resource.getpagesize()


def _of_groups(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield what each control group leaves, from the process's own up to the root; none where none has a limit."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if not controllers:
            top, limit, used, cached = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        own = top / name.strip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(top))):
            try:
                most, now = (int((folder / file).read_text(encoding="ascii")) for file in (limit, used))
                counts = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
                yield most - now + int(counts.get(cached, 0))
            except (OSError, ValueError):  # not there, or "max"
                continue
