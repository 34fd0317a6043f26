"""The report: one self-contained HTML page about a run, and a model card beside it, from the run's files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mst.report import numbers
from mst.report.curves import chart_groups
from mst.report.health import checks
from mst.report.pictures import pictures, task_pictures
from mst.report.plots import draw
from mst.report.reading import RunRecords, read_run
from mst.report.results import comparisons
from mst.runtime.files import write_atomic
from mst.runtime.rundir import RunDir

TEMPLATES = Path(__file__).parent
FACTS_FROM_PLAN = (
    *("total_steps", "steps_per_epoch", "batch_size", "batch_size_per_pass", "lr", "warmup_steps", "prototypes"),
    *("teacher_temp_start", "teacher_temp", "teacher_temp_warmup_steps", "teacher_momentum"),
    *("freeze_last_layer_steps", "global_size", "local_size", "mean", "std"),
)
"""Derived values in the order of the table."""


@dataclass(frozen=True)
class Fact:
    """A name, a value, and what else there is to say."""

    name: str
    value: str
    note: str = ""


def write_report(run: RunDir) -> Path:
    """Write report.html and model_card.md into the run folder; return the page's path.

    Only files of the run folder are read; what is missing is left out.

    Raises:
        RunFailure: the disk refused.
    """
    records = read_run(run)
    context = page_context(records)
    write_atomic(run.report, _templates(html=True).get_template("report.html.j2").render(context))
    card = _templates(html=False).get_template("model_card.md.j2").render(context)
    write_atomic(run.root / "model_card.md", card)
    return run.report


def page_context(records: RunRecords) -> dict[str, Any]:
    """Return everything the templates show."""
    results = comparisons(records.results)
    findings = checks(records, results)
    groups = [
        {
            "title": group.title,
            "small": group.small,
            "charts": [{"chart": chart, "svg": Markup(draw(chart, small=group.small))} for chart in group.charts],
        }
        for group in chart_groups(records)
    ]
    return {
        "name": records.name,
        "recipe": records.config.get("recipe", records.name),
        "channels": records.setting("data", "channels", 3),
        "subtitle": subtitle(records),
        "facts": facts(records),
        "findings": findings,
        "warnings": sum(not finding.good for finding in findings),
        "headlines": [row for row in results if row.headline],
        "results": results,
        "pictures": pictures(records.previews, preview_columns(records)),
        "task_pictures": task_pictures(records.pictures),
        "masking": masking(records),
        "groups": groups,
        "plan": plan_facts(records),
        "environment": [Fact(name, numbers.short(value)) for name, value in records.environment.items()],
        "config": json.dumps(records.config, indent=2) if records.config else "",
        "backbone": backbone(records),
        "unreadable": records.unreadable[:20],
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "finished": _finished(records),
    }


def facts(records: RunRecords) -> list[Fact]:
    """Return the key facts of the header."""
    environment, plan = records.environment, records.plan
    precision, _, reason = str(environment.get("precision", "")).partition(": ")
    commit = environment.get("commit")
    batch = plan.get("batch_size")
    found = [
        Fact("Images", numbers.short(plan.get("dataset_size")), _epochs(records)),
        Fact("Steps", numbers.short(plan.get("total_steps")), f"batch {numbers.short(batch)}" if batch else ""),
        Fact("Backbone", *backbone(records)),
        Fact("Views", *_views(records)),
        Fact("Prototypes", numbers.short(plan.get("prototypes")), _head(records)),
        Fact("Duration", numbers.duration(records.last("seconds")), _speed(records)),
        Fact("Device", str(environment.get("device", numbers.NONE)), f"{precision}: {reason}" if reason else precision),
        Fact("Commit", str(commit)[:10] if commit else numbers.NONE, f"mst {environment.get('mst', '')}".strip()),
    ]
    return [fact for fact in found if fact.value != numbers.NONE]


def subtitle(records: RunRecords) -> str:
    """Return one sentence that says what was done."""
    strategy, weight = records.setting("objective", "strategy"), records.setting("objective", "restoration_weight")
    if strategy is None:
        return "Self-supervised pre-training"
    if strategy == "none" and not weight:
        return "Self-distillation without masks and restoration (DINO), learned from images without labels"
    return "Masked self-distillation with restoration (MST), learned from images without labels"


def backbone(records: RunRecords) -> tuple[str, str]:
    """Return the backbone's name and its sizes."""
    sizes = {"patch_size": "patch {}", "embed_dim": "dim {}", "depth": "depth {}", "num_heads": "{} heads"}
    given = {key: records.setting("model", key) for key in sizes}
    note = ", ".join(sizes[key].format(value) for key, value in given.items() if value)
    return str(records.setting("model", "backbone", numbers.NONE)), note


def masking(records: RunRecords) -> str:
    """Return a sentence on what the student does not see."""
    strategy = records.setting("objective", "strategy")
    eligible, probability = (records.setting("objective", key) for key in ("eligible_fraction", "mask_probability"))
    if strategy in {None, "none"} or eligible is None or probability is None:
        return ""
    chosen = {
        "attention_low": f"Of the {eligible:.0%} of patches that the teacher attends to least, each",
        "attention_high": f"Of the {eligible:.0%} of patches that the teacher attends to most, each",
        "random": "Each patch",
    }.get(strategy)
    if chosen is None:
        return f"Patches are hidden from the student by the strategy {strategy}."
    return f"{chosen} is hidden from the student with probability {probability:g}."


def preview_columns(records: RunRecords) -> list[str]:
    """Return what the columns of the pictures show."""
    columns = ["image", "attention"]
    if records.setting("objective", "strategy", "attention_low") != "none":
        columns.append("masked")
    if records.setting("objective", "restoration_weight", 1):
        columns.append("restored")
    return columns


def plan_facts(records: RunRecords) -> list[Fact]:
    """Return the derived values with their reasons."""
    reasons = records.plan.get("reasons", {})
    known = [key for key in FACTS_FROM_PLAN if key in records.plan]
    return [
        Fact(key, numbers.short(records.plan[key]), str(reasons.get(key, "")) if isinstance(reasons, dict) else "")
        for key in known
    ]


def _epochs(records: RunRecords) -> str:
    epochs = records.setting("train", "epochs")
    return f"{numbers.short(epochs)} epochs" if epochs else ""


def _views(records: RunRecords) -> tuple[str, str]:
    """Return `2 × 224 px + 6 × 96 px`, and nothing to add."""
    sizes = [records.plan.get(f"{kind}_size") for kind in ("global", "local")]
    counts = [records.setting("views", f"{kind}_crops") for kind in ("global", "local")]
    parts = [
        f"{count} {numbers.TIMES} {_side(size)}" for count, size in zip(counts, sizes, strict=True) if count and size
    ]
    return " + ".join(parts) or numbers.NONE, "global + local crops" if len(parts) > 1 else ""


def _head(records: RunRecords) -> str:
    """Return the sizes of the projection head."""
    hidden, bottleneck = (records.setting("model", f"head_{part}") for part in ("hidden", "bottleneck"))
    return f"head {hidden}, {hidden}, {bottleneck}" if hidden and bottleneck else ""


def _side(size: Sequence[int]) -> str:
    return f"{size[0]} px" if size[0] == size[-1] else f"{size[0]}{numbers.TIMES}{size[-1]} px"


def _speed(records: RunRecords) -> str:
    images, seconds = records.last("images"), records.last("seconds")
    return f"{images / seconds:.0f} images/s" if images and seconds else ""


def _finished(records: RunRecords) -> bool:
    total, last = records.plan.get("total_steps"), records.last("lr")
    return bool(total and last is not None and max(row["step"] for row in records.metrics) >= total)


def _templates(*, html: bool) -> Environment:
    """Return the templates; HTML is escaped, Markdown is not."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=numbers.percent, signed=numbers.signed, short=numbers.short)
    return environment
