"""Views on one core: multi-crop from JPEG files against the PIL/torchvision recipe, and small images from memory."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import machine
from PIL import Image, ImageFilter, ImageOps
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import transforms

from mst.config.schema import ViewsConfig
from mst.data.decoding import decode_image
from mst.data.formats.jpeg import Detail
from mst.views.multicrop import MultiCrop
from mst.views.normalise import normalise
from mst.views.parameters import least_image

LARGE = ViewsConfig(global_crops=2, local_crops=8, global_size=224, local_size=96)
SMALL = ViewsConfig(global_crops=2, local_crops=4, global_size=32, local_size=16)


def photograph(seed: int, height: int, width: int) -> Image.Image:
    """Make an image with a photograph's falling spectrum: noise at every octave, in three correlated channels."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(8):
        shape = (max(2, height >> octave), max(2, width >> octave))
        noise = random.normal(size=(*shape, 3)) + 2 * random.normal(size=(*shape, 1))
        layers = [
            Image.fromarray(noise[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1) * 2.0 ** (0.35 * octave)
    pixels -= pixels.mean()
    return Image.fromarray((128 + 55 * pixels / pixels.std()).clip(0, 255).astype(np.uint8))


def photograph_files(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEGs of 500x375 pixels, quality 90."""
    paths = [folder / f"{i:03d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        photograph(i, 375, 500).save(path, quality=90)
    return paths


def pil_recipe(config: ViewsConfig) -> Callable[[Path], list[Tensor]]:
    """Return DINO's augmentation in public torchvision transforms on PIL images, normalised float tensors out."""
    jitter = transforms.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)

    def blur(image: Image.Image) -> Image.Image:
        sigma = config.blur_sigma[0] + float(torch.rand(())) * (config.blur_sigma[1] - config.blur_sigma[0])
        return image.filter(ImageFilter.GaussianBlur(sigma))

    def pipeline(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float) -> transforms.Compose:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(config.flip),
                transforms.RandomApply([jitter], config.jitter),
                transforms.RandomGrayscale(config.grey),
                transforms.RandomApply([blur], blur_p),
                transforms.RandomApply([ImageOps.solarize], solarize_p),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            ]
        )

    assert isinstance(config.global_size, int)
    assert isinstance(config.local_size, int)
    first = pipeline(config.global_size, config.global_scale, config.blur[0], 0.0)
    other = pipeline(config.global_size, config.global_scale, config.blur[1], config.solarize)
    local = pipeline(config.local_size, config.local_scale, config.blur[2], 0.0)
    views = [first] + [other] * (config.global_crops - 1) + [local] * config.local_crops

    def run(path: Path) -> list[Tensor]:
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        return [view(image) for view in views]

    return run


def crop_all(multicrop: MultiCrop, images: list[Tensor], batch: int, *, normalised: bool = True) -> int:
    """Make the crops of all images, `batch` images per call, normalise them, and return the number of images."""
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
        for crops in multicrop.batch(chunk, generators):
            if normalised:
                normalise(crops, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return len(images)


def rates(runs: dict[str, Callable[[], object]], images: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Return images per second of processor time; repetitions are interleaved so that a busy machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repetition:  # the first is a warm-up
                seconds[name].append(time.process_time() - start)
    return {
        name: {
            "median": images / statistics.median(values),
            "lowest": images / max(values),
            "highest": images / min(values),
        }
        for name, values in seconds.items()
    }


def large(paths: list[Path], repetitions: int) -> dict[str, dict[str, float]]:
    """Measure 2+8 crops of JPEG files, decoding and normalising included; last with colours left to another device."""
    recipe, multicrop = pil_recipe(LARGE), MultiCrop(LARGE, channels=3)
    enough = Detail(*least_image(LARGE))
    decode = partial(decode_image, channels=3, enough=enough)
    decoded = [decode(path) for path in paths]

    def crops(batch: int) -> None:
        for start in range(0, len(paths), batch):
            crop_all(multicrop, [decode(path) for path in paths[start : start + batch]], batch)

    def cut(batch: int) -> None:
        for start in range(0, len(paths), batch):
            images = [decode(path) for path in paths[start : start + batch]]
            multicrop.cut(images, [torch.Generator().manual_seed(start + i) for i in range(len(images))])

    runs: dict[str, Callable[[], object]] = {
        "pil recipe": lambda: [recipe(path) for path in paths],
        "mst": partial(crops, 1),
        "mst, batches of 8": partial(crops, 8),
        "mst, batches of 32": partial(crops, 32),
        "mst, colours on the device": partial(cut, 8),
        "decoding only": lambda: [decode(path) for path in paths],
        "mst, views only": lambda: crop_all(multicrop, decoded, 8, normalised=False),
    }
    return rates(runs, len(paths), repetitions)


def small(images: list[Tensor], repetitions: int) -> dict[str, dict[str, float]]:
    """Measure 2x32 + 4x16 crops of 32 px images in memory, normalising included."""
    multicrop = MultiCrop(SMALL, channels=3)
    sizes = (1, 16, 64, 256)
    runs: dict[str, Callable[[], object]] = {
        f"mst, batches of {size}": partial(crop_all, multicrop, images, size) for size in sizes
    }
    return rates(runs, len(images), repetitions)


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of JPEGs; default: 64 generated ones of 500x375")
    parser.add_argument("--small-images", type=Path, help="folder of 32 px images; default: generated ones")
    parser.add_argument("--limit", type=int, default=64, help="most large images to use")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            paths = sorted(p for p in arguments.images.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
            paths = paths[: arguments.limit]
        else:
            paths = photograph_files(Path(folder), arguments.limit)
        if arguments.small_images:
            files = sorted(p for p in arguments.small_images.rglob("*") if p.suffix.lower() in {".png", ".jpg"})[:1024]
            little = [decode_image(p, channels=3) for p in files]
        else:
            little = [
                torch.from_numpy(np.array(photograph(i, 32, 32))).permute(2, 0, 1).contiguous() for i in range(1024)
            ]
        results = {
            "large": large(paths, arguments.repetitions),
            "small": small(little, arguments.repetitions),
        }
    for section, rows in results.items():
        print(section)
        for name, row in rows.items():
            print(f"  {name:28} {row['median']:8.1f} images/s  ({row['lowest']:.1f} - {row['highest']:.1f})")
    rows = results["large"]
    ratio = {name: row["median"] / rows["pil recipe"]["median"] for name, row in rows.items()}
    for name in ("mst", "mst, batches of 8", "mst, batches of 32", "mst, colours on the device"):
        print(f"{name} / pil recipe, one core: {ratio[name]:.2f}")
    if arguments.out:
        record = {"machine": machine(), "ratio": ratio, "images_per_second": results}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
