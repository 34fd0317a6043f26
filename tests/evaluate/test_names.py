"""Names that scripts and the design pages import keep working, wherever the code moves."""

from __future__ import annotations

import importlib

import pytest

NAMES = {
    "mst.objective.masking": "attention_mask",
    "mst.objective.dino": "teacher_probabilities self_distillation_loss updated_center",
    "mst.objective.restoration": "restoration_loss",
    "mst.model.pair": "ema_update",
    "mst.model.start": "start_from",
    "mst.model.build": "build_backbone backbone_spec",
    "mst.data.decoding": "decode_image Detail",
    "mst.data.sources": "index_images",
    "mst.evaluate.knn": "knn_predict",
    "mst.evaluate.metrics": "accuracy rank_of_label",
    "mst.evaluate.coco": "read_coco find_coco",
    "mst.evaluate.coco_masks": "mask_of",
    "mst.evaluate.detection_metrics": "Detection coco_metrics encode_mask",
}


@pytest.mark.parametrize("module", NAMES)
def test_documented_names(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not callable(getattr(found, name, None))] == []
