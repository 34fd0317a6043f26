"""Write labelled images of many channels: synthetic scenes as a camera for colour, infra-red and depth would see them.

Run it as `python examples/multichannel_scenes.py --out DIR --channels 6`. It writes uint8 arrays [H, W, channels] to
DIR/train/<class>/ and DIR/val/<class>/; every image is a pure function of (seed, index). Then train on them:
`mst pretrain RECIPE --data.train DIR/train --data.channels 6 --monitor.knn-data DIR --out RUN`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mst.data.synthetic.scenes import CLASSES, Scene, make_scene
from mst.runtime.seeding import derive_seed

MATERIALS = 5
OWN_MATERIAL = 0.7  # how often an object is of its class's material rather than of any


def image(seed: int, index: int, size: int, channels: int) -> NDArray[np.uint8]:
    """Return one image [size, size, channels]: red, green, blue, depth, then bands of infra-red."""
    scene = make_scene(seed, index, size)
    rng = np.random.Generator(np.random.PCG64(derive_seed("bands", seed, index)))
    planes = [*scene.image, depth(scene, rng), *infra_red(scene, rng, channels - 4)]
    return np.stack(planes, axis=-1)


def depth(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return nearness [H, W]: the ground comes nearer towards the bottom, what was painted later stands in front."""
    height, width = scene.semantic_map.shape
    far, rise = rng.uniform(0.05, 0.2), rng.uniform(0.1, 0.3)
    near = np.repeat(far + rise * np.linspace(0, 1, height)[:, None], width, axis=1)  # [H, W]
    steps = np.sort(rng.uniform(0.5, 0.95, len(scene.instance_masks)))
    for mask, step in zip(scene.instance_masks, steps, strict=True):
        near[mask] = step
    return as_bytes(near + 0.03 * rng.standard_normal(near.shape))


def infra_red(scene: Scene, rng: np.random.Generator, bands: int) -> list[NDArray[np.uint8]]:
    """Return `bands` planes [H, W]: what each surface's material reflects there, which its colours do not tell."""
    spectra = np.random.Generator(np.random.PCG64(derive_seed("spectra"))).uniform(0.1, 0.9, (MATERIALS, 64))
    light = scene.image.mean(axis=0) / 255  # [H, W]
    material = np.full(light.shape, rng.integers(MATERIALS))  # [H, W]
    for mask, label in zip(scene.instance_masks, scene.object_labels, strict=True):
        drawn = rng.integers(MATERIALS)
        material[mask] = label % MATERIALS if rng.random() < OWN_MATERIAL else drawn
    shade = 0.8 + 0.4 * (light - light.mean())
    grain = 0.04 * rng.standard_normal((bands, *light.shape))
    return [as_bytes(spectra[material, band] * shade + grain[band]) for band in range(bands)]


def as_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn values in [0, 1] into bytes."""
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def main(words: Sequence[str] | None = None) -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description="Write labelled synthetic images of many channels as .npy files.")
    parser.add_argument("--out", type=Path, required=True, help="folder, made if needed")
    parser.add_argument("--channels", type=int, default=6, choices=range(4, 65), metavar="4..64")
    parser.add_argument("--train", type=int, default=2000, help="images in DIR/train")
    parser.add_argument("--val", type=int, default=500, help="images in DIR/val")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0, help="which family of scenes")
    args = parser.parse_args(words)
    index = 0
    for part, count in (("train", args.train), ("val", args.val)):
        for name in CLASSES:
            (args.out / part / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            pixels = image(args.seed, index, args.size, args.channels)
            np.save(args.out / part / CLASSES[index % len(CLASSES)] / f"{index:06d}.npy", pixels)
            index += 1
    print(f"{args.train} + {args.val} images of {args.channels} channels in {args.out}")


if __name__ == "__main__":
    main()
