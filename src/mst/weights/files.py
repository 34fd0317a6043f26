"""Weights of any program from a file or folder: nested values with tensors in them, read without running code."""

from __future__ import annotations

import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from mst.errors import CheckpointError
from mst.weights.tensors import other_shapes, unusable
from mst.weights.unpickling import PICKLE_MODULE

Built = TypeVar("Built")
SAFETENSORS = ".safetensors"
INDEX = "model.safetensors.index.json"
FOLDER_FILES = ("model.safetensors", INDEX, "pytorch_model.bin")
"""Files of weights in a folder of Hugging Face or timm; the first that is there is read."""
SCRIPT = "constants.pkl"
"""A member that only TorchScript archives have; torch would run such an archive."""
ARCHIVE = b"PK\x03\x04"
"""First bytes by which torch.load recognises an archive."""
REASON = 150
"""Characters of a library's message that are shown, at most."""


def read_weights(path: Path) -> Any:
    """Return what a file or folder of weights holds, on the CPU.

    Args:
        path: `.safetensors`, what `torch.save` wrote under any other ending, or a folder of Hugging Face or timm.

    Raises:
        CheckpointError: it is not there, damaged, withheld by the system, or cannot be read without running code.
    """
    try:
        if path.is_dir():
            path = _in_folder(path)
        if not path.is_file():
            raise CheckpointError(f"{path} is no file: name a file of weights")
        if path.name == INDEX:
            return _read_shards(path)
        return _load_file(path) if path.suffix == SAFETENSORS else _read_torch(path)
    except OSError as error:
        raise CheckpointError(f"cannot read weights from {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot read weights from {path}: it is damaged, or no safetensors file; copy or fetch it again"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"cannot read weights from {path}: it claims more memory than there is") from error


def load_exactly(path: Path, build: Callable[[], Built], module_of: Callable[[Built], nn.Module], remedy: str) -> Built:
    """Return what `build` makes, with the weights of a `.safetensors` file that fits it exactly.

    The network is first built without memory and compared with the file's header, so that a small file cannot claim a
    large network.

    Args:
        path: of the weights.
        build: makes the network with any weights.
        module_of: the part of it whose state dictionary the file holds.
        remedy: what to do with a damaged file, for the messages.

    Raises:
        CheckpointError: the file is damaged, or its tensors are not exactly the network's, dense, floating and finite.
    """
    try:
        with _utf8_name(path) as readable, safe_open(readable, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        with torch.device("meta"):
            expected = module_of(build()).state_dict()
        reason = other_shapes(shapes, {name: value.shape for name, value in expected.items()})
        if reason is not None:
            raise CheckpointError(f"{path} does not fit its description: {reason}; {remedy}")
        weights = _load_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {path}: {error}; {remedy}") from error
    for name, like in expected.items():
        if (reason := unusable(weights[name], like)) is not None:
            raise CheckpointError(f"{path}: {name} {reason}; {remedy}")
    built = build()
    module_of(built).load_state_dict(weights)
    return built


@contextmanager
def _utf8_name(path: Path) -> Iterator[Path]:
    """Yield a name that safetensors can open: the file's own; if that is not UTF-8, one by its file descriptor."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def _load_file(path: Path) -> dict[str, torch.Tensor]:
    with _utf8_name(path) as name:
        return load_file(name)


def _in_folder(folder: Path) -> Path:
    found = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds no backbone.safetensors, {' or '.join(FOLDER_FILES)}: name a file")
    return found


def _read_shards(path: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index names."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(names.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of weights: fetch it again") from error
    if not all(isinstance(name, str) and name == Path(name).name for name in files):
        raise CheckpointError(f"{path} names files outside its folder: fetch it again")
    tensors: dict[str, Any] = {}
    for name in files:
        tensors |= _load_file(path.with_name(name))
    missing = sorted(names.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{path} names {len(missing)} tensors that its files lack (first {missing[0]})")
    return tensors


def _read_torch(path: Path) -> Any:
    """Return what `torch.save` wrote.

    Raises:
        CheckpointError: it is something else.
    """
    with path.open("rb") as file:
        archive = file.read(len(ARCHIVE)) == ARCHIVE
    if archive:
        _check_archive(path)
    elif tarfile.is_tarfile(path):
        raise CheckpointError(f"cannot read weights from {path}: it is a tar archive; name a file inside")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, "cpu", pickle_module=PICKLE_MODULE, weights_only=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever bytes that are no weights raise
        said = "" if isinstance(error, KeyError) else (str(error).splitlines() or [""])[0][:REASON]
        reason = said or type(error).__name__
        raise CheckpointError(
            f"cannot read weights from {path}: it is damaged, or nothing that torch.save wrote ({reason})"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse archives that torch would run, and archives that grow when they are unpacked.

    Raises:
        CheckpointError: it is one.
    """
    try:
        with _utf8_name(path) as readable:
            names = torch._C.PyTorchFileReader(str(readable)).get_all_records()  # as torch.load looks at it
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (RuntimeError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"cannot read weights from {path}: it is damaged, or no file of torch.save") from error
    if SCRIPT in names:
        raise CheckpointError(f"{path} is a TorchScript program, which would be run: save its state_dict instead")
    if packed:
        raise CheckpointError(f"{path} is a compressed archive, not what torch.save writes: unpack it first")
