"""Standard errors from counts alone, and what counts as a difference: for rows, the screen and reports, without torch.

Everything is in percent points, as metrics are.
"""

from __future__ import annotations

import math

CLEAR = 2.0
"""A difference of fewer standard errors than this may be chance (about 1 in 20 is larger without any cause)."""


def accuracy_se(percent: float, count: int) -> float:
    """Return the standard error of an accuracy: 100 sqrt(p (1 - p) / n), binomial.

    Where all or none of the images are right the formula gives 0, which would claim certainty; then p is taken as if
    two more images had been seen, one right and one wrong (Laplace's rule of succession).

    Args:
        percent: share of right images, in percent.
        count: number of images n, at least 1.
    """
    share = percent / 100
    if not 0 < round(share * count) < count:
        share = (share * count + 1) / (count + 2)
    return 100 * math.sqrt(share * (1 - share) / count)


def difference_se(first: float, second: float) -> float:
    """Return the standard error of a difference of two independent numbers; on the same images it is an upper guess."""
    return math.hypot(first, second)


def is_clear(difference: float, se: float) -> bool:
    """Whether a difference is more than `CLEAR` of its standard errors: else it is called within noise."""
    return abs(difference) > CLEAR * se


def with_error(value: float, se: float | None) -> str:
    """Write a number in percent with its standard error: "74.6 ± 1.8"; without one, with two digits as before."""
    return f"{value:.2f}" if se is None else f"{value:.1f} ± {se:.1f}" if se >= 0.1 else f"{value:.2f} ± {se:.2f}"
