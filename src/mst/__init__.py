"""Masked self-supervised pre-training of vision transformers (MST, Li et al., NeurIPS 2021)."""
