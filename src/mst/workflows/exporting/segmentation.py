"""Exports of segmenters: the classes of pixels are those of `mst predict segmentation`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from mst.errors import ConfigError, RunFailure
from mst.evaluate.common.protocol import resized
from mst.evaluate.segmentation.file import FILES, SavedSegmenter, load_segmenter
from mst.evaluate.segmentation.inference import predict_mask
from mst.export.parity import Images, measure
from mst.export.segmenter import MAPS, SegmenterOutputs, at_size
from mst.runtime.storage.files import write_atomic
from mst.workflows.export_images import measuring_images
from mst.workflows.exporting.graph import Measured, write_graph
from mst.workflows.exporting.settings import GRAPHS, ExportSettings, chosen
from mst.workflows.prediction.segmentation import STEM, load_trained
from mst.workflows.subject import RANGES, Subject

LEAST_SAME = 99.9
"""Percent of all pixels that must have the same class: logits that agree within the tolerance differ at ties alone."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class SegmenterExport:
    """A segmenter on its way into one format.

    Attributes:
        folder: of the trained segmenter.
        saved: the segmenter and its view.
        form: the format.
        settings: how.
        names: outputs of a graph.
        images: that it is measured on, as the network sees them: whole, at the size of the view.
    """

    folder: Path
    saved: SavedSegmenter
    form: str
    settings: ExportSettings
    names: tuple[str, ...]
    images: Images

    @staticmethod
    def of(folder: Path, form: str, settings: ExportSettings) -> SegmenterExport:
        """Read the segmenter of a folder and the images to measure it on.

        Raises:
            UsageError, CheckpointError: there are none, a format or outputs that it does not have.
        """
        if form not in (*GRAPHS, "safetensors"):
            other = {"timm": "timm", "hf": "transformers"}[form]
            raise ConfigError(
                f"--format {form}: {other} has no network of this backbone with this head: use onnx, torch-export or "
                "safetensors"
            )
        names = chosen(settings.outputs or MAPS, MAPS)
        if "logits" not in names:
            raise ConfigError(f"--outputs {','.join(names)}: logits are needed, the difference is taken of them")
        saved = load_segmenter(folder, CPU)
        backbone, view = saved.segmenter.backbone, saved.view
        statistics = {"mean": list(view.mean), "std": list(view.std)}
        backbone.metadata = statistics | ({} if saved.value_ranges is None else {RANGES: saved.value_ranges})
        found = measuring_images(Subject(backbone, str(folder), "", None), settings.images, flag="--images")
        pixels = torch.stack([view.normalise(resized(image, view.size)) for image in found.raw])
        return SegmenterExport(folder, saved, form, settings, names, replace(found, pixels=pixels))

    @property
    def said(self) -> dict[str, Any]:
        """What parity.json says of it."""
        return {"classes": list(self.saved.segmenter.classes), "view": asdict(self.saved.view)}

    @property
    def remarks(self) -> list[str]:
        """Lines for the user."""
        height, width = self.saved.view.size
        lines = [f"logits are of the head's map: enlarge them bilinearly (align_corners=False) to {height}x{width}"]
        if self.saved.view.stride is not None and self.form in GRAPHS:
            lines.append(
                f"the file sees one window of {height}x{width}: that mst predict averages the logits of windows at "
                f"distances of {self.saved.view.stride[0]} and {self.saved.view.stride[1]} px is no part of it"
            )
        return lines if self.form in GRAPHS else []

    def use(self, folder: Path) -> str:
        """Return the line of Python with which the other program loads the export."""
        return {
            "onnx": f'onnxruntime.InferenceSession("{folder}/{STEM}.onnx")',
            "torch-export": f'torch.export.load("{folder}/{STEM}.pt2").module()',
            "safetensors": f'safetensors.torch.load_file("{folder}/{FILES.weights}")',
        }[self.form]

    @torch.no_grad()
    def write(self, place: Path) -> list[dict[str, Any]]:
        """Write the format into a folder; return what was measured of it.

        Raises:
            MissingExtra, RunFailure: as the format's own functions; other classes of pixels than those predicted here.
        """
        segmenter, pixels = self.saved.segmenter, self.images.pixels
        if self.form == "safetensors":
            for name in (FILES.weights, FILES.description):
                write_atomic(place / name, (self.folder / name).read_bytes())
            logits = load_segmenter(place, CPU).segmenter(pixels)
            measured = Measured(f"safetensors {safetensors.__version__}", {"logits": logits}, place / FILES.weights)
        else:
            said = {**self.said, "head": asdict(segmenter.shape)}
            network = SegmenterOutputs(segmenter, self.names)
            measured = write_graph(self.form, network, pixels, place / STEM, said, any_size=self.settings.any_size)
        wanted = {"logits": segmenter(pixels)}
        found = {"logits": measured.outputs["logits"]}
        parity = measure(self.form, measured.program, self.images, wanted, found)
        same = self._same_pixels(place, measured.outputs.get("classes"))
        return [{"file": measured.file.name, **parity.to_json(), "same_pixels": same}]

    def _same_pixels(self, place: Path, given: Tensor | None) -> float:
        """Return the percent of all pixels that what was exported, read back as `mst predict` does, gives our class.

        Args:
            place: where it was exported to.
            given: classes that the graph itself gives for the images, which count as well.

        Raises:
            RunFailure: it is less than `LEAST_SAME`.
        """
        networks, view = (self.saved.segmenter, load_trained(place, CPU).network), self.saved.view
        same, pixels = 0, 0
        for image in self.images.raw:
            own, other = (predict_mask(network, image, view, "fp32") for network in networks)
            same, pixels = same + int((own == other).sum()), pixels + own.numel()
        if given is not None:
            own = at_size(self.saved.segmenter(self.images.pixels), self.images.pixels).argmax(1)
            same, pixels = same + int((own == given).sum()), pixels + own.numel()
        share = 100 * same / pixels
        if share < LEAST_SAME:
            raise RunFailure(f"what was exported gives the class of mst predict to {share:.2f} % of the pixels only")
        return share
