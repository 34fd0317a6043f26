"""Numbers as a person reads them."""

from __future__ import annotations

NONE, TIMES, MINUS = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
SMALL_ERROR = 0.1
MINUTE, HOUR, DAY = 60, 3600, 86400


def short(value: object) -> str:
    """Write any value in short: a float with four digits, thousands set apart, lists side by side."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(value, float):
        return short(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f" {TIMES} ".join(map(short, value)) if value else NONE
    return str(value)


def duration(seconds: float | None) -> str:
    """Write a time span with its two largest units."""
    if seconds is None:
        return NONE
    whole = round(seconds)
    for unit, (large, small) in ((DAY, ("d", "h")), (HOUR, ("h", "min")), (MINUTE, ("min", "s"))):
        if whole >= unit:
            smaller = {DAY: HOUR, HOUR: MINUTE, MINUTE: 1}[unit]
            return f"{whole // unit} {large} {whole % unit // smaller} {small}"
    return f"{whole} s"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a number that is in percent already."""
    return NONE if value is None else f"{value:.{digits}f}"


def measured(value: float | None, se: float | None, digits: int = 1) -> str:
    """Write a number in percent with its standard error: "74.6 ± 1.8"; small errors with two digits."""
    if value is None or se is None:
        return percent(value, digits)
    digits = max(digits, 1 if se >= SMALL_ERROR else 2)
    return f"{percent(value, digits)} ± {se:.{digits}f}"


def change(value: float | None, se: float | None, digits: int = 1) -> str:
    """Write a difference with its standard error: "+1.2 ± 2.0"."""
    return signed(value, digits) if value is None or se is None else f"{signed(value, digits)} ± {se:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """Write a difference with its sign; a negative one with a minus, not a hyphen."""
    return NONE if value is None else f"{value:+.{digits}f}".replace("-", MINUS)
