"""Convolution."""

from __future__ import annotations

from onnxviz.reverse.kernels import Array, conv_transpose
from onnxviz.reverse.rules.registry import Cotangents, Step, constant_inputs, register


@register("Conv", restriction=constant_inputs(W=1))
def conv(step: Step, g: Array) -> Cotangents:
    """The transposed convolution; the bias plays no part. ONNX Conv-11."""
    weight = step.value(1)
    return (
        conv_transpose(g, weight, step.ints("strides"), step.ints("dilations"), int(step.number("group"))),
    )
