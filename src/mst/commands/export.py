"""`mst export`: the backbone in a form that other tools load, checked against the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from mst.errors import UsageError
from mst.paths import PathText, SourceText
from mst.runtime.logging import info
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words
from mst.workflows.export import export_backbone


@dataclass(frozen=True)
class ExportOptions:
    """Write the backbone in a form that other tools load, and check it against the original."""

    backbone: SourceText = ""
    """A run folder or a backbone file."""
    out: PathText = ""
    """New folder."""
    format: str = "timm"
    """timm: a folder for timm.create_model("local-dir:FOLDER", pretrained=True)."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(ExportOptions, argv, prog="mst export")
    if options is None:
        return 0
    for name in ("backbone", "out"):
        if not getattr(options, name):
            raise UsageError(f"--{name} is missing: mst export --backbone RUN --format timm --out FOLDER")
    result = export_backbone(options.backbone, options.out, form=options.format)
    if options.json:
        emit_json(result)
    else:
        emit(Text(f"{result['out']}: features differ by {result['difference']:.1e} of the largest"))
        for remark in result["remarks"]:
            info(remark)
        emit(Text(f'timm.create_model("local-dir:{result["out"]}", pretrained=True)'))
    return 0
