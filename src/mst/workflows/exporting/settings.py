"""What an export is asked for; known without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mst.errors import ConfigError
from mst.workflows.exporting.onnx_settings import OnnxSettings

FORMATS = ("timm", "hf", "onnx", "torch-export", "safetensors")
GRAPHS = ("onnx", "torch-export")
"""Formats that have chosen outputs."""
OUTPUTS = ("features", "patch_tokens", "importance", "cls_token")


@dataclass(frozen=True)
class ExportSettings:
    """How a backbone is exported.

    Attributes:
        images: a folder of images on which the difference is measured; None = those of the backbone's run, else drawn
            scenes.
        outputs: of onnx and torch-export: features, patch_tokens, importance, cls_token; of a classifier logits and
            probabilities as well. None named = features, or logits and probabilities.
        any_size: ONNX: images of every size that patches tile, not only of the backbone's own.
        license: of the weights, for the model card of hf; `other` = not said.
        push: hf: USER/NAME on the hub, to which the folder is uploaded once it agrees; None = not.
        onnx: ONNX: types of numbers, calibration, comparison.
    """

    images: str | Path | None = None
    outputs: tuple[str, ...] = ()
    any_size: bool = False
    license: str = "other"
    push: str | None = None
    onnx: OnnxSettings = field(default_factory=OnnxSettings)

    def check(self, form: str) -> None:
        """Refuse what does not go together.

        Raises:
            ConfigError: names the option.
        """
        if form not in FORMATS:
            raise ConfigError(f"--format {form}: must be one of {', '.join(FORMATS)}")
        if form not in GRAPHS and tuple(self.outputs) not in ((), ("features",)):
            raise ConfigError(
                f"--outputs: {form} holds the whole network, outputs are chosen for {' and '.join(GRAPHS)}"
            )
        if form != "onnx" and self.any_size:
            raise ConfigError(f"--any-size is for --format onnx, not for {form}")
        self.onnx.check(form)
        if self.onnx.preprocess and self.any_size:
            raise ConfigError("--preprocess cuts every image to one size: leave --any-size away")
        if self.push and form != "hf":
            raise ConfigError(f"--push: only --format hf goes to the hub, not {form}")


def chosen(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of outputs.

    Raises:
        ConfigError: one of them is not known.
    """
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--outputs {unknown[0]}: must be among {', '.join(known)}")
    return names


def parse_list(text: str, flag: str) -> tuple[str, ...]:
    """Return the words of a list with commas or spaces.

    Raises:
        ConfigError: it is empty.
    """
    words: Sequence[str] = text.replace(",", " ").split()
    if not words:
        raise ConfigError(f"{flag}: name at least one")
    return tuple(dict.fromkeys(words))
