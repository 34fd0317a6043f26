"""Connected components by merging labels until nothing changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def components(patches: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return the 4-connected components of [h, w], by their first patch in row-major order."""
    label = {(int(y), int(x)): index for index, (y, x) in enumerate(zip(*np.nonzero(patches), strict=True))}
    changed = True
    while changed:
        changed = False
        for y, x in list(label):
            for near in ((y + 1, x), (y, x + 1), (y - 1, x), (y, x - 1)):
                if near in label and label[near] < label[y, x]:
                    label[y, x], changed = label[near], True
    return [[place for place in label if label[place] == index] for index in sorted(set(label.values()))]
