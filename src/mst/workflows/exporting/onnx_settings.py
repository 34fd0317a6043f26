"""What an ONNX export is asked for: types of numbers, images to calibrate on, images to compare decisions on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mst.errors import ConfigError
from mst.export.names import TYPES
from mst.runtime.seeding import check_seed

FEWEST_CALIBRATION = 8
"""Images below which no range of int8 is taken from."""


@dataclass(frozen=True)
class OnnxSettings:
    """How ONNX files are made and what they are compared on.

    Attributes:
        types: files to write: fp32, fp16, int8.
        calibration: images that say the ranges of int8; needed for it.
        calibration_images: how many of them are used, drawn by `seed`.
        knn: labelled images, as for `mst evaluate knn`: how many of its decisions stay is measured; None = not.
        seed: of the draw of calibration images.
        preprocess: the graph takes stored pixels of any size, uint8 [B, H, W, C], and prepares them as evaluations do.
    """

    types: tuple[str, ...] = ("fp32",)
    calibration: str | Path | None = None
    calibration_images: int = 64
    knn: str | Path | None = None
    seed: int = 0
    preprocess: bool = False

    def check(self, form: str) -> None:
        """Refuse what does not go together, or with a format.

        Raises:
            ConfigError: names the option.
        """
        if form != "onnx":
            self.refuse(f"--format {form}")
        if unknown := [name for name in self.types if name not in TYPES]:
            raise ConfigError(f"--types {unknown[0]}: must be among {', '.join(TYPES)}")
        if "int8" in self.types and not self.calibration:
            raise ConfigError(
                "--types int8 needs --calibration PATH: images like those it will see, of which its ranges are"
            )
        if self.calibration and "int8" not in self.types:
            raise ConfigError(f"--calibration {self.calibration}: is for --types int8")
        if self.calibration_images < FEWEST_CALIBRATION:
            raise ConfigError(f"--calibration-images {self.calibration_images}: must be at least {FEWEST_CALIBRATION}")
        check_seed(self.seed)

    def refuse(self, other: str) -> None:
        """Refuse all of it beside `other`.

        Raises:
            ConfigError: names the option.
        """
        changed = {"types": self.types != ("fp32",), "calibration": self.calibration, "knn": self.knn}
        changed["preprocess"] = self.preprocess
        for name in (name for name, given in changed.items() if given):
            raise ConfigError(f"--{name} is for --backbone with --format onnx, not for {other}")
