"""Evaluations of a backbone, each from data to a row."""
