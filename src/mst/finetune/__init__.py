"""Training with labels: one loop for every downstream task, layer-wise learning rates, a classifier on a backbone."""
