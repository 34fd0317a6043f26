"""A fine-tuning whose first step cannot fit into memory is refused before anything is written, with what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commands.calls import call, labelled_folder
from mst.config.schema import ModelConfig
from mst.data.value_range import ValueRanges
from mst.engine import fitting as engine_fitting
from mst.finetune.classifier import Classifier, FinetuneProtocol
from mst.model.build import backbone_spec
from mst.workflows.finetuning.fitting import counted_bytes, most_bytes
from mst.workflows.finetuning.start import FinetuneConfig, Network, Running

FAR = 2**50
SMALL = {"vit_tiny_patch16_224": (64, 96), "swin_tiny_patch4_window7_224": (64, 64)}


def training(name: str, size: tuple[int, int], **protocol: Any) -> tuple[FinetuneConfig, Network, Classifier]:
    spec = backbone_spec(ModelConfig(backbone=name), image_size=size, channels=3)
    config = FinetuneConfig(
        f"scratch:{name}",
        "data",
        protocol=FinetuneProtocol(**protocol),
        running=Running(precision="fp32"),
        device="cpu",
    )
    network = Network(spec, (0.5,) * 3, (0.2,) * 3, "", ValueRanges())
    return config, network, Classifier(network.build(config), 10, seed=0)


@pytest.mark.parametrize("name", SMALL)
def test_the_bound_holds_and_the_count_grows_with_the_images(name: str) -> None:
    config, network, model = training(name, SMALL[name], drop_path=0.1)
    few, many = (counted_bytes(config, network, model, images, FAR) for images in (8, 64))
    assert few < many <= most_bytes(network, model, 64) <= 12 * many
    assert few <= most_bytes(network, model, 8)


def test_what_does_not_fit_is_refused_before_the_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = labelled_folder(tmp_path / "data", val=("cat", "dog"))
    for number, image in enumerate(sorted((data / "val").rglob("*.jpg"))):
        image.rename(image.with_name(f"other_{number}.jpg"))
    words = ["finetune", "--backbone", "scratch:vit_tiny_patch16_224", "--data", data, "--out", tmp_path / "run"]
    words += ["--size", "512", "512", "--batch-size", "8", "--workers", "0", "--no-progress", "--precision", "fp32"]
    monkeypatch.setattr(engine_fitting, "free_memory", lambda device: int(0.8 * 2**30))
    refused = call(capsys, *words)
    assert refused.status == 2
    line = refused.err.splitlines()[-1]  # before it a warning: the validation images are copies
    assert "a microbatch of 8 images needs about" in line
    assert "0.8 GiB are available on cpu: it does not fit" in line
    assert "keeps the batch of 8, or use --batch-size" in line
    assert "smaller images (--size) or a smaller network (--backbone)" in line
    assert not (tmp_path / "run").exists()
