"""Multi-crop augmentation of one image, on uint8 tensors, from the sample's own generator."""
