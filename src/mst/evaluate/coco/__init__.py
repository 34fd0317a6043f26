"""COCO annotations: where they lie, what their records say, masks."""
