"""Objectness of attention maps: boxes and masks without any training."""
