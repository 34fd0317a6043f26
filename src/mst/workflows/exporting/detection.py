"""Exports of detectors: what is found in an image placed in a canvas of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from mst.data.sources.arrays import MemoryImages
from mst.errors import ConfigError, UsageError
from mst.evaluate.coco.reading import CocoImage
from mst.evaluate.detection.detector import find_objects
from mst.evaluate.detection.file import FILES, DetectorDescription, load_detector
from mst.evaluate.detection.metrics import Detection
from mst.export.detector import DetectorOutputs, Placing, load_exported_detector, write_detector
from mst.export.parity import Images, measure
from mst.runtime.storage.files import write_atomic
from mst.workflows.export_images import measuring_images
from mst.workflows.exporting.settings import GRAPHS, ExportSettings
from mst.workflows.prediction.detection import STEM, load_trained
from mst.workflows.subject import RANGES, Subject

STEP = 32
"""Sides of a canvas are multiples of it, as those that torchvision pads to."""
SAME = 0.5
"""Overlap (IoU) of two boxes of a class from which on they are one object."""
COMPARED = ("boxes", "scores", "masks")
CPU = torch.device("cpu")
Found = dict[str, Tensor]


@dataclass(frozen=True)
class DetectorExport:
    """A detector on its way into one format.

    Attributes:
        folder: of the trained detector.
        detector: torchvision's.
        description: what it finds.
        form: the format.
        placing: how images become its input.
        images: that it is measured on, each in the canvas.
        sizes: (h, w) of each in it.
    """

    folder: Path
    detector: nn.Module
    description: DetectorDescription
    form: str
    placing: Placing
    images: Images
    sizes: tuple[tuple[int, int], ...]

    @staticmethod
    def of(folder: Path, form: str, settings: ExportSettings) -> DetectorExport:
        """Read the detector of a folder and the images to measure it on; the canvas is the smallest that holds them.

        Raises:
            UsageError, CheckpointError: there are none, a format or an option that it does not have.
        """
        if form not in (*GRAPHS, "safetensors"):
            other = {"timm": "timm", "hf": "transformers"}[form]
            raise ConfigError(
                f"--format {form}: {other} has no detector of this backbone and pyramid: use onnx, torch-export or "
                "safetensors"
            )
        if settings.outputs or settings.any_size:
            option = "--outputs" if settings.outputs else "--any-size"
            raise ConfigError(f"{option} is not for detectors: the graph gives all, for a canvas of fixed size")
        detector, description = load_detector(folder)
        backbone: Any = detector.backbone.backbone
        statistics = {"mean": list(description.mean), "std": list(description.std)}
        ranges = {} if description.value_ranges is None else {RANGES: description.value_ranges}
        backbone.metadata = statistics | ranges
        found = measuring_images(Subject(backbone, str(folder), "", None), settings.images, flag="--images")
        placing = _placing(description, [(image.shape[-2], image.shape[-1]) for image in found.raw])
        placed = [placing(image.float() / 255) for image in found.raw]
        images = Images(torch.cat([pixels for pixels, _ in placed]), found.raw, found.source)
        return DetectorExport(folder, detector, description, form, placing, images, tuple(size for _, size in placed))

    @property
    def said(self) -> dict[str, Any]:
        """What parity.json says of it."""
        return {"classes": list(self.description.classes), "canvas": list(self.placing.size)}

    @property
    def remarks(self) -> list[str]:
        """Lines for the user."""
        if self.form not in GRAPHS:
            return []
        height, width = self.placing.size
        return [
            f"the graph takes one image in a canvas of {height}x{width}, which holds those measured: others are "
            "resized to fit into it; boxes are decoded and overlaps suppressed inside, masks are inside the boxes",
            "mst predict pads an image to the next multiple of 32 px only, and the backbone sees what is padded: "
            "same_objects says how much of what it finds is found in the canvas",
        ]

    def use(self, folder: Path) -> str:
        """Return the line of Python with which the other program loads the export."""
        return {
            "onnx": f'onnxruntime.InferenceSession("{folder}/{STEM}.onnx")',
            "torch-export": f'torch.export.load("{folder}/{STEM}.pt2").module()  # import torchvision before',
            "safetensors": f'safetensors.torch.load_file("{folder}/{FILES.weights}")',
        }[self.form]

    @torch.no_grad()
    def write(self, place: Path) -> list[dict[str, Any]]:
        """Write the format into a folder; return what was measured of it.

        Raises:
            MissingExtra, RunFailure: as the format's own functions; other objects than those found here.
            UsageError: nothing is found in any image, so that nothing can be compared.
        """
        if self.form == "safetensors":
            for name in (FILES.weights, FILES.description):
                write_atomic(place / name, (self.folder / name).read_bytes())
            again, program, file = (
                load_detector(place)[0],
                f"safetensors {safetensors.__version__}",
                place / FILES.weights,
            )
            found = [_on_canvas(again, *given) for given in self._given]
        else:
            network, said = DetectorOutputs(self.detector, self.placing.size), self.description.to_json()
            program, file = write_detector(self.form, network, self.placing, place / STEM, said)
            exported = load_exported_detector(file)
            found = [exported.on_canvas(*given) for given in self._given]
        wanted = [_on_canvas(self.detector, *given) for given in self._given]
        parity = measure(self.form, program, self.images, *_compared(wanted, found))
        return [{"file": file.name, **parity.to_json(), **self._as_predicted(place)}]

    @property
    def _given(self) -> list[tuple[Tensor, tuple[int, int]]]:
        return list(zip(torch.split(self.images.pixels, 1), self.sizes, strict=True))

    def _as_predicted(self, place: Path) -> dict[str, float]:
        """Return how many objects `mst predict` finds, and how many of them, in percent, what was exported finds."""
        read, source = load_trained(place, CPU), MemoryImages.of_tensors(self.images.raw)
        find = read.find or partial(find_objects, read.network)
        count, same = 0, 0
        for number, raw in enumerate(self.images.raw):
            image, pixels = CocoImage(number, source, number, (raw.shape[-2], raw.shape[-1]), ()), raw.float() / 255
            own = find_objects(self.detector, image, pixels)
            count, same = count + len(own), same + _found_again(own, find(image, pixels))
        return {"objects": count, "same_objects": 100 * same / max(count, 1)}


def _placing(description: DetectorDescription, sizes: list[tuple[int, int]]) -> Placing:
    """Return how images of these sizes and smaller become the input."""
    shape = description.shape
    free = Placing((1 << 30, 1 << 30), shape.short_sides[-1], shape.long_side, description.mean, description.std)
    resized = [free.resized(size) for size in sizes]
    height, width = (-(-max(sides) // STEP) * STEP for sides in zip(*resized, strict=True))
    return Placing((height, width), free.short_side, free.long_side, free.mean, free.std)


def _on_canvas(detector: Any, images: Tensor, size: tuple[int, int]) -> Found:
    """Return what torchvision's detector finds in a canvas [1, C, H, W]."""
    levels = detector.backbone(images)
    proposals, _ = detector.rpn(ImageList(images, [size]), levels)
    found: Found = detector.roi_heads(levels, proposals, [size])[0][0]
    return {**found, "masks": found["masks"][:, 0]} if "masks" in found else found


def _compared(wanted: list[Found], found: list[Found]) -> tuple[Found, Found]:
    """Return boxes, scores and masks of all wanted objects, and those of the found object of their class next to each.

    Raises:
        UsageError: nothing is wanted.
    """
    rows: tuple[list[Found], list[Found]] = ([], [])
    names = [name for name in COMPARED if name in wanted[0]]
    for own, other in zip(wanted, found, strict=True):
        for index, label in enumerate(own["labels"].tolist()):
            places = (other["labels"] == label).nonzero()[:, 0]
            rows[0].append({name: own[name][index] for name in names})
            if not len(places):  # a number that no tolerance allows
                rows[1].append({name: torch.full_like(own[name][index], torch.inf) for name in names})
                continue
            nearest = places[(other["boxes"][places] - own["boxes"][index]).abs().amax(1).argmin()]
            rows[1].append({name: other[name][nearest] for name in names})
    if not rows[0]:
        raise UsageError("the detector finds nothing in these images, so that nothing can be compared: --images FOLDER")
    both = [{name: torch.stack([row[name] for row in part]) for name in names} for part in rows]
    return both[0], both[1]


def _found_again(own: list[Detection], other: list[Detection]) -> int:
    """Return how many of our detections overlap one of their class among the others."""
    if not own or not other:
        return 0
    overlap = box_iou(torch.tensor([one.box for one in own]), torch.tensor([one.box for one in other]))
    labels = torch.tensor([one.label for one in own])[:, None] == torch.tensor([one.label for one in other])
    return int(((overlap >= SAME) & labels).any(1).sum())
