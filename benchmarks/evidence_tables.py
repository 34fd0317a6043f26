"""Rebuild the tables and the plot of docs/evidence.md from runs/evidence: `python benchmarks/evidence_tables.py`.

Values are those of evidence.json (evaluations of the finished run) and the last ones in metrics.jsonl. Differences are
paired over seeds; what counts as a difference is said in docs/evidence.md.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mst.runtime.storage.results import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
RUNS, PAGE, PLOT = ROOT / "runs" / "evidence", ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence.png"
METRICS = {
    "linear": ("linear", "top1"),
    "k-NN": ("knn", "top1"),
    "camvid mIoU": ("camvid", "miou"),
    "COCO Jaccard": ("coco_mini", "jaccard"),
    "COCO pointing": ("coco_mini", "pointing"),
    "COCO mass inside": ("coco_mini", "mass_inside"),
    "scenes Jaccard": ("scenes", "jaccard"),
    "scenes pointing": ("scenes", "pointing"),
    "scenes mass inside": ("scenes", "mass_inside"),
    "RankMe": ("", "rankme"),
    "crops found again": ("", "retrieval_top1"),
    "entropy": ("", "teacher_entropy"),
    "PSNR hidden": ("", "psnr_masked"),
}
"""Title -> (evaluation, metric); without an evaluation it is the last value in the rows of the training."""
LABEL_FREE = ("crops found again", "RankMe", "entropy", "PSNR hidden")
FEWEST_RANKED = 5
"""Runs below which a rank correlation says nothing."""
QUESTIONS = (
    ("Does the method as a whole help?", "mst", "dino"),
    ("Does restoring the image help DINO?", "unmasked", "dino"),
    ("Does hiding help, beyond restoring?", "mst", "unmasked"),
    ("Are the least attended tokens better than any?", "mst", "random"),
    ("... than the most attended?", "mst", "high"),
    ("... than the most attended, some revealed?", "mst", "hint"),
    ("... than rectangles?", "mst", "block"),
    ("Does hiding help without restoring?", "masks-only", "dino"),
    ("Is self-distillation needed?", "mst", "restoration"),
    ("BatchNorm in MST's head?", "mst", "plain"),
    ("BatchNorm in DINO's head?", "dino", "dino-plain"),
    ("Does the method help without BatchNorm?", "plain", "dino-plain"),
    ("Do fixed position embeddings help?", "fixed", "mst"),
)
"""Question, and the two arms that answer it."""
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"

Values = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Arm -> seed -> title of a metric -> value."""


@dataclass(frozen=True)
class Difference:
    """A paired difference of two arms.

    Attributes:
        mean: over the seeds that both have.
        error: its standard error, from the noise pooled over arms; None where no arm has two seeds.
        seeds: how many.
        same_sign: whether every seed has the mean's sign.
    """

    mean: float
    error: float | None
    seeds: int
    same_sign: bool

    @property
    def verdict(self) -> str:
        """Say what the protocol calls it."""
        if self.error is None or self.seeds < 2:
            return "one seed: no answer"
        clear = abs(self.mean) > 2 * self.error and self.same_sign
        return ("yes" if self.mean > 0 else "no, the reverse") if clear else "no difference found"


def pooled_noise(values: Values, title: str) -> float | None:
    """Return the standard deviation over seeds, pooled over the arms that have two or more."""
    squares, free = 0.0, 0
    for seeds in values.values():
        found = [row[title] for row in seeds.values() if title in row]
        if len(found) > 1:
            squares += statistics.variance(found) * (len(found) - 1)
            free += len(found) - 1
    return math.sqrt(squares / free) if free else None


def difference(values: Values, title: str, one: str, other: str) -> Difference | None:
    """Return `one` minus `other` over the seeds that both have; None where there is none."""
    first, second = values.get(one, {}), values.get(other, {})
    pairs = [
        first[s][title] - second[s][title] for s in sorted(first) if title in second.get(s, {}) and title in first[s]
    ]
    if not pairs:
        return None
    mean, noise = statistics.fmean(pairs), pooled_noise(values, title)
    error = None if noise is None else noise * math.sqrt(2 / len(pairs))
    return Difference(mean, error, len(pairs), all(pair * mean > 0 for pair in pairs))


def read_set(folder: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Return the values of all finished runs of a set."""
    values: dict[str, dict[int, dict[str, float]]] = {}
    for record in sorted(folder.glob("*/seed_*/evidence.json")):
        done = json.loads(record.read_text())
        last: dict[str, Any] = {}
        for row in read_jsonl(record.with_name("metrics.jsonl")):
            last |= row
        found = {title: (done.get(task, {}) if task else last).get(metric) for title, (task, metric) in METRICS.items()}
        arm, seed = record.parent.parent.name, int(record.parent.name.removeprefix("seed_"))
        values.setdefault(arm, {})[seed] = {title: float(v) for title, v in found.items() if v is not None}
    return values


def arms_table(name: str, values: Values) -> list[str]:
    """Return one line an arm: mean and spread over seeds, and links to the runs."""
    lines = [f"| {name} | runs | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for arm, seeds in values.items():
        links = " ".join(_link(f"{name}/{arm}/seed_{seed}", str(seed)) for seed in seeds)
        cells = [_cell([row[title] for row in seeds.values() if title in row]) for title in METRICS]
        lines.append(" | ".join([f"| {arm}", links, *cells]) + " |")
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
    lines = ["| question | arms | " + " | ".join(titles) + " | by linear top-1 |", "|---" * (len(titles) + 3) + "|"]
    for question, one, other in QUESTIONS:
        found = [difference(values, title, one, other) for title in titles]
        if found[0] is not None:
            cells = [_signed(each) for each in found]
            lines.append(" | ".join([f"| {question}", f"{one} - {other}", *cells, found[0].verdict]) + " |")
    return lines if len(lines) > 2 else []


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


def main() -> None:
    """Rewrite what stands between the marks of the page."""
    sets = {folder.name: read_set(folder) for folder in sorted(RUNS.glob("*")) if folder.is_dir()}
    sets = {name: values for name, values in sets.items() if values}
    lines = []
    for name, values in sets.items():
        for table in (arms_table(name, values), answers_table(values), ranks_table(values)):
            lines += [*table, ""] if table else []
    if sets:
        plot(sets)
        lines += ["![linear top-1 of every run](evidence.png)", ""]
    text = PAGE.read_text(encoding="utf-8")
    body = "\n".join(["", *(lines or ["No runs yet.", ""])])
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: f"{BEGIN}\n{body}\n{END}", text), encoding="utf-8")
    print(f"{PAGE}: {sum(len(seeds) for values in sets.values() for seeds in values.values())} runs")


if __name__ == "__main__":
    main()
