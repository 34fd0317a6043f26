"""Settings of every test run."""

from __future__ import annotations

import mst  # noqa: F401  (first: sets how torch's compute threads wait)
