"""The method: masking, self-distillation, restoration, and `mst`, which puts them in the paper's order."""
