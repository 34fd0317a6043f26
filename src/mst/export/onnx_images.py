"""Preprocessing as part of an ONNX graph: from stored pixels of any size to what the network takes.

The steps of `mst.evaluate.common.protocol.ImageTransform`: resize so that the image covers the crop times a ratio
(bicubic, antialiased, rounded to whole grey levels), cut the centre, scale, normalise.
Letters: B images, C channels, H W pixels of the image, h w of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mst.export.onnx_file import INPUT, OPSET, library

PIXELS = "pixels"
"""Input of a graph with preprocessing: uint8 [B, H, W, C]."""
PREFIX = "preprocessing_"
"""Of the names of its nodes and numbers."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image.

    Attributes:
        size: (h, w) of the crop.
        mean: of each channel, in [0, 1].
        std: of each channel.
        resize_ratio: the resized image covers the crop times this number; an image of the crop's size stays as it is.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_ratio: float


class _Nodes:
    """Nodes and numbers of a graph, in order."""

    def __init__(self) -> None:
        self._onnx = library("onnx")
        self.nodes: list[Any] = []
        self.numbers: list[Any] = []

    def number(self, name: str, values: Any, kind: Any) -> str:
        """Add a constant; return its name."""
        self.numbers.append(self._onnx.numpy_helper.from_array(np.asarray(values, kind), PREFIX + name))
        return PREFIX + name

    def add(self, operation: str, output: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output, which is also the node's."""
        node = self._onnx.helper.make_node(operation, list(inputs), [PREFIX + output], PREFIX + output, **attributes)
        self.nodes.append(node)
        return PREFIX + output

    def cast(self, output: str, source: str, kind: str) -> str:
        """Add a change of type."""
        return self.add("Cast", output, source, to=getattr(self._onnx.TensorProto, kind))


def preprocessing_graph(asked: Preprocessing) -> Any:
    """Return a model from `PIXELS` to `INPUT`, float32 [B, C, h, w]."""
    onnx, nodes, channels = library("onnx"), _Nodes(), len(asked.mean)
    planes = nodes.add("Transpose", "planes", PIXELS, perm=[0, 3, 1, 2])  # [B, C, H, W]
    size = nodes.number("size", asked.size, np.int64)
    resized, shape = _resized(nodes, asked, planes, size)
    cut = _centre(nodes, resized, shape, size)
    numbers = nodes.cast("numbers", cut, "FLOAT")
    unit = nodes.add("Div", "unit", numbers, nodes.number("white", 255.0, np.float32))
    mean, std = (
        nodes.number(name, np.asarray(values).reshape(1, channels, 1, 1), np.float32)
        for name, values in (("mean", asked.mean), ("std", asked.std))
    )
    scaled = nodes.add("Div", "scaled", nodes.add("Sub", "centred", unit, mean), std)
    whole = nodes.number("whole", [-1, channels, *asked.size], np.int64)
    nodes.nodes.append(onnx.helper.make_node("Reshape", [scaled, whole], [INPUT], PREFIX + "whole_node"))
    kinds = onnx.TensorProto
    ends = (
        onnx.helper.make_tensor_value_info(PIXELS, kinds.UINT8, ["batch", "height", "width", channels]),
        onnx.helper.make_tensor_value_info(INPUT, kinds.FLOAT, ["batch", channels, *asked.size]),
    )
    graph = onnx.helper.make_graph(nodes.nodes, "preprocessing", [ends[0]], [ends[1]], nodes.numbers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)


def _resized(nodes: _Nodes, asked: Preprocessing, planes: str, size: str) -> tuple[str, str]:
    """Add the resize of planes [B, C, H, W]; return the names of the result and of its height and width."""
    zero, two, four = (nodes.number(name, [value], np.int64) for name, value in (("0", 0), ("2", 2), ("4", 4)))
    whole = nodes.add("Shape", "shape", planes)
    own = nodes.add("Slice", "own_size", whole, two, four)  # H, W
    target = nodes.number("target", [max(round(side * asked.resize_ratio), side) for side in asked.size], np.int64)
    exact = nodes.cast("own_size_float", own, "DOUBLE")
    scales = nodes.add("Div", "scales", nodes.cast("target_float", target, "DOUBLE"), exact)
    scale = nodes.add("ReduceMax", "scale", scales, keepdims=1)
    above = nodes.add(
        "Add", "above", nodes.add("Mul", "scaled_size", exact, scale), nodes.number("1e-6", 1e-6, np.float64)
    )
    covering = nodes.add("Max", "covering", nodes.cast("floor", above, "INT64"), target)
    apart = nodes.add("Abs", "apart", nodes.add("Sub", "difference", own, size))
    same = nodes.add("Equal", "same", nodes.add("ReduceSum", "apart_sum", apart, keepdims=1), zero)
    chosen = nodes.add("Where", "chosen_size", same, size, covering)
    sizes = nodes.add("Concat", "sizes", nodes.add("Slice", "batch_channels", whole, zero, two), chosen, axis=0)
    curve = {"mode": "cubic", "cubic_coeff_a": -0.5, "antialias": 1, "exclude_outside": 1}
    return nodes.add("Resize", "resized", planes, "", "", sizes, **curve), chosen


def _centre(nodes: _Nodes, resized: str, shape: str, size: str) -> str:
    """Add the cut of the centre of an image of a shape; halves go to the even side, as Python rounds."""
    spare = nodes.cast("spare", nodes.add("Sub", "spare_whole", shape, size), "DOUBLE")
    half = nodes.add("Div", "half", spare, nodes.number("2.0", 2.0, np.float64))
    first = nodes.cast("first", nodes.add("Round", "rounded", half), "INT64")
    return nodes.add(
        "Slice", "cut", resized, first, nodes.add("Add", "end", first, size), nodes.number("axes", [2, 3], np.int64)
    )


def with_preprocessing(model: Any, before: Any) -> Any:
    """Return a copy of a model that takes `PIXELS`, with the nodes of `before` in front.

    Args:
        model: takes `INPUT`.
        before: of `preprocessing_graph`.
    """
    joined = library("onnx").ModelProto()
    joined.CopyFrom(model)
    graph, nodes = joined.graph, list(joined.graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*before.graph.node, *nodes])
    graph.initializer.extend(before.graph.initializer)
    graph.input.extend(before.graph.input)
    return joined
