"""A backbone for Hugging Face's transformers: `AutoModel`, `AutoImageProcessor` and pipelines load the folder.

Where transformers has its own class for the network, the folder is for that class (`mst.export.native`). Elsewhere it
is a folder of timm, which transformers reads through its class `TimmWrapperModel`: that holds timm's network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mst.errors import MissingExtra, RunFailure
from mst.export.classifier import Head
from mst.export.native.names import Native, NotNative, native
from mst.export.native.weights import PROCESSOR, native_outputs, write_native
from mst.export.parity import TOLERANCE, Images, difference
from mst.export.timm_folder import CONFIG, WEIGHTS, write_timm
from mst.model.backbone import Backbone

WRAPPER = "TimmWrapperModel"


@dataclass(frozen=True)
class HuggingFace:
    """A folder that transformers has read.

    Attributes:
        native: transformers' own network; None = its wrapper of timm's.
        reason: why it is the wrapper; "" where it is not.
        outputs: what transformers gives, by name.
    """

    native: Native | None
    reason: str
    outputs: dict[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Return what parity.json says of it."""
        if self.native is None:
            return {"class": WRAPPER, "reason": self.reason}
        return {"class": f"{self.native.stem}Model"}


def transformers() -> Any:
    """Return the library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingExtra("transformers", "transformers") from error


def write_hugging_face(
    backbone: Backbone, folder: Path, images: Tensor, wanted: Mapping[str, Tensor], head: Head | None = None
) -> HuggingFace:
    """Write the folder and let transformers compute images with it.

    Args:
        backbone: in evaluation mode, on the CPU.
        folder: exists.
        images: normalised [B, C, H, W].
        wanted: outputs of this package for them; where transformers' own network gives others, the wrapper is taken.
        head: its classifier, for `AutoModelForImageClassification`; None = features without classes.

    Raises:
        RunFailure: the disk refused, or transformers does not load what was written.
    """
    try:
        found = native(backbone)
        write_native(backbone, found, folder, head)
        outputs = _outputs(folder, images, found, head)
        for name, tensor in outputs.items():
            if name in wanted and not difference(wanted[name], tensor).relative <= TOLERANCE["fp32"]:
                raise NotNative(
                    f"{found.stem}Model gives other {name.replace('_', ' ')}: they differ by "
                    f"{difference(wanted[name], tensor).relative:.1e} of the largest"
                )
        return HuggingFace(found, "", outputs)
    except (NotNative, RunFailure) as error:
        reason = str(error)
    for name in (WEIGHTS, CONFIG, PROCESSOR):
        (folder / name).unlink(missing_ok=True)
    write_timm(backbone, folder, head)
    return HuggingFace(None, reason, _outputs(folder, images, None, head))


@torch.no_grad()
def _outputs(folder: Path, images: Tensor, found: Native | None, head: Head | None) -> dict[str, Tensor]:
    """Return what `AutoModel.from_pretrained(FOLDER)` gives; with a head, the logits of a classifier.

    Raises:
        RunFailure: transformers does not load it, not whole, or with other names of classes.
    """
    library = transformers()
    loader = library.AutoModel if head is None else library.AutoModelForImageClassification
    version = f"transformers {library.__version__}"
    try:
        with _quiet(library):
            model, told = loader.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (RuntimeError, ValueError, KeyError, OSError, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailure(f"{version} does not load what was written: {reason}") from error
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told.get(key):
            raise RunFailure(f"{version} finds {key.replace('_', ' ')} in what was written: {sorted(told[key])[0]}")
    model = model.eval()
    if head is not None:
        if (named := model.config.id2label) != dict(enumerate(head.classes)):
            raise RunFailure(f"{version} reads other classes than were written: {named}")
        return {"logits": model(pixel_values=images).logits}
    if found is not None:
        return native_outputs(model, found, images)
    return {"features": model(pixel_values=images).pooler_output}


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Inside: transformers shows no bar for reading the file that was just written."""
    shown = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.utils.logging.enable_progress_bar()


def processor_difference(folder: Path, images: Images, std: Sequence[float]) -> dict[str, Any]:
    """Return how far pixels of `AutoImageProcessor` are from this package's, in grey levels of 0 to 255.

    Args:
        folder: from `write_hugging_face`.
        images: raw and normalised.
        std: of each channel.

    Returns:
        largest and mean; of images of other than three channels, or where the processor gives another size, a `reason`.
    """
    if images.pixels.shape[1] != 3:
        return {
            "reason": f"image processors take RGB, not {images.pixels.shape[1]} channels: normalise images yourself"
        }
    try:
        taken = transformers().AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        pictures = [Image.fromarray(np.ascontiguousarray(raw.permute(1, 2, 0).numpy())) for raw in images.raw]
        pixels = torch.cat(
            [taken(picture, return_tensors="pt")["pixel_values"] for picture in pictures]
        )  # [n, C, H, W]
    except (RuntimeError, ValueError, KeyError, OSError, ImportError, TypeError) as error:
        return {"reason": f"the image processor fails: {' '.join(str(error).split())[:200]}"}
    if pixels.shape != images.pixels.shape:
        return {"reason": f"the image processor gives {list(pixels.shape)}, this package {list(images.pixels.shape)}"}
    levels = (pixels - images.pixels).abs() * torch.tensor(std)[:, None, None] * 255
    return {"largest": float(levels.max()), "mean": float(levels.mean()), "unit": "grey levels of 255"}
