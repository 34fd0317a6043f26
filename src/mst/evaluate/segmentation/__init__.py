"""Semantic segmentation: data, heads, training, windows, pictures."""
