"""Rebuild the tables and the plot of docs/evidence.md from runs/evidence: `python benchmarks/evidence_tables.py`.

Values are those of evidence.json (evaluations of the finished run) and the last ones in metrics.jsonl. Differences are
paired over seeds; what counts as a difference is said in docs/evidence.md.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mst.runtime.storage.results import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
RUNS, PAGE, PLOT = ROOT / "runs" / "evidence", ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence.png"
LEARNED = {
    "linear": ("linear", "top1"),
    "k-NN": ("knn", "top1"),
    "camvid mIoU": ("camvid", "miou"),
    "RankMe": ("", "rankme"),
    "crops found again": ("", "retrieval_top1"),
    "entropy": ("", "teacher_entropy"),
    "PSNR hidden": ("", "psnr_masked"),
    "PSNR visible": ("", "psnr_visible"),
}
"""Title -> (evaluation, metric); without an evaluation it is the last value in the rows of the training."""
BESIDE = {"jaccard": "jaccard_centre", "pointing": "pointing_centre", "mass_inside": "mass_inside_even"}
"""Metric of objectness -> what it is compared with: a box in the middle of the image, its middle, even attention."""
OBJECTS = {
    f"{data} {title}": (task, metric)
    for data, task in (("COCO", "coco_mini"), ("scenes", "scenes"))
    for title, metric in (("Jaccard", "jaccard"), ("pointing", "pointing"), ("mass inside", "mass_inside"))
}
METRICS = {**LEARNED, **OBJECTS}
LABEL_FREE = ("crops found again", "RankMe", "entropy", "PSNR hidden")
FEWEST_RANKED = 5
"""Runs below which a rank correlation says nothing."""
QUESTIONS = (
    ("Does the method as a whole help?", ("mst",), ("dino",)),
    ("Does restoring the image help DINO?", ("unmasked",), ("dino",)),
    ("Does hiding help, beyond restoring?", ("mst",), ("unmasked",)),
    ("Are the least attended tokens better than any?", ("mst",), ("random",)),
    ("... than the most attended?", ("mst",), ("high",)),
    ("... than the most attended, some revealed?", ("mst",), ("hint",)),
    ("... than rectangles?", ("mst",), ("block",)),
    ("Does hiding help without restoring?", ("masks-only",), ("dino",)),
    ("Is self-distillation needed?", ("mst",), ("restoration",)),
    ("BatchNorm in MST's head?", ("mst",), ("plain",)),
    ("BatchNorm in DINO's head?", ("dino",), ("dino-plain",)),
    ("Does BatchNorm do more for MST than for DINO? (asked afterwards)", ("mst", "dino-plain"), ("plain", "dino")),
    ("Does the method help without BatchNorm?", ("plain",), ("dino-plain",)),
    ("Do fixed, full-size position embeddings help?", ("fixed",), ("mst",)),
)
"""Question, and the arms whose sums are compared: the first ones less the others."""
POWER, DRAWS = 0.8, 200_000
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

Values = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Arm -> seed -> title of a metric -> value."""


@dataclass(frozen=True)
class Difference:
    """A difference of arms, paired over seeds.

    Attributes:
        pairs: of each seed that all of them have.
        error: the mean's standard error, from the noise pooled over arms; None where no arm has two seeds.
    """

    pairs: tuple[float, ...]
    error: float | None

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return statistics.fmean(self.pairs)

    @property
    def same_sign(self) -> bool:
        """Whether every seed has the mean's sign."""
        return all(pair * self.mean > 0 for pair in self.pairs)

    @property
    def verdict(self) -> str:
        """Say what the protocol calls it."""
        if self.error is None or len(self.pairs) < 2:
            return "one seed: no answer"
        clear = abs(self.mean) > 2 * self.error and self.same_sign
        return ("yes" if self.mean > 0 else "no, the reverse") if clear else "no difference found"


@functools.cache
def errors_to_find(seeds: int) -> float:
    """Return the true difference, in standard errors of its mean, that the rule finds in four of five experiments.

    By drawing experiments of normal pairs: the mean above twice its standard error, and every pair above 0.
    """
    pairs = np.random.default_rng(0).standard_normal((DRAWS, seeds)) * math.sqrt(seeds)
    needed = np.maximum(2 - pairs.mean(axis=1), -pairs.min(axis=1))  # the shift from which an experiment is a find
    return float(np.quantile(needed, POWER))


def pooled_noise(values: Values, title: str) -> float | None:
    """Return the standard deviation over seeds, pooled over the arms that have two or more."""
    squares, free = 0.0, 0
    for seeds in values.values():
        found = [row[title] for row in seeds.values() if title in row]
        if len(found) > 1:
            squares += statistics.variance(found) * (len(found) - 1)
            free += len(found) - 1
    return math.sqrt(squares / free) if free else None


def difference(values: Values, title: str, more: Sequence[str], less: Sequence[str]) -> Difference | None:
    """Return the sum of some arms minus the sum of others over the seeds that all have; None where there is none."""
    found = [{seed: row[title] for seed, row in values.get(arm, {}).items() if title in row} for arm in (*more, *less)]
    signs = (*(1 for _ in more), *(-1 for _ in less))
    seeds = sorted(set.intersection(*(set(each) for each in found)))
    if not seeds:
        return None
    pairs = tuple(sum(sign * each[seed] for sign, each in zip(signs, found, strict=True)) for seed in seeds)
    noise = pooled_noise(values, title)
    return Difference(pairs, None if noise is None else noise * math.sqrt(len(signs) / len(pairs)))


def read_set(folder: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Return the values of all finished runs of a set."""
    values: dict[str, dict[int, dict[str, float]]] = {}
    for record in sorted(folder.glob("*/seed_*/evidence.json")):
        done = json.loads(record.read_text())
        last: dict[str, Any] = {}
        for row in read_jsonl(record.with_name("metrics.jsonl")):
            last |= row
        found = {title: (done.get(task, {}) if task else last).get(metric) for title, (task, metric) in METRICS.items()}
        for title, (task, metric) in OBJECTS.items():
            found[_beside(title)] = done.get(task, {}).get(BESIDE[metric])
        arm, seed = record.parent.parent.name, int(record.parent.name.removeprefix("seed_"))
        values.setdefault(arm, {})[seed] = {title: float(v) for title, v in found.items() if v is not None}
    return values


def _beside(title: str) -> str:
    return f"{title}, compared with"


def arms_table(name: str, values: Values) -> list[str]:
    """Return one line an arm: mean and spread over seeds, and links to the runs."""
    lines = [f"| {name} | runs | " + " | ".join(LEARNED) + " |", "|---" * (len(LEARNED) + 2) + "|"]
    for arm, seeds in values.items():
        links = " ".join(_link(f"{name}/{arm}/seed_{seed}", str(seed)) for seed in seeds)
        cells = [_cell([row[title] for row in seeds.values() if title in row]) for title in LEARNED]
        lines.append(" | ".join([f"| {arm}", links, *cells]) + " |")
    return lines


def objects_table(name: str, values: Values) -> list[str]:
    """Return one line an arm: where its attention lies, and in brackets what needs no network."""
    lines = [f"| {name}, attention | " + " | ".join(OBJECTS) + " |", "|---" * (len(OBJECTS) + 1) + "|"]
    for arm, seeds in values.items():
        cells = []
        for title in OBJECTS:
            own, other = ([row[each] for row in seeds.values() if each in row] for each in (title, _beside(title)))
            cells.append(_cell(own) + (f" ({statistics.fmean(other):.1f})" if other else ""))
        lines.append(" | ".join([f"| {arm}", *cells]) + " |")
    return lines


def _link(folder: str, seed: str) -> str:
    """Return a link to a run; one that was not computed in bfloat16, as the protocol has it, says in what."""
    precision = json.loads((RUNS / folder / "environment.json").read_text())["precision"].split(":")[0]
    named = seed if precision == "bfloat16" else f"{seed} ({precision})"
    return f"[{named}](../runs/evidence/{folder})"


def _cell(found: Sequence[float]) -> str:
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def answers_table(values: Values) -> list[str]:
    """Return one line a question: paired differences of linear, k-NN and mIoU, and what the first one says."""
    titles = ("linear", "k-NN", "camvid mIoU")
    heads = ("question", "arms", *titles, "linear, each seed", "by linear top-1", "found four times in five from")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for question, more, less in QUESTIONS:
        found = [difference(values, title, more, less) for title in titles]
        if found[0] is not None:
            cells = [*map(_signed, found), ", ".join(f"{pair:+.1f}" for pair in found[0].pairs), found[0].verdict]
            arms = f"{_sum(more)} - {_sum(less)}"
            lines.append(" | ".join([f"| {question}", arms, *cells, _least_found(found[0])]) + " |")
    return [*lines, "", _notes(values, titles)] if len(lines) > 2 else []


def _sum(arms: Sequence[str]) -> str:
    return arms[0] if len(arms) == 1 else f"({' + '.join(arms)})"


def _least_found(found: Difference) -> str:
    if found.error is None or len(found.pairs) < 2:
        return "-"
    return f"{errors_to_find(len(found.pairs)) * found.error:.1f}"


def _notes(values: Values, titles: Sequence[str]) -> str:
    """Say what the figures of the answers are, and whom the settings favour."""
    noise = ", ".join(f"{title} {found:.2f}" for title in titles if (found := pooled_noise(values, title)) is not None)
    return (
        "Behind ±: a standard error from the noise over seeds, pooled over all arms of this set "
        f"({noise or 'unknown'}), so it changes a little as runs are added. The last column is the true difference "
        "of linear top-1 that the rule would find in four of five such experiments. Rate, temperatures and momentum "
        "were chosen with `mst` and BatchNorm, which favours `mst`."
    )


def ranks_table(values: Values) -> list[str]:
    """Return Spearman's rank correlation of each score without labels with k-NN and linear, over all runs."""
    runs = [row for seeds in values.values() for row in seeds.values()]
    lines = ["| without labels | runs | with k-NN | with linear |", "|---" * 4 + "|"]
    for title in LABEL_FREE:
        rows = [row for row in runs if {title, "k-NN", "linear"} <= row.keys()]
        if len(rows) >= FEWEST_RANKED:
            scores = [row[title] for row in rows]
            found = [spearmanr(scores, [row[of] for row in rows]).statistic for of in ("k-NN", "linear")]
            lines.append(" | ".join([f"| {title}", str(len(rows)), *(f"{rho:+.2f}" for rho in found)]) + " |")
    return lines if len(lines) > 2 else []


def _signed(found: Difference | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:+.1f}" + ("" if found.error is None else f" ± {found.error:.1f}")


def plot(sets: Mapping[str, Values]) -> None:
    """Draw linear top-1 of every run, a panel a set."""
    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    for panel, (name, values) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        for place, seeds in enumerate(values.values()):
            found = [row["linear"] for row in seeds.values() if "linear" in row]
            panel.plot(found, [place] * len(found), "o", color="#2a6f97", alpha=0.7)
            panel.plot([statistics.fmean(found)], [place], "|", color="#012a4a", markersize=16)
        panel.set_yticks(range(len(values)), list(values))
        panel.invert_yaxis()
        panel.set_title(f"{name}: linear top-1, %", fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(PLOT, dpi=120)


def read_all() -> dict[str, Values]:
    """Return the values of every set that has a finished run."""
    found = {folder.name: read_set(folder) for folder in sorted(RUNS.glob("*")) if folder.is_dir()}
    return {name: values for name, values in found.items() if values}


def tables(sets: Mapping[str, Values]) -> str:
    """Return what stands between the marks of the page."""
    lines = []
    for name, values in sets.items():
        for table in (
            arms_table(name, values),
            answers_table(values),
            objects_table(name, values),
            ranks_table(values),
        ):
            lines += [*table, ""] if table else []
    lines += ["![linear top-1 of every run](evidence.png)", ""] if sets else ["No runs yet.", ""]
    return "\n".join([BEGIN, "", *lines, END])


def main() -> None:
    """Rewrite what stands between the marks of the page, and the plot."""
    sets = read_all()
    if sets:
        plot(sets)
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(pattern.sub(lambda _: tables(sets), text), encoding="utf-8")
    print(f"{PAGE}: {sum(len(seeds) for values in sets.values() for seeds in values.values())} runs")


if __name__ == "__main__":
    main()
