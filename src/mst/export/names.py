"""What ONNX exports are called; known without torch."""

from __future__ import annotations

TYPES = ("fp32", "fp16", "int8")
"""Types of the numbers of a file, the one with the most bits first."""


def file_name(kind: str) -> str:
    """Return the file of a type: backbone.onnx, backbone.fp16.onnx, backbone.int8.onnx."""
    return "backbone.onnx" if kind == "fp32" else f"backbone.{kind}.onnx"
