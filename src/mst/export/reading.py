"""What was exported as a backbone again, computed by the program it was exported for, for evaluation and embedding."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mst.errors import CheckpointError, UsageError
from mst.export.classifier import Head, load_with_classifier, stored
from mst.export.names import TYPES, file_name
from mst.export.native.weights import load_native
from mst.export.network import OUTPUTS
from mst.export.onnx_file import INFORMATION, run_session, session
from mst.export.timm_folder import WEIGHTS
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.backbone_file import check_statistics, load_backbone
from mst.model.tokens import Summary, Tokens
from mst.weights.description import BadDescription, part, words

PARITY = "parity.json"
FILES = (WEIGHTS, "backbone.safetensors", *map(file_name, TYPES), "backbone.pt2", "classifier.onnx", "classifier.pt2")
"""What an exported folder holds; the first of them counts."""
GRAPHS = (".onnx", ".pt2")
Run = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Graph:
    """A file that another program computes.

    Attributes:
        file: its path.
        said: all that it says of itself.
        spec: of its backbone.
        metadata: of its backbone.
        run: normalised images [B, C, H, W] on the CPU (and what else its inputs are) -> outputs by name.
        names: of the outputs.
    """

    file: Path
    said: dict[str, Any]
    spec: BackboneSpec
    metadata: dict[str, Any]
    run: Run
    names: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Type of its numbers; what does not say it is older, and fp32."""
        return str(self.said.get("type", "fp32"))


class ExportedBackbone(Backbone):
    """A backbone whose numbers come from another program; it cannot be trained.

    Attributes:
        digest: of its file, so that features kept of another file are not taken for its own.
        computed_in: the type of its numbers: fp32, fp16, int8.
    """

    digest: Tensor

    def __init__(self, graph: Graph, embed_dim: int) -> None:
        super().__init__(graph.spec, nn.Identity(), embed_dim=embed_dim, mask_dim=1)
        self._run, self._names, self._file = graph.run, graph.names, graph.file
        self.metadata, self.computed_in = graph.metadata, graph.kind
        self.mask_token.requires_grad_(False)
        self.register_buffer(
            "digest", torch.tensor(list(hashlib.sha256(graph.file.read_bytes()).digest()), dtype=torch.uint8)
        )

    @property
    def blocks(self) -> list[Any]:
        """None: the blocks are inside the other program."""
        return []

    def _tokens(self, images: Tensor, mask: Tensor | None, importance: bool) -> Tokens:
        found = self._found(images, mask, ("patch_tokens", *(["importance"] if importance else [])))
        grid = self.grid(images)
        return Tokens(found["features"], found["patch_tokens"], grid, found.get("importance"), found.get("cls_token"))

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
            words = ",".join(OUTPUTS[:3])
            raise UsageError(
                f"{self._file} gives no {missing[0] if missing else 'masked images'}: export it with --outputs {words}"
            )
        found = self._run(images.detach().cpu().float())
        return {name: tensor.to(images.device) for name, tensor in found.items()}


def is_exported(path: Path) -> bool:
    """Whether a path is a folder that `mst export` wrote, or one of its files that another program computes."""
    if path.is_dir():
        return (path / PARITY).is_file()
    return path.suffix in GRAPHS and path.is_file()


def graph_in(place: Path, stem: str) -> Path | None:
    """Return the file of a graph: the place itself, or the file of that stem in a folder; None = there is none."""
    files = [place] if place.suffix in GRAPHS else [place / f"{stem}{ending}" for ending in GRAPHS]
    return next((file for file in files if file.is_file()), None)


def load_exported(path: Path) -> tuple[Backbone, Path]:
    """Return what was exported, in evaluation mode on the CPU, and the file of its weights.

    Args:
        path: a folder of `mst export`, or its `.onnx` or `.pt2` file. Of a folder with several ONNX files the one with
            the most bits counts.

    Raises:
        CheckpointError: a file is missing or damaged.
        MissingExtra: the program that computes it is not installed.
    """
    file = weights_or_graph(path)
    if file.suffix in GRAPHS:
        graph = open_graph(file)
        return ExportedBackbone(graph, _width(graph)).eval(), file
    return load_weights(file)[0], file


def load_weights(file: Path) -> tuple[Backbone, Head | None]:
    """Return the backbone of a file of weights, under timm's names or transformers', and its classifier if it has one.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not file.is_file() or not file.with_suffix(".json").is_file():
        return load_backbone(file), None  # says what is missing
    classes, kind = stored(file)
    if kind is not None:
        return load_native(file, kind, classes)
    return load_with_classifier(file) if classes else (load_backbone(file), None)


def weights_or_graph(path: Path) -> Path:
    """Return the file of an export: the path itself, or the one in a folder.

    Raises:
        CheckpointError: there is none in the folder.
    """
    if not path.is_dir():
        return path
    candidates = [path / name for name in FILES]
    file = next((one for one in candidates if one.is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} holds none of {', '.join(FILES)}: export it again")
    return file


def open_graph(file: Path) -> Graph:
    """Return an exported graph, ready to compute.

    Raises:
        CheckpointError: the file is damaged, or does not say what it is.
        MissingExtra: the program that computes it is not installed.
    """
    return _onnx(file) if file.suffix == ".onnx" else _program(file)


def _onnx(file: Path) -> Graph:
    running = session(file, threads=torch.get_num_threads())
    said = running.get_modelmeta().custom_metadata_map.get(INFORMATION)
    names = tuple(output.name for output in running.get_outputs())
    values, spec, metadata = _described(said, file)
    takes_pixels = running.get_inputs()[0].type == "tensor(uint8)"

    def run(images: Tensor, *more: Tensor) -> dict[str, Tensor]:
        if takes_pixels and images.shape[-2:] != spec.image_size:
            height, width = spec.image_size
            raise UsageError(f"{file} cuts every image to {height}x{width}: leave the size away")
        return run_session(running, _pixels(images, metadata) if takes_pixels else images, names, *more)

    return Graph(file, values, spec, metadata, run, names)


def _pixels(images: Tensor, metadata: dict[str, Any]) -> Tensor:
    """Return what normalised images [B, C, H, W] were made of, uint8 [B, H, W, C]: a graph with preprocessing takes
    these, and leaves images of its own size as they are.
    """
    mean, std = (torch.tensor(metadata[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    levels = ((images * std + mean) * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _program(file: Path) -> Graph:
    try:
        text = file.with_suffix(".json").read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(file).module()
    except Exception as error:  # a damaged archive raises many classes
        raise CheckpointError(f"cannot read {file}: {' '.join(str(error).split())[:200]}; export it again") from error
    said, spec, metadata = _described(text, file)
    try:
        names = words(said, "outputs", most=len(said["outputs"]))
    except (BadDescription, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {file.with_suffix('.json')}: {error}; export it again") from error

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, module(*inputs), strict=True))

    return Graph(file, said, spec, metadata, run, names)


def _described(text: str | None, file: Path) -> tuple[dict[str, Any], BackboneSpec, dict[str, Any]]:
    """Return what a file says it is: all of it, its spec and its metadata.

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
    return values, spec, metadata


def _width(graph: Graph) -> int:
    """Return D.

    Raises:
        CheckpointError: the graph has no features.
    """
    if "features" not in graph.names:
        raise CheckpointError(f"{graph.file} gives no features: export it with --outputs features")
    with torch.no_grad():
        found = graph.run(torch.zeros(1, graph.spec.channels, *graph.spec.image_size))
    return int(found["features"].shape[1])
