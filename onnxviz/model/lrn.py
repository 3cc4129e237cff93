"""LRN in other operators: onnxruntime's kernel for the CPU is slow, and cuDNN's refuses some."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["MOST_CHANNELS", "better_spelled_out", "spell_out_lrn"]

MOST_CHANNELS = 512
"""With more, the convolution, whose work grows with the square of their number, is no gain any more."""

_LARGEST_SIZE, _LEAST_BIAS, _LEAST_BETA = 16, 1e-5, 0.01
"""That cuDNN takes."""


def better_spelled_out(node: NodeProto, channels: int, provider: str | None) -> bool:
    """Whether ``cpu`` or ``cuda`` should be given other operators than this LRN."""
    if provider == "cuda":
        size, _, beta, bias = _settings(node)
        return size > _LARGEST_SIZE or bias < _LEAST_BIAS or beta < _LEAST_BETA
    return channels <= MOST_CHANNELS


def _settings(node: NodeProto) -> tuple[int, float, float, float]:
    """Size, alpha, beta and bias."""
    stated = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return stated["size"], stated.get("alpha", 1e-4), stated.get("beta", 0.75), stated.get("bias", 1.0)


def spell_out_lrn(node: NodeProto, channels: int, rank: int) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes and weights that compute what an LRN of float32 tensors (N, C, …) of ``rank`` axes does.

    y = x / (bias + alpha / size · Σ x²)^beta, the sum over ``size`` channels around each (ONNX LRN-13). The sum is a
    convolution of one unit with a banded matrix, which takes alpha and bias along. Differences to LRN are those of
    rounding, except where a square is not finite: there all channels are spoilt, and not the neighbours alone.
    """
    size, alpha, beta, bias = _settings(node)
    x, y = node.input[0], node.output[0]
    before = (size - 1) // 2
    distance = np.arange(channels) - np.arange(channels)[:, None]
    band = ((distance >= -before) & (distance < size - before)) * np.float32(alpha / size)
    weights: dict[str, NDArray[Any]] = {
        f"{y}:band": band.astype(np.float32).reshape(channels, channels, *[1] * (rank - 2)),
        f"{y}:bias": np.full(channels, bias, np.float32),
    }
    base, power = f"{y}:base", f"{y}:power"
    nodes = [
        helper.make_node("Mul", [x, x], [f"{y}:square"]),
        helper.make_node("Conv", [f"{y}:square", f"{y}:band", f"{y}:bias"], [base]),
    ]
    if beta == 1:
        power = base
    elif beta == 0.5:
        nodes.append(helper.make_node("Sqrt", [base], [power]))
    elif beta == 0.75:
        nodes.append(helper.make_node("Sqrt", [base], [f"{y}:half"]))
        nodes.append(helper.make_node("Sqrt", [f"{y}:half"], [f"{y}:quarter"]))
        nodes.append(helper.make_node("Mul", [f"{y}:half", f"{y}:quarter"], [power]))
    else:
        weights[f"{y}:beta"] = np.array(beta, np.float32)
        nodes.append(helper.make_node("Pow", [base, f"{y}:beta"], [power]))
    nodes.append(helper.make_node("Div", [x, power], [y]))
    return nodes, [numpy_helper.from_array(value, name) for name, value in weights.items()]
