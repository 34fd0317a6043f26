"""Rows of an Arrow column whose file is damaged: sound ones are given, the others refused one by one.

Arrow believes the offsets in a file: a wrong one ends the process, or gives bytes from anywhere in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

WIDTHS = {"binary": np.int32, "large_binary": np.int64}
"""Kinds of columns whose values follow each other in one buffer -> the type of their offsets."""
DAMAGED = "the file is damaged here"


class CheckedRows:
    """The rows of a column, each looked at before Arrow reads it."""

    def __init__(self, column: Any) -> None:
        self._chunks = [(chunk, _offsets(chunk)) for chunk in column.chunks]
        self._ends = np.cumsum([len(chunk) for chunk in column.chunks])

    def __getitem__(self, row: int) -> Any:
        """Return a row as Arrow does.

        Raises:
            OSError: it is damaged.
        """
        number = int(np.searchsorted(self._ends, row, side="right"))
        chunk, offsets = self._chunks[number]
        place = row - int(self._ends[number]) + len(chunk)
        if offsets is None:
            raise OSError(DAMAGED)
        start, end = int(offsets[place]), int(offsets[place + 1])
        if not 0 <= start <= end <= chunk.buffers()[2].size:
            raise OSError(DAMAGED)
        return chunk[place]


def checked(column: Any, invalid: type[Exception]) -> Any:
    """Return a column as it is where all of it is sound, else its rows, each looked at when it is read.

    Args:
        column: a chunked array.
        invalid: Arrow's exception for a damaged one.
    """
    try:
        column.validate(full=True)
    except invalid:
        return CheckedRows(column)
    return column


def _offsets(chunk: Any) -> npt.NDArray[Any] | None:
    """Return where each value begins and the last one ends; None for other kinds, or where they are missing."""
    width = WIDTHS.get(str(chunk.type))
    buffers = chunk.buffers()
    if width is None or len(buffers) < 3 or buffers[1] is None or buffers[2] is None:
        return None
    count, first = len(chunk) + 1, chunk.offset
    if buffers[1].size < (first + count) * np.dtype(width).itemsize:
        return None
    return np.frombuffer(buffers[1], width, first + count)[first:]
