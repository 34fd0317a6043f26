"""What the C library does with memory that a step gives back: keep it for the next step.

By default it returns large blocks to the system at once, and the next step's blocks come as new pages that the system
fills with zeros when they are first touched. Source: mallopt(3) of the GNU C library; torch's own part is the variable
`THP_MEM_ALLOC_ENABLE` (large pages for large tensors), which `mst/__init__.py` sets.
"""

from __future__ import annotations

import ctypes
import os

OPTIONS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 2**26),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""Environment variable: (number of the option, value): bytes, and how many stores of freed memory there are, so that
what one thread frees serves another. Blocks above the mapping threshold are always returned."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; return whether its C library can be told so.

    An option that the user has set in the environment stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = [option for name, option in OPTIONS.items() if name not in os.environ]
    answers = [mallopt(number, size) for number, size in wanted]
    return all(answer == 1 for answer in answers)
