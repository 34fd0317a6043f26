"""Predictions of a trained model for images without labels."""
