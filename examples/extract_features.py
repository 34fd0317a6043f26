"""Use a backbone: features of a folder, of a batch in memory, and the attention that MST masks by.

Run it as `python examples/extract_features.py [RUN]`; without a run it makes an untrained backbone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import mst
from mst.config.schema import ModelConfig
from mst.data.decoding import decode_image
from mst.data.synthetic.scenes import write_scene_folder
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.views.normalise import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def untrained(folder: Path) -> Path:
    """Save a small backbone with fresh weights, in place of one from `mst pretrain`."""
    config = ModelConfig(backbone="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2)
    spec = backbone_spec(config, image_size=(32, 32), channels=3)
    save_backbone(folder / "backbone.safetensors", build_backbone(spec), {"mean": MEAN, "std": STD})
    return folder / "backbone.safetensors"


def main(run: Path | None, folder: Path) -> None:
    """Draw images and look at them through the backbone."""
    images = folder / "images"
    write_scene_folder(images, {"train": 16}, size=32)
    path = run or untrained(folder)

    # All images below a folder, resized and normalised as the backbone's file says.
    found = mst.embed(path, images / "train", out=folder / "features.npz")
    print(f"{tuple(found.features.shape)} features of {found.names[0]}, ...")

    # A batch of your own: [B, C, H, W], sides multiples of the patch size.
    backbone = mst.load_backbone(path)
    pixels = torch.stack([decode_image(name) for name in found.names[:4]])  # [4, 3, 32, 32]
    with torch.no_grad():
        tokens = backbone.tokens(normalise(pixels, MEAN, STD))
    print(f"cls {tuple(tokens.cls.shape)}, patches {tuple(tokens.patches.shape)} on a grid of {tokens.grid}")
    assert tokens.importance is not None
    print(f"most attended patch of each image: {tokens.importance.argmax(dim=1).tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, Path(tempfile.mkdtemp(prefix="mst-example-")))
