"""Weights in files: what an ordinary tensor is, and how to read other people's files safely."""
