"""Where the attention of the runs of docs/evidence.md lies, block by block, and whether that is on objects.

    python benchmarks/attention_maps.py --work WORK --data DATA [--sets cifar10] [--out FILE.json]

WORK and DATA are those of `evidence.py`, whose run folders still hold their weights; rows that are in --out already are
kept. Three things are measured of every run, and of the untrained network of each seed of `mst`:

- of the importance (attention of the CLS token in the last block) in 500 validation images, at the size of the
  training's global crops: the share of its variance that a patch's place explains, the corners' and the border's mean
  beside that of all patches, the share of the patches it is spread over (exp of its entropy), and its rank correlation
  with the patch's own contrast, the deviation of its pixels;
- of the objects in 100 photographs of `coco_mini`: the Jaccard of 60 % of the attention of each block (CLS query; all
  patches as queries), of the best head of the last block in each image (as DINO reports it), and of the cut between
  patch tokens, each with that of a box in the middle of the same area. "Best block" in the table is chosen afterwards;
- of its position embeddings: their norm in the corners beside the mean norm; importance in the corners and in the
  middle when the embeddings are moved by half of the grid, so that those of the corners stand in the middle; and the
  same, and the Jaccard of the last block, when every patch has their mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from evidence import SETS, DataSet
from scipy.stats import spearmanr
from torch import Tensor

from mst.data.sources import even_positions
from mst.evaluate.coco.reading import find_coco, read_coco
from mst.evaluate.common.features import frozen
from mst.evaluate.common.protocol import squash
from mst.evaluate.objectness.choosing import by_cut, by_mass
from mst.evaluate.objectness.evaluation import MASS
from mst.evaluate.objectness.objects import ObjectImage, coco_objects
from mst.evaluate.objectness.scores import Patches, score_image
from mst.model.attention import cls_attention, queries_keys_values, received_attention
from mst.workflows.image_input import image_input
from mst.workflows.subject import RANDOM, ImageOptions, Subject, load_subject

IMAGES, OBJECT_IMAGES, BATCH = 500, 100, 100
CORNERS = ([0, 0, -1, -1], [0, -1, 0, -1])
"""Places of a grid."""
Numbers = dict[str, float]


def place_numbers(importance: Tensor, contrast: Tensor, grid: tuple[int, int]) -> Numbers:
    """Return what the importance [n, N] of images depends on, beside the patches' contrast [n, N]."""
    mean = importance.mean(0)
    relative = (mean / mean.mean()).reshape(grid)
    border = torch.ones(grid, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    share = importance / importance.sum(1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(1)
    ranked = [spearmanr(*pair).statistic for pair in zip(importance.numpy(), contrast.numpy(), strict=True)]
    return {
        "place": float(mean.var(correction=0) / importance.var(correction=0)),
        "corners": float(relative[CORNERS].mean()),
        "border": float(relative[border].mean()),
        "spread": float(entropy.exp().mean() / importance.shape[1]),
        "contrast": float(np.mean(ranked)),
    }


def attention_maps(subject: Subject, image: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the attention that patches of an image [C, H, W] receive [h, w]: in each block, and by head in the last."""
    network: Any = subject.backbone
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in network.blocks]
    grid, prefix = network.tokens(image[None]).grid, network.model.num_prefix_tokens
    for hook in hooks:
        hook.remove()
    for number, (block, x) in enumerate(zip(network.blocks, inputs, strict=True), 1):
        q, k, _ = queries_keys_values(block.attn, block.norm1(x), None)  # [1, A, T, d]
        yield f"CLS, block {number}", cls_attention(q, k, block.attn.scale)[0, prefix:].reshape(grid)
        received = received_attention(q[:, :, prefix:], k, block.attn.scale)[0, prefix:]
        yield f"patches, block {number}", received.reshape(grid)
    for head in range(q.shape[1]):
        attended = cls_attention(q[:, head : head + 1], k[:, head : head + 1], block.attn.scale)[0, prefix:]
        yield f"head {head}", attended.reshape(grid)


def object_numbers(subject: Subject, objects: Sequence[ObjectImage], size: tuple[int, int]) -> dict[str, Numbers]:
    """Return Jaccard, its standard error, and that of a box in the middle, of every way to choose patches."""
    found: dict[str, list[tuple[float, float]]] = {}

    def scored(patches: Patches, item: ObjectImage) -> tuple[float, float]:
        score = score_image("", patches, item)
        return score.jaccard or 0.0, score.jaccard_centre or 0.0

    transform = subject.transform(ImageOptions(size=size))
    for item in objects:
        image = squash(item.image, transform)
        heads = []
        for name, attended in attention_maps(subject, image):
            pair = scored(by_mass(attended, MASS).patches, item)
            heads.append(pair) if name.startswith("head") else found.setdefault(name, []).append(pair)
        found.setdefault("best head", []).append(max(heads))
        tokens = subject.backbone.tokens(image[None])
        found.setdefault("cut", []).append(scored(by_cut(tokens.patches[0].float(), tokens.grid).patches, item))
    return {
        name: {
            "jaccard": 100 * statistics.fmean(jaccard for jaccard, _ in pairs),
            "jaccard_se": 100 * statistics.stdev(jaccard for jaccard, _ in pairs) / len(pairs) ** 0.5,
            "jaccard_centre": 100 * statistics.fmean(centre for _, centre in pairs),
        }
        for name, pairs in found.items()
    }


def validation_images(folder: Path) -> list[Path]:
    """Return paths of images of a labelled folder that no run learned from, spread over its classes."""
    part = next(path for path in (folder / "val", folder / "test") if path.is_dir())
    paths = sorted(path for path in part.rglob("*") if path.is_file())
    return [paths[place] for place in even_positions(len(paths), IMAGES)]


@dataclass(frozen=True)
class Measured:
    """A network and what it is measured on.

    Attributes:
        subject: the network.
        images: of its validation set, as its input [n, C, H, W].
        objects: photographs with masks.
        size: (H, W) at which these are read.
    """

    subject: Subject
    images: Tensor
    objects: Sequence[ObjectImage]
    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """The patches of `images`."""
        return self.subject.backbone.grid(self.images)

    def importance(self) -> Tensor:
        """Return the importance [n, N] of `images`."""
        received = [self.subject.backbone.tokens(part).importance for part in torch.split(self.images, BATCH)]
        return torch.cat([part for part in received if part is not None])

    def contrast(self) -> Tensor:
        """Return the deviation of the pixels of each patch [n, N], mean over channels."""
        patch = self.subject.backbone.patch_size
        pixels = F.unfold(self.images, patch, stride=patch).transpose(1, 2)  # [n, N, C * P * P]
        return pixels.reshape(*pixels.shape[:2], self.images.shape[1], -1).std(3).mean(2)


def prepare(path: str, which: DataSet, data: Path, seed: int) -> Measured:
    """Load a run folder, or its untrained network, and what it is measured on."""
    subject = load_subject(path, device="cpu", seed=seed)
    make = image_input(subject)
    images = torch.stack([make(path) for path in validation_images(data / which.folder)])
    coco = coco_objects(read_coco(*find_coco(str(data / "coco_mini"), "val"))).evenly(OBJECT_IMAGES)
    return Measured(subject, images, [coco.read(index) for index in range(len(coco))], which.objects)


def place(given: Measured) -> Numbers:
    """Return what the importance depends on."""
    return place_numbers(given.importance(), given.contrast(), given.grid)


def objects(given: Measured) -> dict[str, Numbers]:
    """Return how well each way to choose patches finds objects."""
    return object_numbers(given.subject, given.objects, given.size)


def positions(given: Measured) -> Numbers:
    """Return what other position embeddings change."""
    embedding = given.subject.backbone.model.pos_embed.data  # [1, prefix + N, D]
    own, grid = embedding[:, -math.prod(given.grid) :], given.grid
    kept = own.clone()
    norms = kept.norm(dim=2).reshape(grid)
    found = {"norm_corners": float(norms[CORNERS].mean() / norms.mean())}
    half = (grid[0] // 2, grid[1] // 2)
    changed = {
        "moved": kept.reshape(1, *grid, -1).roll(half, (1, 2)).flatten(1, 2),
        "alike": kept.mean(1, keepdim=True).expand_as(kept),
    }
    middle = (slice((grid[0] - 1) // 2, grid[0] // 2 + 1), slice((grid[1] - 1) // 2, grid[1] // 2 + 1))
    for name, values in changed.items():
        own.copy_(values)
        relative = given.importance().mean(0).reshape(grid)
        relative = relative / relative.mean()
        found |= {f"{name}_corners": float(relative[CORNERS].mean()), f"{name}_middle": float(relative[middle].mean())}
    last = objects(given)
    found |= {f"alike_{name}": value for name, value in last[_last_block(last)].items()}
    own.copy_(kept)
    return found


MEASURES: dict[str, Callable[[Measured], Any]] = {"place": place, "objects": objects, "positions": positions}


def _last_block(found: Mapping[str, Numbers]) -> str:
    return [name for name in found if name.startswith("CLS")][-1]


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line an arm of each set: means over its seeds."""
    titles = ("place", "corners", "border", "spread", "contrast")
    moves = ("norm_corners", "moved_middle", "alike_corners", "alike_middle", "alike_jaccard", "alike_jaccard_centre")
    chosen = ("last block", "best block", "best head", "cut")
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for run in sorted(rows):
        arms.setdefault(run.rpartition("/")[0], []).append(rows[run])
    columns = ("arm", "seeds", *titles, *moves, *chosen)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for arm, seeds in arms.items():
        numbers = [f"{statistics.fmean(row['place'][title] for row in seeds):.2f}" for title in titles]
        numbers += [f"{statistics.fmean(row['positions'][title] for row in seeds):.2f}" for title in moves]
        pairs = [[_chosen(row["objects"], name) for row in seeds] for name in chosen]
        cells = [" / ".join(f"{statistics.fmean(each):.1f}" for each in zip(*pair, strict=True)) for pair in pairs]
        lines.append(" | ".join([f"| {arm}", str(len(seeds)), *numbers, *cells]) + " |")
    return lines


def _chosen(found: Mapping[str, Numbers], name: str) -> tuple[float, float]:
    """Return the Jaccard of a way to choose patches, and that of the box in the middle beside it."""
    best = max((each for each in found if "block" in each), key=lambda each: found[each]["jaccard"])
    numbers = found[{"last block": _last_block(found), "best block": best}.get(name, name)]
    return numbers["jaccard"], numbers["jaccard_centre"]


def main() -> None:
    """Parse, measure what is missing, write, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention_maps.json")
    options = parser.parse_args()
    rows: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for record in sorted(options.work.glob("*/*/seed_*/evidence.json")):
        name, arm, seed = record.parent.relative_to(options.work).parts
        wanted = {f"{name}/{arm}/{seed}": str(record.parent)}
        if arm == "mst":
            wanted[f"{name}/untrained/{seed}"] = f"{RANDOM}{record.parent}"
        for run, path in wanted.items():
            row = rows.get(run, {})
            missing = [measure for measure in MEASURES if measure not in row]
            if name not in options.sets or not missing:
                continue
            given = prepare(path, SETS[name], options.data, int(seed.removeprefix("seed_")))
            with frozen(given.subject.backbone):
                rows[run] = {**row, **{measure: MEASURES[measure](given) for measure in missing}}
            options.out.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
            print(run, flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
