"""Does it help? The answer at the top of a report, from rows that a pre-training or `mst evaluate baselines` left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mst.report.datasets import data_key, data_names
from mst.report.reading import Row, RunRecords, is_number
from mst.report.rows.variants import protocol_key, variants

Tone = Literal["good", "bad", "neutral"]
TITLES: dict[str, tuple[str, Tone]] = {
    "helps": ("It helps.", "good"),
    "unclear": ("No clear difference.", "neutral"),
    "no better": ("No better than what needs no training.", "neutral"),
    "worse": ("It did harm.", "bad"),
}
"""Call of a verdict -> heading and tone."""
NAMES = {
    "start": "k-NN at the start",
    "untrained": "k-NN, untrained weights",
    "colour": "colour statistics",
    "pixels": "pixels, 8 x 8",
    "majority": "majority class",
}
SEE = "docs/no-improvement.md"
RANKED = {
    "retrieval_top1": (0.93, 0.05, 24),
    "restore_gain": (0.49, 0.22, 24),
    "rankme": (0.53, 0.18, 24),
}
"""Spearman's rank correlation with k-NN over runs of different quality on synthetic scenes, its standard error, and the
number of runs: benchmarks/results/label_free.json."""


def ranked_as_knn(metric: str) -> str:
    """Return how well a score without labels ranked runs: `ranked 26 runs as k-NN did with rho 0.70 ± 0.10`."""
    rho, se, runs = RANKED[metric]
    return f"ranked {runs} runs on synthetic scenes as k-NN did with rho {rho:.2f} ± {se:.2f}"


@dataclass(frozen=True)
class Bar:
    """One accuracy.

    Attributes:
        name: whose.
        top1: in percent.
        change: what the trained backbone has more, in points; None for itself.
        se: of `change`, or of `top1` for the backbone itself.
        clear: whether `change` is more than two standard errors.
    """

    name: str
    top1: float
    change: float | None
    se: float
    clear: bool


@dataclass(frozen=True)
class Answer:
    """What the page says first.

    Attributes:
        title: in a few words.
        tone: good, bad or neutral.
        sentence: with the numbers.
        bars: the backbone and what it is compared with; empty without labels.
        images: validation images; None without labels.
        also: the newest verdict on each other evaluation that has one, in a sentence.
    """

    title: str
    tone: Tone
    sentence: str
    bars: tuple[Bar, ...]
    images: int | None
    also: tuple[str, ...] = ()


def answer(records: RunRecords) -> Answer | None:
    """Return the verdict on a pre-training; without one, what scores without labels say; None without either.

    The run's own verdict, made at its end, comes first; one of `mst evaluate baselines` where it has none.
    """
    grey = records.setting("data", "channels", 3) == 1
    rows = [row for row in records.results if row.get("task") == "verdict"]
    judged = [(row, found) for row in reversed(rows) if (found := _judged(row, grey=grey)) is not None]
    own = next(((row, found) for row, found in judged if "step" in row["extra"]), None)
    first = own or next(iter(judged), None)
    if first is None:
        found = _without_labels(records)
        return None if found is None else replace(found, also=_also(records))
    row, found = first
    others = {data_key(other): (other, said) for other, said in reversed(judged)}  # the newest of each
    others.pop(data_key(row), None)
    names = data_names([row, *(other for other, _ in others.values())])
    said = tuple(f"On {names[key]}{_classes(other)}: {each.sentence}" for key, (other, each) in others.items() if key)
    if said and (name := names.get(data_key(row))):
        found = replace(found, sentence=f"On {name}{_classes(row)}: {found.sentence}")
    return replace(found, also=(*said, *_also(records)))


def _classes(row: Row) -> str:
    count = row["extra"].get("classes")
    return f" ({count} classes)" if isinstance(count, int) else ""


def _also(records: RunRecords) -> tuple[str, ...]:
    """Return the newest verdict of each evaluation and protocol that compared trained weights with others."""
    found: dict[str, dict[str, tuple[Row, str]]] = {}
    for row in records.results:
        extra, task = row.get("extra"), row.get("task")
        told = extra.get("verdict") if isinstance(extra, Mapping) else None
        sentence = told.get("sentence") if isinstance(told, Mapping) else None
        if isinstance(sentence, str) and isinstance(task, str):
            found.setdefault(task, {})[protocol_key(row)] = row, sentence
    said = []
    for of_task in found.values():
        unlike = variants([row for row, _ in of_task.values()])
        said += [f"{unlike[key]}: {text}" if unlike[key] else text for key, (_, text) in of_task.items()]
    return tuple(said)


def _judged(row: Row, *, grey: bool) -> Answer | None:
    """Return a verdict's row for the page; None where it is damaged."""
    extra, metrics = row.get("extra"), row.get("metrics")
    if not isinstance(extra, Mapping) or not isinstance(metrics, Mapping):
        return None
    call, sentence, listed = extra.get("call"), extra.get("sentence"), extra.get("differences")
    top1, se, images = metrics.get("knn_top1"), metrics.get("knn_top1_se"), extra.get("val_images")
    if not isinstance(call, str) or call not in TITLES or not isinstance(sentence, str):
        return None
    if not is_number(top1) or not is_number(se):
        return None
    bars = [Bar("k-NN, this backbone", top1, None, se, clear=False)]
    for each in listed if isinstance(listed, list) else []:
        if not isinstance(each, dict) or str(each.get("which")) not in NAMES:
            continue
        name, other, change, noise = NAMES[each["which"]], each.get("top1"), each.get("points"), each.get("se")
        if is_number(other) and is_number(change) and is_number(noise):
            name = name.replace("colour", "grey") if grey else name
            bars.append(Bar(name, other, change, noise, clear=each.get("clear") is True))
    title, tone = TITLES[call]
    return Answer(title, tone, sentence, tuple(bars), images if isinstance(images, int) else None)


def _without_labels(records: RunRecords) -> Answer | None:
    """Return what is known without labels: nothing about whether it helps, and how two scores went."""
    again, restored = "retrieval_top1", "restore_gain"
    found, images = records.column(again), records.last("retrieval_images")
    if records.column("knn_top1") or not found or not images:
        return None
    sentence = (
        f"Two crops of an image were found again {found[-1][1]:.1f} % of the time among {images:.0f} images that were "
        f"not learned from (start {found[0][1]:.1f}, chance {100 / images:.1f}; this score {ranked_as_knn(again)})"
    )
    gain = records.last(restored)
    if gain is not None:
        sentence += f"; hidden patches were restored {gain:+.1f} dB against one colour ({ranked_as_knn(restored)})"
    sentence += f". What that is worth: {SEE}. With --monitor.knn-data LABELLED it would be known."
    return Answer("Whether it helps is not known without labels.", "neutral", sentence, (), None)
