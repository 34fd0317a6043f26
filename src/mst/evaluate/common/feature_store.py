"""Features for the evaluators: computed by the backbone, or read from a folder where an evaluation before kept them.

A file holds the global features of the last blocks, one block after the other: k-NN and retrieval map the last one into
memory, a linear probe finds the others in the same file. It is used only if weights, image files, transform and
precision are the same and its bytes are those that were written. Otherwise features are computed anew, and a warning
says what is different. Of several processes the first one writes, and all compute anew unless all can use what is kept.
Letters: n images, D features of a block, b blocks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mst.data.value_range import ValueRanges
from mst.errors import RunFailure, UsageError
from mst.evaluate.common.features import Features, FeatureSettings, device_of, extract_features
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.common.pooling import Pool, pooled
from mst.evaluate.common.protocol import ImageTransform
from mst.parallel.world import World
from mst.runtime.device import select_precision
from mst.runtime.logging import info, warn
from mst.runtime.storage.files import check_folder, may_write, write_atomic

if TYPE_CHECKING:
    from mst.model.backbone import Backbone

KEPT_BLOCKS = 4
"""A file holds at least so many blocks: those that the linear probe takes."""
FORMAT = 2
DIFFERENT = {
    "format": "another version of mst",
    "weights": "another backbone",
    "images": "other images",
    "contents": "other contents of the images",
    "transform": "another size, cut or normalisation",
    "values": "another value range",
    "described": "another description of the backbone's images",
    "precision": "another precision or device",
    "pool": "other parts of the tokens",
}
"""Parts of a file's key -> what differs if the part does, for the warning."""


class LastBlocks:
    """The features of the last blocks: images [B, C, H, W] -> [B, b, D], or [B, b, p D] of p parts side by side."""

    def __init__(self, blocks: int, pool: Pool = ("cls",)) -> None:
        self.blocks, self.pool = blocks, pool

    def __call__(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the features, shallowest block first; of a backbone with fewer blocks, those of all.

        What another program computes (`mst.export.reading`) has no blocks to look into: it gives the last features.

        Raises:
            UsageError: patch tokens are asked of such a program.
        """
        if hasattr(backbone, "computed_in"):
            if self.pool != ("cls",):
                raise UsageError(f"--pool {' '.join(self.pool)}: this file gives features alone, no patch tokens")
            features: Tensor = backbone(images)  # [B, D]
            return features[:, None]
        return torch.stack([pooled(tokens, self.pool) for tokens in backbone.intermediate(images, self.blocks)], dim=1)


class FeatureMemory:
    """Features in memory, for an evaluation that is repeated with several draws: each image's are computed once.

    Attributes:
        kept: (part, blocks, pool) -> position of an image -> its features [b, D], or why it is unreadable.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, Pool], dict[int, Tensor | str]] = {}


@dataclass(frozen=True)
class FeatureSource:
    """Where an evaluator gets features.

    Attributes:
        backbone: its mode is restored afterwards.
        transform: uint8 image -> input of the backbone.
        settings: batch size, threads and compute type.
        folder: where features are kept; None = nowhere.
        memory: for repeated reads, in place of a folder.
        pool: what of the tokens of a block is its features.
    """

    backbone: Backbone
    transform: ImageTransform
    settings: FeatureSettings
    folder: Path | None = None
    memory: FeatureMemory | None = None
    pool: Pool = ("cls",)

    def __post_init__(self) -> None:
        if self.folder is not None:
            check_folder(self.folder, "--features")

    @staticmethod
    def kept_in(
        place: Path | FeatureMemory | None,
        backbone: Backbone,
        transform: ImageTransform,
        settings: FeatureSettings,
        pool: Pool = ("cls",),
    ) -> FeatureSource:
        """Return a source with a folder, a memory, or neither."""
        if isinstance(place, FeatureMemory):
            return FeatureSource(backbone, transform, settings, memory=place, pool=pool)
        return FeatureSource(backbone, transform, settings, place, pool=pool)

    def read(self, part: str, images: ImageSet, chosen: Sequence[int] | None = None, *, blocks: int = 1) -> Features:
        """Return the features [n, b*D] of a set's readable images, in its order.

        Args:
            part: "training" or "validation"; also the stem of the kept files.
            images: the whole set.
            chosen: positions of the images that are wanted, ascending; None = all.
            blocks: how many last blocks, their features side by side, shallowest first.

        Raises:
            DataError: too many images cannot be read.
            RunFailure: no room for the file.
        """
        if self.memory is not None:
            return self._remembered(self.memory, part, images, chosen, blocks)
        key = self._key(images) if self.folder is not None else None
        if self.folder is not None and may_write():
            _clear(self.folder, part, keep=_noted_file(self.folder / f"{part}.json"))
        if self.folder is not None and key is None:
            warn(f"{part} features are not kept: these images are no files")
        if key is None:
            wanted = images if chosen is None else images.subset(chosen)
            found = self._extract(wanted, blocks, part)
            return Features(found.features.flatten(1), found.labels, found.names, found.positions, found.unreadable)
        kept = self._kept(part, images, key, blocks)
        all_can_use_it = all(World.current().collect(kept is not None))
        if kept is None or not all_can_use_it:
            kept = self._keep(part, images, key, blocks)
        stored, missing = kept
        return _select(stored[-blocks:], missing, images, chosen)

    def _remembered(
        self, memory: FeatureMemory, part: str, images: ImageSet, chosen: Sequence[int] | None, blocks: int
    ) -> Features:
        """Return features as `read`; each image's are computed once."""
        kept, wanted = (
            memory.kept.setdefault((part, blocks, self.pool), {}),
            range(len(images)) if chosen is None else chosen,
        )
        new = [place for place in wanted if place not in kept]
        if new:
            found = self._extract(images.subset(new), blocks, part)
            rows: dict[int, Tensor] = dict(zip(found.positions, found.features, strict=True))
            reasons = iter(found.unreadable)
            kept |= {place: rows[index] if index in rows else next(reasons) for index, place in enumerate(new)}
        features = {place: row for place in wanted if isinstance(row := kept[place], Tensor)}
        places = list(features)
        return Features(
            torch.stack([row.flatten() for row in features.values()]),
            images.labels[places],
            tuple(images.name(place) for place in places),
            tuple(index for index, place in enumerate(wanted) if place in features),
            tuple(why for place in wanted if isinstance(why := kept[place], str)),
        )

    def _extract(
        self, images: ImageSet, blocks: int, part: str, place: Callable[[tuple[int, ...]], Tensor] = torch.empty
    ) -> Features:
        function, title = LastBlocks(blocks, self.pool), f"{part} features"
        return extract_features(
            self.backbone, images, self.transform, function, self.settings, title=title, place=place
        )

    def _key(self, images: ImageSet) -> dict[str, Any] | None:
        """Return what the features depend on; None where the images are no files."""
        listed, files = hashlib.sha256(), 0
        try:
            for path in images.images.files():
                state, files = os.stat(path), files + 1
                listed.update(os.fsencode(f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}\n"))
        except OSError:
            return None
        if not files:
            return None
        device = device_of(self.backbone)
        compute, _ = select_precision(self.settings.precision, device)
        return {
            "format": FORMAT,
            "weights": weights_hash(self.backbone),
            "images": listed.hexdigest(),
            "contents": images.fingerprint().digest,
            "described": json.loads(json.dumps(self.backbone.metadata, default=str)),
            "values": images.scale.to_json() if isinstance(images.scale, ValueRanges) else {},
            "transform": json.loads(json.dumps(asdict(self.transform))),
            "precision": f"{compute} on {device.type}",
            "pool": list(self.pool),
        }

    def _kept(
        self, part: str, images: ImageSet, key: Mapping[str, Any], blocks: int
    ) -> tuple[Tensor, dict[int, str]] | None:
        """Return kept features [b, n, D] and what was unreadable; None, after a warning, if they cannot be used."""
        assert self.folder is not None
        note = self.folder / f"{part}.json"
        if not note.exists():
            return None
        try:
            known = json.loads(note.read_bytes())
            was = {"pool": ["cls"], **known["key"]}  # notes of older versions name no parts
            changed = [word for name, word in DIFFERENT.items() if was.get(name) != key[name]]
            missing = {int(place): str(why) for place, why in known["unreadable"]}
            if known["blocks"] < blocks:
                changed.append("fewer blocks")
            if not changed:
                stored = torch.from_numpy(np.load(self.folder / known["file"], mmap_mode="c"))
                if stored.ndim != 3 or stored.shape[1] != len(images) or stored.dtype != torch.float32:
                    raise ValueError("a shape that does not fit")
                for block in range(-blocks, 0) if blocks < len(stored) else range(-len(stored), 0):
                    if _digest(stored[block]) != known["sha256"][block]:
                        raise ValueError(f"{known['file']} is not what was written")
        except Exception as error:  # damaged bytes may raise anything: compute anew
            warn(f"{note} cannot be used ({' '.join(str(error).split())}): its features are computed anew")
            return None
        if changed:
            warn(f"{note} was made with {' and '.join(changed)}: its features are computed anew")
            return None
        if len(missing) > self.settings.max_unreadable_share * len(images):
            return None  # computing them anew reports it
        info(f"{part} features are read from {self.folder / known['file']}")
        return stored, missing

    def _keep(self, part: str, images: ImageSet, key: Mapping[str, Any], blocks: int) -> tuple[Tensor, dict[int, str]]:
        """Compute the features [b, n, D], write them, and return them with what was unreadable."""
        assert self.folder is not None
        blocks = max(blocks, KEPT_BLOCKS)
        if not may_write():
            found = self._extract(images, blocks, part)
            return found.features.transpose(0, 1), _missing(found, images)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{part}-{hashlib.sha256(json.dumps([key, blocks]).encode()).hexdigest()[:16]}.npy"
        aside = self.folder / f".{name}.{os.getpid()}-{threading.get_ident()}.tmp"
        with _claimed(aside):
            found = self._extract(images, blocks, part, lambda shape: _mapped(aside, shape))
            stored = torch.from_numpy(np.load(aside, mmap_mode="c"))
            missing = _missing(found, images)
            digests = [_digest(block) for block in stored]
            note = {"key": key, "blocks": blocks, "file": name, "sha256": digests, "unreadable": list(missing.items())}
            aside.replace(self.folder / name)
            write_atomic(self.folder / f"{part}.json", json.dumps(note, indent=2) + "\n")
        _clear(self.folder, part, keep=name)
        return stored, missing


def _missing(found: Features, images: ImageSet) -> dict[int, str]:
    """Return position -> reason of the images that gave no features."""
    read = set(found.positions)
    return dict(zip((place for place in range(len(images)) if place not in read), found.unreadable, strict=True))


@contextmanager
def _claimed(aside: Path) -> Iterator[None]:
    """Create a file and hold its lock, so that other processes leave it alone; delete it unless it was renamed."""
    file = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        aside.unlink(missing_ok=True)
        os.close(file)


KEY = 16 * "[0-9a-f]"
"""Pattern of the end of a kept file's name; files of other names belong to the user."""


def _clear(folder: Path, part: str, *, keep: str | None) -> None:
    """Delete half-written files of killed processes and features that no note names; spare what is being written."""
    for path in [*folder.glob(f".{part}-{KEY}.npy.*.tmp"), *folder.glob(f"{part}-{KEY}.npy")]:
        if path.name == keep:
            continue
        try:
            file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            continue  # its writer is at work
        finally:
            os.close(file)


def _noted_file(note: Path) -> str | None:
    """Return the file that a note names; None where it cannot be read."""
    try:
        return str(json.loads(note.read_bytes())["file"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(block: Tensor) -> str:
    """Return the SHA-256 of a block of features."""
    found = hashlib.sha256()
    found.update(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_hash(backbone: torch.nn.Module) -> str:
    """Return a SHA-256 over the architecture and every weight."""
    found = hashlib.sha256(repr(getattr(backbone, "spec", "")).encode())
    for name, weight in backbone.state_dict().items():
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _mapped(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor [n, b, D] whose memory is a new file of [b, n, D].

    Raises:
        RunFailure: there is no room for it.
    """
    count, blocks, dim = shape
    needed, free = 4 * count * blocks * dim, shutil.disk_usage(file.parent).free
    if needed > free:
        raise RunFailure(
            f"--features {file.parent} needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free: free space, or "
            "name another folder"
        )
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(blocks, count, dim))
    return torch.from_numpy(array).transpose(0, 1)


def _select(stored: Tensor, missing: Mapping[int, str], images: ImageSet, chosen: Sequence[int] | None) -> Features:
    """Return the features [n, b*D] of the chosen images that are readable.

    Args:
        stored: features by block [b, n', D]: a row for each readable image of the set, then unused rows.
        missing: position in the set -> why the image is unreadable.
        images: the set.
        chosen: positions in the set; None = all.
    """
    wanted = range(len(images)) if chosen is None else chosen
    row = {place: index for index, place in enumerate(p for p in range(len(images)) if p not in missing)}
    positions = [position for position, place in enumerate(wanted) if place in row]
    places = [wanted[position] for position in positions]
    blocks, _, dim = stored.shape
    kept = stored[:, : len(row)]
    if len(places) < len(row):
        kept = kept[:, [row[place] for place in places]]
    features = kept[0] if blocks == 1 else kept.transpose(0, 1).reshape(len(places), blocks * dim)
    return Features(
        features,
        images.labels[places],
        tuple(images.name(place) for place in places),
        tuple(positions),
        tuple(missing[place] for place in wanted if place in missing),
    )
