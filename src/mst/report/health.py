"""Checks of a run's numbers: each gives one sentence, a warning or an assurance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mst.report import numbers
from mst.report.reading import RunRecords
from mst.report.results import Comparison
from mst.report.story import Story, tell
from mst.runtime import advice
from mst.runtime.dynamics.detectors import findings
from mst.runtime.dynamics.records import Finding

UNIFORM_SHARE = 0.98
CONSTANT_SHARE = 0.01
FLAT_STD = 0.05
LONG_WAIT = 0.2
GROWN, GROWN_GB = 1.5, 1.0
"""A process counts as growing from so many times, and so much more than, what it held after the first quarter."""


@dataclass(frozen=True)
class Check:
    """One finding."""

    good: bool
    text: str


def checks(records: RunRecords, results: list[Comparison]) -> list[Check]:
    """Return the findings about a run, warnings first."""
    found = [
        *_length(records, tell(records)),
        *_dynamics(records),
        *_repairs(records),
        *_bad_steps(records),
        *_files(records),
        *_outdated(records),
        *_waiting(records),
        *_memory(records),
        *_gain(results),
    ]
    return sorted(found, key=lambda check: check.good)


def _length(records: RunRecords, story: Story) -> Iterator[Check]:
    if not records.metrics:
        yield Check(False, "There are no metrics: the run has not started, or was stopped before its first row.")
    elif not story.finished and (story.total or story.kind != "unknown"):
        of = f" of {story.total}" if story.total else ""
        yield Check(False, f"The run is not finished: step {story.step}{of} (go on with {story.resume}).")


def found_in(records: RunRecords) -> list[Finding]:
    """Return what went wrong in a pre-training while it was on."""
    return findings(records.metrics, records.config, records.plan)


def _dynamics(records: RunRecords) -> Iterator[Check]:
    """What went wrong on the way, once for each kind, else what became of the teacher's outputs at the end."""
    found = found_in(records)
    for finding in (each for each in found if not each.found):
        moved = "" if finding.ended is None else f" It was moved at step {finding.ended}."
        yield Check(False, f"Before the first step: {finding.text}: {finding.knob}.{moved}")
    found = [each for each in found if each.found]
    for kind in dict.fromkeys(finding.kind for finding in found):
        same = [finding for finding in found if finding.kind == kind]
        last = same[-1]
        since = f"From step {last.began} on (found at step {last.found}), "
        over = "" if last.ended is None else f" It ended at step {last.ended}."
        again = "" if len(same) == 1 else f" It came {len(same)} times."
        yield Check(False, f"{since}{last.text}: {last.knob}.{over}{again}")
    yield from _collapse(records, quiet=bool(found))


def _repairs(records: RunRecords) -> Iterator[Check]:
    for repair in records.repairs:
        yield Check(
            False,
            f"Repair {repair.number}: at step {repair.found} {repair.text}; the run went back to step {repair.back} "
            f"and on with {repair.words}. The rows that it left are in abandoned/repair_{repair.number}.",
        )


def _collapse(records: RunRecords, *, quiet: bool) -> Iterator[Check]:
    """Say how the run ended; `quiet` = what is wrong has been said already, so nothing is assured."""
    entropy, marginal, limit, spread = (
        records.last(key) for key in ("teacher_entropy", "marginal_entropy", "max_entropy", "feature_std")
    )
    if entropy is not None and marginal is not None and limit:
        if entropy > UNIFORM_SHARE * limit:
            yield Check(False, f"Collapse: the teacher's output is uniform (entropy at ln K): {advice.UNIFORM}.")
        elif marginal - entropy < CONSTANT_SHARE * limit:
            yield Check(
                False,
                f"Collapse: the teacher gives every image the same output: {advice.CONSTANT}.",
            )
        elif not quiet:
            one, used = entropy / limit, marginal / limit
            yield Check(
                True, f"No collapse: entropy of single outputs {one:.0%} of ln K, of their mean over images {used:.0%}."
            )
    if spread is not None and spread < FLAT_STD:
        yield Check(False, f"The features hardly differ between images (spread {spread:.3f}): {advice.FLAT}.")


def _bad_steps(records: RunRecords) -> Iterator[Check]:
    bad = records.last("bad_steps")
    if bad is not None:
        text = (
            "Every step was finite." if not bad else f"{bad:.0f} steps with a non-finite loss or gradient were skipped."
        )
        yield Check(not bad, text)


def _files(records: RunRecords) -> Iterator[Check]:
    if records.unreadable:
        listing = "unreadable.txt lists them"
        yield Check(False, f"{len(records.unreadable)} files could not be decoded and were replaced; {listing}.")
    elif records.metrics:
        yield Check(True, "Every image could be decoded.")


def _outdated(records: RunRecords) -> Iterator[Check]:
    if records.outdated:
        rows = "1 row" if records.outdated == 1 else f"{records.outdated} rows"
        yield Check(False, f"Not shown: {rows} of results.jsonl, of other weights than the run has now.")


def _waiting(records: RunRecords) -> Iterator[Check]:
    shares = [value for _, value in records.column("data_wait")]
    if shares:
        mean = sum(shares) / len(shares)
        good = mean < LONG_WAIT
        more = "" if good else " Add workers (--runtime.workers, or --workers of mst finetune) or use faster storage."
        yield Check(good, f"The networks waited for data {mean:.0%} of the time.{more}")


def _memory(records: RunRecords) -> Iterator[Check]:
    """Tell of a process that kept growing: sooner or later the system ends it."""
    sizes = records.column("memory_gb")
    if len(sizes) < 4:
        return
    (early, first), (late, last) = sizes[len(sizes) // 4], sizes[-1]
    if last > GROWN * first and last > first + GROWN_GB:
        text = f"The process grew from {first:.1f} GB of memory at step {early} to {last:.1f} GB at step {late}"
        fresh = "the system may end a longer run; stopped and resumed, it starts small again"
        yield Check(False, f"{text}: {fresh}. Please report it.")


def _gain(results: list[Comparison]) -> Iterator[Check]:
    for row in results:
        if not row.headline or row.change is None or row.change > 0:
            continue
        by = f"no clear difference to the untrained network ({numbers.change(row.change, row.change_se)})"
        worse = "training did not improve on the untrained network"
        yield Check(False, f"{row.task}, {row.metric}: {by if row.within_noise else worse}.")
