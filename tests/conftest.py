"""Settings of every test run."""

from __future__ import annotations

import os

from hypothesis import settings

import mst  # noqa: F401  (first: sets how torch's compute threads wait)

# On a server the same examples every time: a new counterexample is found, and mended, by a person at a desk.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
