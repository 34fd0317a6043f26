"""What every evaluation is given, whatever it measures: a backbone, data, where to work and where results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mst.evaluate.common.features import FeatureSettings
from mst.model.backbone import Backbone
from mst.paths import user_path
from mst.workflows.subject import Subject, load_subject

Data = TypeVar("Data")


@dataclass(frozen=True)
class EvaluationInput(Generic[Data]):
    """A backbone and data, as a user of the command line or of the Python API gives them.

    Attributes:
        backbone: a run folder, a backbone file, `timm:NAME`, `NAME=FILE` (a timm name and a file of weights),
            `random:` before any of them, or a module in memory.
        data: a path, or sets in memory.
        settings: batch size, threads, compute type; None = the evaluation's own.
        out: folder whose `results.jsonl` gets the row; None = the backbone's run folder, if it has one.
        device: auto, cpu, cuda or cuda:N (a module in memory stays where it is).
        seed: of every draw, and of the weights after `random:`.
    """

    backbone: str | Path | Backbone
    data: str | Path | Data
    settings: FeatureSettings | None = None
    out: str | Path | None = None
    device: str = "auto"
    seed: int = 0

    def load(self) -> Subject:
        """Return the backbone on its device.

        Raises:
            CheckpointError, UsageError: as `mst.workflows.subject.load_subject`.
        """
        return load_subject(self.backbone, out=self.out, device=self.device, seed=self.seed)

    def model_folder(self, asked: str | Path | None) -> Path | None:
        """Return where a trained model goes: `--save-model`, else `--out`, else nowhere."""
        folder = asked or self.out
        return user_path(folder) if folder else None
