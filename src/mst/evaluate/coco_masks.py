"""Masks of COCO annotations under the name that scripts import; they live in `mst.evaluate.coco.masks`."""

from mst.evaluate.coco.masks import mask_of

__all__ = ["mask_of"]
