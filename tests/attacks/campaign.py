"""Runs a row of attacks at full size, goes on where it stopped, and says after each part what has been found.

PYTHONPATH=src:tests python -m attacks.campaign FILE attacks.images 1000 21000
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections import Counter
from pathlib import Path

from attacks.watch import Watched, watch


def campaign(file: Path, module: str, first: int, end: int, part: int = 250) -> Watched:
    """Run the cases from `first` up to `end` that `file` does not hold yet, `part` of them at a time.

    Args:
        file: gets a line of JSON for each part, and has those of earlier calls.
        module: its function `attack` makes the cases.
    """
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {row["first"]: row["end"] for row in rows if row["module"] == module}
    total = Watched()
    for row in rows:
        if row["module"] == module and first <= row["first"] < end:
            row["found"]["outcomes"] = Counter(row["found"]["outcomes"])
            total = total.with_more(Watched(**row["found"]))
    while first < end:
        if first in done:
            first = done[first]
            continue
        numbers = range(first, min(first + part, end))
        found = watch(importlib.import_module(module).attack, numbers)
        total = total.with_more(found)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(
                json.dumps({"module": module, "first": first, "end": numbers.stop, "found": vars(found)}) + "\n"
            )
        print(f"up to {numbers.stop}: {total}", *found.findings, sep="\n", flush=True)
        first = numbers.stop
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "module", choices=[f"attacks.{name}" for name in ("images", "annotations", "calls", "runs", "settings")]
    )
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--part", type=int, default=250)
    print(campaign(**vars(parser.parse_args())))
