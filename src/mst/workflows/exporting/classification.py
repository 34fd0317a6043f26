"""Exports of classifiers: logits, probabilities and labels are those of `mst predict classification`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from mst.errors import ConfigError, RunFailure
from mst.export import timm_folder
from mst.export.classifier import SCORES, ClassifierOutputs, Head
from mst.export.network import OUTPUTS, expected
from mst.export.parity import TOLERANCE, Images, measure
from mst.export.reading_classifier import load_exported_classifier
from mst.model.backbone_file import describe
from mst.runtime.storage.files import write_atomic
from mst.workflows.export_images import measuring_images
from mst.workflows.exporting.graph import Measured, write_graph
from mst.workflows.exporting.hugging_face import write_folder
from mst.workflows.exporting.settings import GRAPHS, ExportSettings, chosen
from mst.workflows.prediction.classification import load_classifier
from mst.workflows.subject import ImageOptions, Subject, load_subject

MODEL, GRAPH = "model", "classifier"
"""Stems of the files that hold weights, or a graph."""


@dataclass(frozen=True)
class ClassifierExport:
    """A classifier on its way into one format.

    Attributes:
        subject: its backbone.
        head: its layer and classes.
        form: the format.
        settings: how.
        names: outputs of a graph.
        images: that it is measured on.
    """

    subject: Subject
    head: Head
    form: str
    settings: ExportSettings
    names: tuple[str, ...]
    images: Images

    @staticmethod
    def of(folder: Path, form: str, settings: ExportSettings) -> ClassifierExport:
        """Read the classifier of a folder and the images to measure it on.

        Raises:
            UsageError, CheckpointError: there are none, or outputs that it does not have.
        """
        known = (*SCORES, *OUTPUTS)
        names = chosen(settings.outputs or SCORES, known)
        if not set(SCORES) & set(names):
            raise ConfigError(f"--outputs {','.join(names)}: give logits or probabilities; features alone: --backbone")
        subject = load_subject(folder, device="cpu")
        network, classes = load_classifier(folder, subject.backbone)
        images = measuring_images(subject, settings.images, flag="--images")
        return ClassifierExport(subject, Head(network.head, classes), form, settings, names, images)

    @property
    def said(self) -> dict[str, Any]:
        """What parity.json says of it."""
        return {"backbone_sha256": self.subject.sha256, "classes": list(self.head.classes)}

    @property
    def remarks(self) -> list[str]:
        """Lines for the user."""
        return []

    def use(self, folder: Path) -> str:
        """Return the line of Python with which the other program loads the export."""
        return {
            "timm": f'timm.create_model("local-dir:{folder}", pretrained=True)',
            "hf": f'transformers.AutoModelForImageClassification.from_pretrained("{folder}")'
            if self.subject.channels != 3  # image processors, and so the pipeline, take RGB
            else f'transformers.pipeline("image-classification", model="{folder}")',
            "onnx": f'onnxruntime.InferenceSession("{folder}/{GRAPH}.onnx")',
            "torch-export": f'torch.export.load("{folder}/{GRAPH}.pt2").module()',
            "safetensors": f'network.load_state_dict(safetensors.torch.load_file("{folder}/{MODEL}.safetensors"))',
        }[self.form]

    @torch.no_grad()
    def write(self, place: Path) -> list[dict[str, Any]]:
        """Write the format into a folder; return what was measured of it.

        Raises:
            MissingExtra, RunFailure: as the format's own functions; other labels than those predicted here.
        """
        pixels, backbone = self.images.pixels, self.subject.backbone
        wanted = expected(backbone, pixels, ("features", *(name for name in self.names if name in OUTPUTS)))
        logits = self.head.layer(wanted["features"])  # [n, K]
        wanted |= {"logits": logits, "probabilities": logits.softmax(-1)}
        if self.form == "hf":
            row = write_folder(self.subject, self.images, place, self.settings, self.head)
        else:
            measured = self._written(place)
            parity = measure(self.form, measured.program, self.images, wanted, measured.outputs)
            row = {"file": measured.file.name, **parity.to_json()}
        return [row | {"same_label": self._same_labels(place, wanted["probabilities"])}]

    def _written(self, place: Path) -> Measured:
        """Write the files of any format but hf; return what the other program finds."""
        backbone, pixels = self.subject.backbone, self.images.pixels
        said = {"classes": list(self.head.classes), "preparation": self._preparation()}
        if self.form in GRAPHS:
            network = ClassifierOutputs(backbone, self.head.layer, self.names)
            return write_graph(self.form, network, pixels, place / GRAPH, said, any_size=self.settings.any_size)
        weights = place / f"{MODEL}.safetensors"
        write_atomic(weights.with_suffix(".json"), describe(backbone.spec, backbone.metadata, said))
        timm_folder.write_timm(backbone, place, self.head)
        if self.form == "safetensors":
            (place / timm_folder.CONFIG).unlink()
            scores = timm_folder.safetensors_outputs(backbone, weights, pixels, len(self.head.classes))
        else:
            scores = timm_folder.timm_outputs(place, pixels)
        return Measured(f"timm {timm.__version__}", {"logits": scores["features"]}, weights)

    def _preparation(self) -> dict[str, Any]:
        """Return how `mst predict` makes an image the network's input, for programs that do it themselves."""
        transform = self.subject.transform(ImageOptions())
        height, width = transform.size
        covered = [max(round(side * transform.resize_ratio), side) for side in transform.size]
        return {
            "whole_if": [height, width],
            "resize": "bicubic, antialiased, aspect kept, to the smallest size that covers",
            "covers": covered,
            "cut": [height, width],
            "offset": "half of what is cut off, rounded to the nearest, halves to even",
            "mean": list(transform.mean),
            "std": list(transform.std),
            "of": "values from 0 to 1",
        }

    def _same_labels(self, place: Path, wanted: Tensor) -> float:
        """Return for how many images, in percent, what was exported, read back as `mst predict` does, gives our label.

        Raises:
            RunFailure: another label, although the two probabilities are not equal within the tolerance.
        """
        found = load_exported_classifier(place)[0](self.images.pixels).softmax(-1)  # [n, K]
        labels, others = wanted.argmax(1), found.argmax(1)
        lost = wanted.gather(1, labels[:, None]) - wanted.gather(1, others[:, None])  # [n, 1]
        if not bool((lost <= 2 * TOLERANCE["fp32"]).all()):
            raise RunFailure(f"what was exported gives other classes than mst predict: {lost.max():.2e} less probable")
        return 100 * float((labels == others).double().mean())
