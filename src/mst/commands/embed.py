"""`mst embed`: the features of a folder of images with their paths, as a .npz, .npy, .csv or .parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mst.evaluate.common.features import FeatureSettings
from mst.parallel.launch import wanted_here
from mst.parallel.local import run_here
from mst.paths import PathText, SourceText
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words
from mst.workflows.embedding import embed
from mst.workflows.subject import ImageOptions


@dataclass(frozen=True)
class EmbedArguments:
    """Write the global feature of every image and its path.

    Attributes:
        backbone: a run folder or a backbone file; `random:` before it means the same network with fresh weights.
        data: a folder (searched at any depth), an image, a text file of paths, or what else --data.train takes.
        out: FILE.npz with `features` [n, D] float32 and `paths` [n]; FILE.csv with a row an image (path, f0, f1, ...);
            FILE.parquet with `path` and `feature` (needs mst-pretrain[data]); or FILE.npy with the features and
            FILE.txt with the paths.
        limit: only this many images, drawn evenly from the sorted list.
        device: auto, cpu, cuda or cuda:N.
        seed: of the weights after `random:`.
        processes: on this machine, which share the work; auto = one a GPU. torchrun and srun start their own.
        json: one JSON object on stdout.
    """

    backbone: SourceText
    data: SourceText
    out: PathText
    limit: int | None = None
    device: str = "auto"
    seed: int = 0
    processes: int | Literal["auto"] = 1
    json: bool = False
    image: ImageOptions = field(default_factory=ImageOptions)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(EmbedArguments, argv, prog="mst embed")
    if a is None:
        return 0
    if (processes := wanted_here(a.processes, flag="--processes")) > 1:
        return run_here(["embed", *argv], processes)
    features = embed(
        a.backbone,
        a.data,
        out=a.out,
        limit=a.limit,
        image=a.image,
        settings=a.settings,
        device=a.device,
        seed=a.seed,
    )
    count, dim = features.features.shape
    if a.json:
        emit_json({"out": a.out, "images": count, "dim": dim, "unreadable": list(features.unreadable)})
    else:
        emit(f"{count} features of {dim} numbers in {a.out}; {len(features.unreadable)} files left out as unreadable")
    return 0
