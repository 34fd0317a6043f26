"""What was exported as a backbone again, computed by the program it was exported for, for evaluation and embedding."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mst.errors import CheckpointError, UsageError
from mst.export.network import OUTPUTS
from mst.export.onnx_file import INFORMATION, run_session, session
from mst.export.timm_folder import WEIGHTS
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.backbone_file import check_statistics, load_backbone
from mst.model.tokens import Summary, Tokens
from mst.weights.description import BadDescription, part

PARITY = "parity.json"
ONNX, PROGRAM = "backbone.onnx", "backbone.pt2"
Run = Callable[[Tensor], dict[str, Tensor]]


class ExportedBackbone(Backbone):
    """A backbone whose numbers come from another program; it cannot be trained.

    Attributes:
        digest: of its file, so that features kept of another file are not taken for its own.
    """

    digest: Tensor

    def __init__(self, spec: BackboneSpec, run: Run, names: tuple[str, ...], embed_dim: int, file: Path) -> None:
        super().__init__(spec, nn.Identity(), embed_dim=embed_dim, mask_dim=1)
        self._run, self._names, self._file = run, names, file
        self.mask_token.requires_grad_(False)
        self.register_buffer(
            "digest", torch.tensor(list(hashlib.sha256(file.read_bytes()).digest()), dtype=torch.uint8)
        )

    @property
    def blocks(self) -> list[Any]:
        """None: the blocks are inside the other program."""
        return []

    def _tokens(self, images: Tensor, mask: Tensor | None, importance: bool) -> Tokens:
        found = self._found(images, mask, ("patch_tokens", *(["importance"] if importance else [])))
        grid = self.grid(images)
        return Tokens(found["features"], found["patch_tokens"], grid, found.get("importance"))

    def _summary(self, images: Tensor, mask: Tensor | None, importance: bool) -> Summary:
        found = self._found(images, mask, ("importance",) if importance else ())
        return Summary(found["features"], self.grid(images), found.get("importance"))

    def _intermediate(self, images: Tensor, layers: int) -> list[Tokens]:
        if layers != 1:
            raise UsageError(f"{self._file} gives the last block's tokens only: use the backbone it was exported from")
        return [self._tokens(images, None, False)]

    def _found(self, images: Tensor, mask: Tensor | None, needed: tuple[str, ...]) -> dict[str, Tensor]:
        self.grid(images)
        missing = [name for name in ("features", *needed) if name not in self._names]
        if missing or mask is not None:
            words = " ".join(OUTPUTS)
            raise UsageError(
                f"{self._file} gives no {missing[0] if missing else 'masked images'}: export it with --outputs {words}"
            )
        found = self._run(images.detach().cpu().float())
        return {name: tensor.to(images.device) for name, tensor in found.items()}


def is_exported(path: Path) -> bool:
    """Whether a path is a folder that `mst export` wrote, or one of its files that another program computes."""
    if path.is_dir():
        return (path / PARITY).is_file()
    return path.suffix in {".onnx", ".pt2"} and path.is_file()


def load_exported(path: Path) -> tuple[Backbone, Path]:
    """Return what was exported, in evaluation mode on the CPU, and the file of its weights.

    Args:
        path: a folder of `mst export`, or its `.onnx` or `.pt2` file. Of a folder with several ONNX files the one in
            fp32 counts.

    Raises:
        CheckpointError: a file is missing or damaged.
        MissingExtra: the program that computes it is not installed.
    """
    if path.is_dir():
        candidates = [path / name for name in (WEIGHTS, "backbone.safetensors", ONNX, PROGRAM)]
        file = next((one for one in candidates if one.is_file()), None)
        if file is None:
            raise CheckpointError(f"{path} holds none of {', '.join(one.name for one in candidates)}: export it again")
    else:
        file = path
    if file.suffix == ".onnx":
        return _onnx(file), file
    if file.suffix == ".pt2":
        return _program(file), file
    return load_backbone(file), file


def _onnx(file: Path) -> Backbone:
    running = session(file, threads=torch.get_num_threads())
    said = running.get_modelmeta().custom_metadata_map.get(INFORMATION)
    spec, metadata = _described(said, file)
    names = tuple(output.name for output in running.get_outputs())
    width = _width({output.name: output.shape for output in running.get_outputs()}, file)
    found = ExportedBackbone(spec, lambda images: run_session(running, images, names), names, width, file)
    found.metadata = metadata
    return found.eval()


def _program(file: Path) -> Backbone:
    try:
        text = file.with_suffix(".json").read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(file).module()
    except Exception as error:  # a damaged archive raises many classes
        raise CheckpointError(f"cannot read {file}: {' '.join(str(error).split())[:200]}; export it again") from error
    spec, metadata = _described(text, file)
    names = tuple(name for name in OUTPUTS if name in json.loads(text).get("outputs", ()))

    def run(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, module(images), strict=True))

    width = int(run(torch.zeros(1, spec.channels, *spec.image_size))["features"].shape[1])
    found = ExportedBackbone(spec, run, names, width, file)
    found.metadata = metadata
    return found.eval()


def _described(text: str | None, file: Path) -> tuple[BackboneSpec, dict[str, Any]]:
    """Return what a file says it is.

    Raises:
        CheckpointError: it says nothing, or what cannot be.
    """
    try:
        values = json.loads(text) if text else None
        if not isinstance(values, dict):
            raise BadDescription("it does not say what it is")
        spec, metadata = BackboneSpec.from_json(part(values, "spec")), part(values, "metadata")
        check_statistics(metadata, spec.channels)
    except (ValueError, RecursionError, BadDescription) as error:
        raise CheckpointError(f"cannot read {file}: {error}; is it a file of `mst export`?") from error
    return spec, metadata


def _width(shapes: dict[str, Any], file: Path) -> int:
    shape = shapes.get("features")
    if not shape or not isinstance(shape[-1], int):
        raise CheckpointError(f"{file} gives no features: export it again")
    return shape[-1]
