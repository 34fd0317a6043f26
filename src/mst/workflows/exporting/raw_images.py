"""Stored pixels for graphs with preprocessing, and how far these prepare them from how evaluations do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mst.errors import RunFailure
from mst.export.onnx_file import run_session, session_of
from mst.export.onnx_images import Preprocessing, preprocessing_graph
from mst.export.parity import Images, difference
from mst.workflows.subject import ImageOptions, Subject

MOST_LEVELS, MOST_SHARE = 2, 0.02
"""Grey levels that a prepared pixel may differ by, and the share that may differ: both sides round after each of the
two passes of a resize, and weights are rounded, too."""


@dataclass(frozen=True)
class RawImages:
    """The images that a graph with preprocessing is measured on.

    Attributes:
        stored: uint8 [1, H, W, C], each of its own size.
        crops: the same as evaluations resize and cut them, uint8 [n, h, w, C]; a graph takes them as they are.
        pixels: the same normalised, float32 [n, C, h, w].
        graph: the preprocessing alone.
        std: of each channel, [C, 1, 1].
        metadata: of the backbone, with mean and std.
    """

    stored: tuple[Tensor, ...]
    crops: Tensor
    pixels: Tensor
    graph: Any
    std: Tensor
    metadata: dict[str, Any]

    @staticmethod
    def of(subject: Subject, images: Images) -> RawImages:
        """Return the images and the preprocessing of a backbone."""
        transform = subject.transform(ImageOptions())
        asked = Preprocessing(transform.size, transform.mean, transform.std, transform.resize_ratio)
        last = [image.permute(1, 2, 0).contiguous() for image in images.raw]
        crops = [transform.crop(image).permute(1, 2, 0) for image in images.raw]
        return RawImages(
            tuple(image[None] for image in last),
            torch.stack(crops).contiguous(),
            images.pixels,
            preprocessing_graph(asked),
            torch.tensor(asked.std)[:, None, None],
            {**subject.backbone.metadata, "mean": list(asked.mean), "std": list(asked.std)},
        )

    def compare(self, running: Any, wanted: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return how far prepared pixels and outputs are from those of evaluations, on the stored images.

        Args:
            running: session of a whole graph.
            wanted: outputs of this package.

        Returns:
            most_levels (largest difference of a pixel in grey levels), share (of pixels that differ), outputs.

        Raises:
            RunFailure: pixels differ more than is allowed.
        """
        alone = session_of(self.graph)
        prepared = torch.cat([run_session(alone, image)["images"] for image in self.stored])  # [n, C, h, w]
        levels = ((prepared - self.pixels) * self.std * 255).abs()
        most, share = float(levels.max()), float((levels > 0.5).double().mean())
        if not (most < MOST_LEVELS + 0.5 and share <= MOST_SHARE):
            raise RunFailure(
                f"ONNX Runtime prepares images in another way than this package: {100 * share:.2g} % of the pixels "
                f"differ, by up to {most:.0f} grey levels; allowed are {100 * MOST_SHARE:g} % and {MOST_LEVELS}; "
                "nothing was exported"
            )
        each = [run_session(running, image, tuple(wanted)) for image in self.stored]
        found = {name: torch.cat([one[name] for one in each]) for name in wanted}
        outputs = {name: asdict(difference(wanted[name], tensor)) for name, tensor in found.items()}
        return {"most_levels": round(most), "share": share, "outputs": outputs}
