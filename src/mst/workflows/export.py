"""A backbone in the form of another tool, with the difference of its outputs measured in that tool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mst.errors import UsageError
from mst.paths import user_path
from mst.runtime.storage.files import write_atomic
from mst.workflows.exporting.folder import fill, new_folder, push
from mst.workflows.exporting.remarks import told
from mst.workflows.exporting.settings import GRAPHS, OUTPUTS, ExportSettings, chosen

if TYPE_CHECKING:
    from mst.export.parity import Images
    from mst.model.backbone import Backbone
    from mst.workflows.subject import Subject

CLASSIFIER = "classifier.safetensors"


def export_backbone(
    backbone: str | Path, out: str | Path, *, form: str = "timm", settings: ExportSettings | None = None
) -> dict[str, Any]:
    """Export a backbone and measure, in the other program, that it gives the same numbers.

    Args:
        backbone: a run folder, a backbone file, `timm:NAME` or `NAME=FILE`.
        out: a new folder; it appears only when everything in it has been measured.
        form: `timm`, `hf`, `onnx`, `torch-export` or `safetensors`.
        settings: outputs, types, images.

    Returns:
        format, out, the largest relative `difference`, `parity` (as in parity.json), `use` (a line of Python), and
        `remarks`: lines on what is left out.

    Raises:
        UsageError: the format is unknown, the folder is in use or cannot be opened by timm, there is no backbone, an
            extra is missing.
        RunFailure: the other program gives other numbers, or cannot be given this network; nothing was written.
    """
    settings = settings or ExportSettings()
    settings.check(form)
    settings = replace(settings, outputs=chosen(settings.outputs or OUTPUTS[:1], OUTPUTS))
    folder = new_folder(out)

    from mst.workflows.export_images import MEASURED_ON, measuring_images  # needs torch
    from mst.workflows.subject import load_subject

    subject = load_subject(backbone, device="cpu")
    if not subject.backbone.blocks:
        raise UsageError(f"--backbone {backbone} is an export already: give the run or file it was exported from")
    images = measuring_images(subject, settings.images, flag="--images", count=MEASURED_ON)
    rows = fill(
        folder,
        lambda place: _written(form, subject, images, place, settings),
        {"format": form, "backbone": subject.name, "sha256": subject.sha256},
    )
    if settings.push:
        push(folder, settings.push)
    worst = max(one["relative"] for row in rows for one in row["outputs"].values())
    remarks = [*_left_out(user_path(backbone)), *_sizes(form, subject.backbone), *told(rows)]
    use = _use(form, folder, str(rows[0].get("file", "")))
    return {"format": form, "out": str(folder), "difference": worst, "parity": rows, "use": use, "remarks": remarks}


def _written(
    form: str, subject: Subject, images: Images, place: Path, settings: ExportSettings
) -> list[dict[str, Any]]:
    """Write one format into a folder; return a row for each file that was measured."""
    from mst.export.network import expected
    from mst.export.parity import measure
    from mst.workflows.exporting.hugging_face import write_folder

    backbone = subject.backbone
    wanted = expected(backbone, images.pixels, settings.outputs)
    if form == "onnx":
        from mst.export.network import Outputs
        from mst.workflows.exporting.onnx_folder import Asked, write_files

        network = Outputs(backbone, settings.outputs)
        return write_files(Asked(subject, network, images, wanted, settings.onnx, settings.any_size), place)
    if form == "hf":
        return [write_folder(subject, images, place, settings)]
    program, found = _plain_format(form, subject, images, place, settings)
    return [measure(form, program, images, wanted, found).to_json()]


def _plain_format(
    form: str, subject: Subject, images: Images, place: Path, settings: ExportSettings
) -> tuple[str, dict[str, Any]]:
    """Write a format that is one network; return the program that measures it and the outputs it found."""
    import timm
    import torch

    from mst.export import timm_folder, torch_program
    from mst.export.network import Outputs
    from mst.model.backbone_file import FILE_NAME, describe, save_backbone

    backbone, pixels = subject.backbone, images.pixels
    if form == "timm":
        timm_folder.write_timm(backbone, place)
        write_atomic(place / "model.json", describe(backbone.spec, backbone.metadata))
        return f"timm {timm.__version__}", timm_folder.timm_outputs(place, pixels)
    if form == "safetensors":
        save_backbone(place / FILE_NAME, backbone, backbone.metadata)
        found = timm_folder.safetensors_outputs(backbone, place / FILE_NAME, pixels)
        return f"timm {timm.__version__}", found
    network = Outputs(backbone, settings.outputs)
    torch_program.write_program(network, pixels[:2].repeat(2, 1, 1, 1)[:2], place / torch_program.NAME)
    more = {"outputs": list(network.names)}
    description = (place / torch_program.NAME).with_suffix(".json")
    write_atomic(description, describe(backbone.spec, backbone.metadata, more))
    found = torch_program.program_outputs(place / torch_program.NAME, pixels, network.names)
    return f"torch.export {torch.__version__}", found


def _use(form: str, folder: Path, file: str) -> str:
    """Return the line of Python with which the other program loads the export; `file` is the first of ONNX."""
    return {
        "timm": f'timm.create_model("local-dir:{folder}", pretrained=True)',
        "hf": f'transformers.AutoModel.from_pretrained("{folder}")',
        "onnx": f'onnxruntime.InferenceSession("{folder}/{file}")',
        "torch-export": f'torch.export.load("{folder}/backbone.pt2").module()',
        "safetensors": f'network.load_state_dict(safetensors.torch.load_file("{folder}/backbone.safetensors"))',
    }[form]


def _left_out(source: Path) -> list[str]:
    """Return a line on the classifier of a fine-tuned run, which is no part of a backbone."""
    classifier = (source if source.is_dir() else source.parent) / CLASSIFIER
    if not classifier.is_file():
        return []
    return [
        f"{classifier} is not exported: the folder holds the backbone, which gives features and no classes; "
        f"mst export --model {classifier.parent} exports both"
    ]


def _sizes(form: str, network: Backbone) -> list[str]:
    """Return a line on the image size, where the other program would give other features at another."""
    if network.SAME_AT_ANY_SIZE or form in GRAPHS:
        return []
    height, width = network.spec.image_size
    return [
        f"images of {height}x{width} only: timm's {network.spec.name} pads other sizes in another way than mst "
        "(features differ by some 10 %), so that the exported network refuses them"
    ]
