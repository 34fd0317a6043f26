"""The report: one self-contained HTML page about a run, and a model card beside it, from the run's files alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mst.report import markdown, numbers
from mst.report.classifier.errors import task_errors
from mst.report.classifier.twins import FinetuningVerdict, find_twin, judge, last_finetuning
from mst.report.curves import chart_groups
from mst.report.health import checks
from mst.report.pictures import pictures, task_pictures
from mst.report.plots import draw
from mst.report.reading import RunRecords, is_number, read_run, result_rows
from mst.report.results import comparisons
from mst.report.story import Story, tell
from mst.report.verdict import answer
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.rundir import RunDir

TEMPLATES = Path(__file__).parent
CARD = "model_card.md"
EARLIER = re.compile(rb'content="mst report"|backbone = mst\.load_backbone\(')
"""Pattern in the pages and cards of versions that kept no notes."""
FACTS_FROM_PLAN = (
    *("total_steps", "steps_per_epoch", "batch_size", "batch_size_per_pass", "lr", "warmup_steps", "prototypes"),
    *("teacher_temp_start", "teacher_temp", "teacher_temp_warmup_steps", "teacher_momentum"),
    *("freeze_last_layer_steps", "global_size", "local_size", "mean", "std"),
)
"""Derived values in the order of the table."""


@dataclass(frozen=True)
class Fact:
    """A name, a value, and a remark."""

    name: str
    value: str
    note: str = ""


def write_report(run: RunDir) -> Path:
    """Write report.html and model_card.md into the run folder; return the page's path.

    Only files of the run folder are read; what is missing is left out.

    Raises:
        UsageError: one of them was changed since it was written, or is not of this command.
        RunFailure: the disk refused.
    """
    outputs = Outputs(run.root, "report", "mst report", earlier=EARLIER)
    outputs.check([run.report.name, CARD])
    records = read_run(run)
    context = page_context(records)
    page = _templates(html=True).get_template("report.html.j2").render(context)
    outputs.write(run.report.name, page.encode())
    outputs.write(CARD, _card(context).encode())
    return run.report


def card_text(run: RunDir) -> str:
    """Return the model card of a run, from its files alone."""
    return _card(page_context(read_run(run)))


def _card(context: dict[str, Any]) -> str:
    return _templates(html=False).get_template("model_card.md.j2").render(context)


def page_context(records: RunRecords) -> dict[str, Any]:
    """Return everything the templates show."""
    results, story = comparisons(records.results), tell(records)
    findings = checks(records, results)
    judged = answer(records) if story.kind == "pre-training" else None
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
        "recipe": str(records.config.get("recipe") or records.name),
        "channels": channels(records),
        "finetuned": story.kind in {"fine-tuning", "supervised training"},
        "story": story,
        "facts": facts(records, story),
        "tuned": finetuning_verdict(records),
        "errors": task_errors(records.results, records.errors),
        "findings": findings,
        "answer": judged,
        "warnings": sum(not finding.good for finding in findings),
        "headlines": [row for row in results if row.headline],
        "results": results,
        "pictures": pictures(records.previews, preview_columns(records)),
        "task_pictures": task_pictures(records.pictures),
        "masking": masking(records),
        "groups": groups,
        "plan": plan_facts(records),
        "environment": environment_facts(records.environment),
        "config": json.dumps(records.config, indent=2) if records.config else "",
        "backbone": backbone(records),
        "unreadable": records.unreadable[:20],
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    }


def finetuning_verdict(records: RunRecords) -> FinetuningVerdict | None:
    """Return what a fine-tuning says about the weights that it began with; None for anything else."""
    rows = [row for row in records.results if isinstance(row.get("metrics"), dict)]
    own = last_finetuning(rows)
    return None if own is None else judge(own, find_twin(records.root, own, result_rows))


def environment_facts(environment: Mapping[str, Any]) -> list[Fact]:
    """Return what the run ran on, then what was otherwise in earlier steps of a run that was resumed."""
    earlier = environment.get("earlier")
    found = [Fact(name, numbers.short(value)) for name, value in environment.items() if name != "earlier"]
    for row in earlier if isinstance(earlier, list) else []:
        if isinstance(row, dict):
            until = f"until step {numbers.short(row.get('until_step'))}"
            other = [name for name, value in row.items() if name != "until_step" and environment.get(name) != value]
            changed = [f"{name} {numbers.short(row[name])}" for name in other]
            found.append(Fact(until, ", ".join(changed) or numbers.NONE))
    return found


def facts(records: RunRecords, story: Story) -> list[Fact]:
    """Return the key facts of the header."""
    environment, plan = records.environment, records.plan
    precision, _, reason = str(environment.get("precision", "")).partition(": ")
    commit = environment.get("commit")
    batch = plan.get("batch_size")
    found = [
        Fact("Images", numbers.short(plan.get("dataset_size")), _epochs(records)),
        Fact("Steps", numbers.short(plan.get("total_steps")), f"batch {numbers.short(batch)}" if batch else ""),
        Fact("Classes", numbers.short(plan.get("classes"))),
        Fact("Trained weights", numbers.short(plan.get("trained_parameters")), "backbone and linear layer"),
        Fact("Learning rate", *_rates(records)),
        Fact("Backbone", *backbone(records)),
        Fact("Started from", story.start or numbers.NONE),
        Fact("Given", ", ".join(given(records)) or numbers.NONE, "all else is the recipe's"),
        Fact("Changed on the way", _interventions(records) or numbers.NONE),
        Fact("Views", *_views(records)),
        Fact("Prototypes", numbers.short(plan.get("prototypes")), _head(records)),
        Fact("Duration", numbers.duration(records.last("seconds")), _speed(records)),
        Fact("Device", str(environment.get("device", numbers.NONE)), f"{precision}: {reason}" if reason else precision),
        Fact("Commit", str(commit)[:10] if commit else numbers.NONE, f"mst {environment.get('mst', '')}".strip()),
    ]
    return [fact for fact in found if fact.value != numbers.NONE]


def _rates(records: RunRecords) -> tuple[str, str]:
    """Return the highest rate of a fine-tuning, and that of its lowest layers."""
    highest, lowest = records.planned("lr"), records.planned("lr_lowest_layers")
    if highest is None or lowest is None:
        return numbers.NONE, ""
    layers = f"; {numbers.short(lowest)} in the lowest layers" if lowest < highest else ", the same in all layers"
    return numbers.short(highest), f"highest, after a warm-up, then a cosine{layers}"


def _interventions(records: RunRecords) -> str:
    """Return which settings were changed in the middle of the run, and when; "" = none."""
    found = records.plan.get("interventions")
    changes = [
        f"{key} {pair[0]} -> {pair[1]} from step {numbers.short(row.get('step'))}"
        for row in (found if isinstance(found, list) else [])
        if isinstance(row, dict) and isinstance(row.get("changed"), dict)
        for key, pair in row["changed"].items()
        if isinstance(pair, list) and len(pair) == 2
    ]
    return ", ".join(changes)


def backbone(records: RunRecords) -> tuple[str, str]:
    """Return the backbone's name and its sizes, from the settings or from the plan of a fine-tuning."""
    sizes = {"patch_size": "patch {}", "embed_dim": "dim {}", "depth": "depth {}", "num_heads": "{} heads"}
    spec = records.plan.get("spec")
    model = spec if isinstance(spec, dict) else records.config.get("model")
    given = model if isinstance(model, dict) else {}
    note = ", ".join(words.format(given[key]) for key, words in sizes.items() if is_number(given.get(key)))
    return str(given.get("name") or given.get("backbone") or numbers.NONE), note


def channels(records: RunRecords) -> int | float:
    """Return the channels of the images, 3 where nothing says so."""
    spec = records.plan.get("spec")
    value = spec.get("channels") if isinstance(spec, dict) else records.setting("data", "channels")
    return value if is_number(value) else 3


def masking(records: RunRecords) -> str:
    """Return a sentence on what the student does not see."""
    strategy = records.setting("objective", "strategy")
    eligible, probability = (
        records.setting_number("objective", key) for key in ("eligible_fraction", "mask_probability")
    )
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
    found = reasons if isinstance(reasons, dict) else {}
    return [
        Fact(key, numbers.short(records.plan[key]), str(found.get(key, "") or _origin(records, key))) for key in known
    ]


def given(records: RunRecords) -> list[str]:
    """Return the settings that were given, not the recipe's, as words of the command line; none of older runs."""
    keys = records.config.get("given")
    names = [str(key) for key in keys if "." in str(key)] if isinstance(keys, list) else []
    return [f"--{key.replace('_', '-')} {_said(records, key)}".rstrip() for key in names]


def _said(records: RunRecords, key: str) -> str:
    section, _, name = key.partition(".")
    value = records.setting(section, name, [])
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _origin(records: RunRecords, key: str) -> str:
    """Return who set a value of the plan that is a setting as well; "" where that is not known."""
    section = {"batch_size": "train", "global_size": "views", "local_size": "views"}.get(key)
    keys = records.config.get("given")
    if section is None or not isinstance(keys, list):
        return ""
    return "given" if f"{section}.{key}" in keys else f"set by the recipe {records.config.get('recipe', '')}".rstrip()


def _epochs(records: RunRecords) -> str:
    epochs = records.setting_number("train", "epochs") or _protocol(records, "epochs")
    return f"{numbers.short(epochs)} epochs" if epochs else ""


def _protocol(records: RunRecords, key: str) -> float | None:
    """Return a number of a fine-tuning's protocol."""
    protocol = records.setting("settings", "protocol", {})
    value = protocol.get(key) if isinstance(protocol, dict) else None
    return value if is_number(value) else None


def _views(records: RunRecords) -> tuple[str, str]:
    """Return `2 × 224 px + 6 × 96 px`, and nothing to add."""
    sizes = [records.numbers(f"{kind}_size", 2) for kind in ("global", "local")]
    counts = [records.setting_number("views", f"{kind}_crops") for kind in ("global", "local")]
    parts = [
        f"{numbers.short(count)} {numbers.TIMES} {_side(size)}"
        for count, size in zip(counts, sizes, strict=True)
        if count and size
    ]
    return " + ".join(parts) or numbers.NONE, "global + local crops" if len(parts) > 1 else ""


def _head(records: RunRecords) -> str:
    """Return the sizes of the projection head."""
    hidden, bottleneck = (records.setting("model", f"head_{part}") for part in ("hidden", "bottleneck"))
    return f"head {hidden}, {hidden}, {bottleneck}" if hidden and bottleneck else ""


def _side(size: Sequence[float]) -> str:
    return f"{size[0]} px" if size[0] == size[-1] else f"{size[0]}{numbers.TIMES}{size[-1]} px"


def _speed(records: RunRecords) -> str:
    images, seconds = records.last("images"), records.last("seconds")
    return f"{images / seconds:.0f} images/s" if images and seconds else ""


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
    environment.filters.update(measured=numbers.measured, change=numbers.change)
    environment.filters.update(text=markdown.text, code=markdown.code, word=shlex.quote, literal=json.dumps)
    return environment
