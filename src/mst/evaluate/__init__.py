"""Evaluation of a frozen backbone on labelled data."""
