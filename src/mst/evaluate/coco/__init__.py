"""COCO annotations: where they lie, what their records say, masks."""

from mst.evaluate.coco.reading import CocoSet, find_coco, read_coco

__all__ = ["CocoSet", "find_coco", "read_coco"]
