"""A detector as a graph of fixed shapes, boxes decoded and overlaps suppressed inside, and an exported one again.

torchvision's Mask R-CNN computes with as many boxes as there happen to be. Here what is left out stays as a row whose
score is zero, so that all shapes but those inside the suppression are fixed: the same proposals, boxes, scores, masks.
Differs: of the scores of all proposals and classes the best `CANDIDATES` go on to the suppression.
Letters: C channels, H W pixels of the input, P proposals, M detections, K classes, F channels of the pyramid.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align

from mst.errors import CheckpointError
from mst.export import onnx_file, torch_program
from mst.export.network import Outputs
from mst.export.reading import ExportedBackbone, Graph, open_graph
from mst.model.backbone import MOST_SIDE
from mst.model.backbone_file import describe
from mst.runtime.storage.files import write_atomic
from mst.weights.description import BadDescription, numbers, part, whole, wholes

CANDIDATES = 5000
"""Pairs of a proposal and a class that go on to the suppression, best first."""
OBJECTS = ("boxes", "scores", "labels")
MASKS = "masks"
"""What the graph gives: boxes [M, 4] as x0 y0 x1 y1 in pixels of the input, scores [M], 0 where there is no object,
labels [M] from 1 on, masks [M, h, w] as probabilities inside the boxes."""


class DetectorOutputs(Outputs):
    """torchvision's detector over a pyramid of this package, in evaluation mode, for one image of a fixed size."""

    anchors: Tensor

    def __init__(self, detector: nn.Module, size: tuple[int, int]) -> None:
        """Take a plain copy; it computes on the CPU without gradients.

        Args:
            detector: from `mst.evaluate.detection.detector.build_detector`.
            size: (H, W) of the input, multiples of 32.
        """
        other: Any = copy.deepcopy(detector).cpu().eval().requires_grad_(False)
        super().__init__(other.backbone.backbone, ())
        other.backbone.backbone = self.backbone
        self.pyramid, self.rpn, self.heads = other.backbone, other.rpn, other.roi_heads
        self.names = (*OBJECTS, MASKS) if self.heads.has_mask() else OBJECTS
        images = torch.zeros(1, self.backbone.spec.channels, *size)
        with torch.no_grad():
            maps = self._pyramid(images)
            found = self.rpn.anchor_generator(ImageList(images, [size]), maps)[0]  # [A, 4]
        self.counts = [level.shape[-2] * level.shape[-1] * len(found) // self._cells(maps) for level in maps]
        self.register_buffer("anchors", found, persistent=False)

    @staticmethod
    def _cells(maps: list[Tensor]) -> int:
        return sum(level.shape[-2] * level.shape[-1] for level in maps)

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the levels [1, F, h', w'], fine first, the pooled one last."""
        pyramid: Any = self.pyramid
        levels = [level.float() for level in pyramid.levels(pyramid.levels.maps(self.backbone, images))]
        return [*levels, levels[-1][..., ::2, ::2]]

    def forward(self, images: Tensor, size: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return what is found in one image.

        Args:
            images: [1, C, H, W] normalised, in the upper left corner, zeros elsewhere.
            size: int64 [2], (h, w) of the image in it; None = it fills the canvas.
        """
        size = torch.tensor(images.shape[-2:]) if size is None else size
        limits = torch.stack([size[1], size[0], size[1], size[0]]).to(images.dtype)  # x0 y0 x1 y1
        maps = self._pyramid(images)
        proposals, kept = self._proposals(maps, limits)  # [P, 4], [P]
        maps = maps[:4]
        features = self._pooled(maps, proposals, self.heads.box_roi_pool)  # [P, F, 7, 7]
        logits, codes = self.heads.box_predictor(self.heads.box_head(features))  # [P, K + 1], [P, 4 (K + 1)]
        boxes, scores, labels = self._detections(logits, codes, proposals, kept, limits)
        if MASKS not in self.names:
            return boxes, scores, labels
        inside = self.heads.mask_head(self._pooled(maps, boxes, self.heads.mask_roi_pool))
        masks = self.heads.mask_predictor(inside).sigmoid()  # [M, K + 1, h, w]
        chosen = labels[:, None, None, None].expand(-1, 1, masks.shape[-2], masks.shape[-1])
        return boxes, scores, labels, masks.gather(1, chosen)[:, 0]

    def _proposals(self, maps: list[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes [P, 4] and which of them are proposals [P]: the best of each level, overlaps suppressed."""
        rpn: Any = self.rpn
        objectness, deltas = rpn.head(maps)
        boxes, scores = [], []
        for level, delta, anchors in zip(objectness, deltas, torch.split(self.anchors, self.counts), strict=True):
            score = level.permute(0, 2, 3, 1).reshape(-1)
            codes = delta.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            score, best = score.topk(min(rpn.pre_nms_top_n(), len(anchors)))
            box = _inside(rpn.box_coder.decode_single(codes[best], anchors[best]), limits)
            score = score.sigmoid()
            valid = _large(box, rpn.min_size) & (score >= rpn.score_thresh)
            valid = valid & _apart(box, score.where(valid, -1), rpn.nms_thresh)
            boxes.append(box)
            scores.append(score.where(valid, -1))
        together = torch.cat(scores)
        score, best = together.topk(min(rpn.post_nms_top_n(), len(together)))
        return torch.cat(boxes)[best], score >= 0

    def _pooled(self, maps: list[Tensor], boxes: Tensor, pool: Any) -> Tensor:
        """Return what each box holds of the level that its size belongs to [P, F, s, s]."""
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)  # [P, 5]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        level = torch.floor(pool.canonical_level + torch.log2(area.sqrt() / pool.canonical_scale) + 1e-6)
        level = level.clamp(2, 1 + len(maps)) - 2  # of strides 4 to 32
        found = torch.zeros(())
        for index, map_ in enumerate(maps):
            one = roi_align(map_, rois, pool.output_size, 1 / 2 ** (2 + index), pool.sampling_ratio)
            found = one if index == 0 else torch.where((level == index)[:, None, None, None], one, found)
        return found

    def _detections(
        self, logits: Tensor, codes: Tensor, proposals: Tensor, kept: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [M, 4], scores [M] and labels [M]: the best of all classes, overlaps suppressed in each."""
        heads: Any = self.heads
        count, classes = logits.shape
        boxes = _inside(heads.box_coder.decode_single(codes, proposals).reshape(count, -1, 4), limits)[:, 1:]
        scores = logits.softmax(-1)[:, 1:].where(kept[:, None], -1).reshape(-1)  # [P K]
        labels = torch.arange(1, classes).repeat(count)
        scores, best = scores.topk(min(CANDIDATES, len(labels)))
        box, labels = boxes.reshape(-1, 4)[best], labels[best]
        valid = (scores > heads.score_thresh) & _large(box, 1e-2)
        apart = box + (labels * (limits.max() + 1))[:, None]  # other classes lie elsewhere
        valid = valid & _apart(apart, scores.where(valid, -1), heads.nms_thresh)
        scores, best = scores.where(valid, 0).topk(min(heads.detections_per_img, len(labels)))
        return box[best], scores, labels[best]


def _inside(boxes: Tensor, limits: Tensor) -> Tensor:
    """Return boxes [..., 4] cut to an image."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _large(boxes: Tensor, side: float) -> Tensor:
    """Return which boxes [n, 4] have sides of at least so many pixels [n]."""
    return (boxes[:, 2] - boxes[:, 0] >= side) & (boxes[:, 3] - boxes[:, 1] >= side)


def _apart(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """Return which boxes [n, 4] overlap no better one by more than `most` [n]."""
    # torch.export takes it for granted that torchvision's nms keeps two boxes or more, so two lie apart from all.
    aside = boxes.new_tensor([[-3, -3, -2, -2], [-6, -6, -5, -5]])
    kept = nms(torch.cat([boxes, aside]), torch.cat([scores, scores.new_full((2,), -2)]), most)
    return scores.new_zeros(len(scores) + 2).scatter(0, kept, 1.0)[:-2] > 0


@dataclass(frozen=True)
class Placing:
    """How an image becomes the input: resized as torchvision does it but not beyond the canvas, in its upper left.

    Attributes:
        size: (H, W) of the canvas.
        short_side: of the resized image in pixels.
        long_side: limit of the other side; the short side is then shorter.
        mean: of each channel, in [0, 1].
        std: of each channel.
    """

    size: tuple[int, int]
    short_side: int
    long_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def resized(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) of an image of this size in the canvas."""
        return tuple(int(side * self._scale(image)) for side in image)  # type: ignore[return-value]

    def _scale(self, image: tuple[int, int]) -> float:
        wanted = [(self.short_side, min(image)), (self.long_side, max(image)), *zip(self.size, image, strict=True)]
        return min(float(torch.tensor(float(most)) / side) for most, side in wanted)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the canvas [1, C, H, W] of pixels [C, h, w] in [0, 1], and the (h, w) of the image in it."""
        mean, std = (torch.tensor(one)[:, None, None] for one in (self.mean, self.std))
        scale = self._scale((pixels.shape[-2], pixels.shape[-1]))
        image = F.interpolate(
            ((pixels - mean) / std)[None],
            scale_factor=scale,
            mode="bilinear",
            recompute_scale_factor=True,
            align_corners=False,
        )
        height, width = image.shape[-2:]
        return F.pad(image, (0, self.size[1] - width, 0, self.size[0] - height)), (height, width)

    @staticmethod
    def from_json(values: dict[str, Any], channels: int) -> Placing:
        """Rebuild the record.

        Raises:
            BadDescription: it is none.
        """
        height, width = wholes(values, "size", count=2, most=MOST_SIDE)
        mean, std = (numbers(values, key, count=channels, positive=key == "std") for key in ("mean", "std"))
        short, long = (whole(values, key, most=MOST_SIDE) for key in ("short_side", "long_side"))
        return Placing((height, width), short, long, mean, std)


def write_detector(
    form: str, network: DetectorOutputs, placing: Placing, stem: Path, said: dict[str, Any]
) -> tuple[str, Path]:
    """Write a graph with what it says of itself; return the program it is for, and the file.

    Args:
        form: onnx or torch-export.
        network: for the canvas of `placing`.
        placing: of its images.
        stem: the path without its ending.
        said: what the file says beside spec, metadata and placing.

    Raises:
        MissingExtra, RunFailure: as the functions of the format.
    """
    backbone, said = network.backbone, {**said, "placing": asdict(placing)}
    images = torch.zeros(1, backbone.spec.channels, *placing.size)
    inputs = {onnx_file.INPUT: images, "size": torch.tensor(placing.size)}
    if form == "onnx":
        onnx_file.library("onnxruntime")
        path = stem.with_suffix(".onnx")
        onnx_file.write_onnx(onnx_file.make_fixed_graph(network, inputs), path, backbone, more=said)
        return onnx_file.runtime_name(), path
    path = stem.with_suffix(".pt2")
    torch_program.write_fixed_program(network, tuple(inputs.values()), path)
    text = describe(backbone.spec, backbone.metadata, {**said, "outputs": list(network.names)})
    write_atomic(path.with_suffix(".json"), text)
    return f"torch.export {torch.__version__}", path


class ExportedDetector(nn.Module):
    """What another program finds in an image.

    Attributes:
        backbone: says what its images are; gives no features.
        said: all that the file says of itself.
        placing: how an image becomes the input.
    """

    def __init__(self, graph: Graph, placing: Placing) -> None:
        super().__init__()
        self.backbone = ExportedBackbone(graph, embed_dim=1)
        self.said, self.placing, self._graph = graph.said, placing, graph

    def on_canvas(self, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return boxes [n, 4], scores [n], labels [n] and masks [n, h, w] in the pixels of a canvas [1, C, H, W]."""
        found = self._graph.run(images, torch.tensor(size))
        count = int((found["scores"] > 0).sum())
        return {name: tensor[:count].long() if name == "labels" else tensor[:count] for name, tensor in found.items()}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the same in the pixels of an image [C, h, w] in [0, 1]."""
        images, size = self.placing(pixels.detach().cpu().float())
        found = self.on_canvas(images, size)
        (height, width), (low, narrow) = pixels.shape[-2:], size
        factors = torch.tensor([width / narrow, height / low, width / narrow, height / low])
        return {**found, "boxes": found["boxes"] * factors}


def load_exported_detector(file: Path) -> ExportedDetector:
    """Return the detector of a `.onnx` or `.pt2` file, in evaluation mode on the CPU.

    Raises:
        CheckpointError: it is damaged, or holds something else.
        MissingExtra: the program that computes it is not installed.
    """
    graph = open_graph(file)
    if not set(OBJECTS) <= set(graph.names):
        raise CheckpointError(f"{file} holds no detector: export one with mst export --model FOLDER")
    try:
        placing = Placing.from_json(part(graph.said, "placing"), graph.spec.channels)
    except BadDescription as error:
        raise CheckpointError(f"cannot read {file}: {error}; export it again") from error
    return ExportedDetector(graph, placing).eval()
