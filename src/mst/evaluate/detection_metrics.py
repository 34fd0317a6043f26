"""COCO's metrics under the name that scripts import; they live in `mst.evaluate.detection.metrics`."""

from mst.evaluate.detection.metrics import Detection, coco_metrics, encode_mask

__all__ = ["Detection", "coco_metrics", "encode_mask"]
