"""What `--backbone` may name besides runs and backbone files: networks by timm name, weights of other projects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mst.errors import CheckpointError, UsageError
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.workflows.subject import load_subject

NAME = "vit_tiny_patch16_224"


def test_weights_of_another_project_and_the_same_network_untrained(tmp_path: Path) -> None:
    theirs = build_backbone(BackboneSpec(NAME, (224, 224), 3, 16), seed=7).eval()
    file = tmp_path / "dino.pth"
    torch.save({"teacher": {f"module.backbone.{k}": v for k, v in theirs.timm_state_dict().items()}}, file)
    subject = load_subject(f"{NAME}={file}")
    assert subject.mean_std == (IMAGENET_MEAN, IMAGENET_STD)
    assert (len(subject.sha256), subject.folder) == (64, None)
    assert all(torch.equal(v, theirs.timm_state_dict()[k]) for k, v in subject.backbone.timm_state_dict().items())
    for name in (f"random:{NAME}={file}", f"random:timm:{NAME}"):
        fresh, again = load_subject(name, seed=1), load_subject(name, seed=1)
        assert (fresh.name, fresh.sha256) == (name, "")
        weights = fresh.backbone.timm_state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in again.backbone.timm_state_dict().items())
        assert not torch.equal(weights["pos_embed"], theirs.timm_state_dict()["pos_embed"])


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"no weights")
    for name, message in (
        ("timm:nosuch_network", "timm has no model of this name"),
        (f"timm:{NAME}.nosuch", "timm has no model of this name"),
        ("random:", "--backbone 'random:' names no network"),
        (f"{NAME}=", "name a file of weights after the ="),
        (f"{NAME}={tmp_path / 'gone.pth'}", r"gone\.pth does not exist"),
        (f"{NAME}={tmp_path / 'x.pth'}", r"cannot read weights from .*x\.pth"),
        (f"nosuch={tmp_path / 'x.pth'}", "does not exist: give a run folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_subject(name)


def test_a_folder_without_room_for_pictures_costs_the_pictures_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = load_subject(f"random:timm:{NAME}", out=tmp_path)
    (tmp_path / "pictures").write_text("a file of the user's")
    assert subject.pictures("objectness", None) is None
    assert "going on without pictures" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--pictures"):
        subject.pictures("objectness", tmp_path / "pictures" / "mine")
