"""ONNX graphs in fewer bits: half precision, and 8-bit products calibrated on images.

Source: the converters of ONNX Runtime (`onnxruntime.transformers.float16`, `onnxruntime.quantization`). Inputs and
outputs stay float32.
Letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from mst.errors import RunFailure
from mst.export.onnx_file import INPUT, library, quiet

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operations that int8 computes in 8 bits, where one factor is a weight: all but a few percent of the work and of the
bytes. Norms, softmax, GELU, sums and the products inside attention stay in float32: they are cheap, and an outlier in
them would take the steps of all others."""
FULL = ("LayerNormalization", "Softmax")
"""Operations that fp16 leaves in float32: sums of squares and of exponentials leave the range of half precision."""


def half(model: Any) -> Any:
    """Return a copy of a model in half precision.

    Raises:
        RunFailure: ONNX Runtime cannot convert it.
    """
    converter, graphs = library("onnxruntime.transformers.float16"), library("onnx_ir")
    copy = library("onnx").ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            blocked = [*converter.DEFAULT_OP_BLOCK_LIST, *FULL]
            copy = converter.convert_float_to_float16(copy, keep_io_types=True, op_block_list=blocked)
            del copy.graph.value_info[:]  # of before
            converted = graphs.from_proto(copy)
            converted.graph.sort()  # the converter appends its casts
            return graphs.to_proto(converted)
    except Exception as error:  # of no common class
        raise RunFailure(f"ONNX Runtime cannot convert the graph to fp16: {_line(error)}") from error


def quantised(source: Path, batches: Iterable[Tensor]) -> Any:
    """Return the model of a file with its products in 8 bits, in QDQ form (`QuantizeLinear`, `DequantizeLinear`).

    Weights are int8 with a scale for each output channel. What they are multiplied with is uint8 with one scale and one
    zero a tensor, from its smallest to its largest number on the calibration images.

    Args:
        source: file in fp32.
        batches: calibration images [B, C, H, W], normalised.

    Raises:
        RunFailure: ONNX Runtime cannot convert it.
    """
    onnx, tools = library("onnx"), library("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(prefix="int8-", dir=source.parent) as place:
        target = Path(place) / "model.onnx"
        try:
            with quiet():
                tools.quantize_static(
                    str(source),
                    str(target),
                    _Reader(batches),
                    quant_format=tools.QuantFormat.QDQ,
                    op_types_to_quantize=list(QUANTISED),
                    per_channel=True,
                    activation_type=tools.QuantType.QUInt8,
                    weight_type=tools.QuantType.QInt8,
                    calibrate_method=tools.CalibrationMethod.MinMax,
                    nodes_to_exclude=_without_weights(onnx.load(str(source)).graph),
                )
            return onnx.load(str(target))
        except Exception as error:  # of no common class
            raise RunFailure(f"ONNX Runtime cannot quantise the graph: {_line(error)}") from error


def _without_weights(graph: Any) -> list[str]:
    """Return the names of the products neither of whose factors is a weight."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in QUANTISED and weights.isdisjoint(node.input)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs; None = that was all."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
