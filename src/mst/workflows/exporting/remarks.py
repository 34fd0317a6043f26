"""Lines for the user that follow from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def told(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return which class of transformers reads a folder, and how far its image processor is from this package's."""
    lines = []
    for row in rows:
        if "class" in row:
            why = (
                f", because transformers has no own class for this network: {row['reason']}" if "reason" in row else ""
            )
            lines.append(f"transformers reads it by its class {row['class']}{why}")
        if pixels := row.get("processor"):
            lines.append(
                pixels.get("reason")
                or f"AutoImageProcessor gives pixels that differ from those evaluated here by {pixels['mean']:.2f} of "
                f"255 on average, by {pixels['largest']:.0f} at most"
            )
    return lines
