"""Detection with Mask R-CNN: the detector, its training, metrics, pictures."""
