"""ReLUs that a quantiser folded away.

Whole numbers that stand for reals from zero on saturate at zero, so a quantiser that meets a ReLU leaves it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxviz.model.graph import Constants, Graph, Node

__all__ = ["folded_rectifiers"]

_ZERO_POINTS = {"QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7}
"""What gives whole numbers for real ones, and the input that holds their zero point."""

_RECTIFIERS = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt")

_KEEP_THE_SIGN = (
    *(
        "Cast",
        "DepthToSpace",
        "Dropout",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
    ),
    *(
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "MaxPool",
    ),
    *("ReduceMax", "ReduceMean", "ReduceSum"),
)
"""Of their first input."""

_KEEP_ALL_SIGNS = ("Add", "Concat", "Div", "Max", "Mean", "Min", "Mul", "Sum")


def folded_rectifiers(graph: Graph, constants: Constants) -> frozenset[str]:
    """Outputs of quantising nodes that hold a ReLU: they begin at zero, and what is quantised need not.

    A QuantizeLinear of what cannot be negative, or of the image, holds none.
    """
    if not any(node.op in _ZERO_POINTS for node in graph.nodes):
        return frozenset()
    positive = {info.name for info in graph.inputs}
    found = set()

    def is_positive(name: str) -> bool:
        return name in positive or (name in constants and bool((np.asarray(constants[name]) >= 0).all()))

    for node in graph.nodes:
        if node.domain:
            continue
        if (
            node.op in _RECTIFIERS
            or (node.op in _KEEP_THE_SIGN and is_positive(node.inputs[0]))
            or (node.op in _KEEP_ALL_SIGNS and all(map(is_positive, node.inputs)))
            or (node.op == "DequantizeLinear" and _begins_at_zero(node, 2, constants))
        ):
            positive.update(node.outputs)
        elif (
            node.op in _ZERO_POINTS
            and _begins_at_zero(node, _ZERO_POINTS[node.op], constants)
            and (node.op != "QuantizeLinear" or not is_positive(node.inputs[0]))
        ):
            found.add(node.output)
    return frozenset(found)


def _begins_at_zero(node: Node, index: int, constants: Constants) -> bool:
    """Whether the zero point, input ``index``, is the least of its type; left out, it is 0 of an unsigned type."""
    if len(node.inputs) <= index or not node.inputs[index]:
        return node.op == "QuantizeLinear" and "output_dtype" not in node.attrs
    if node.inputs[index] not in constants:
        return False
    zero = constants[node.inputs[index]]
    return zero.dtype.kind in "iu" and bool((zero == np.iinfo(zero.dtype).min).all())
