"""Guards on the dynamics of a pre-training: what goes wrong, since when, and which knob helps."""
