"""onnx's shape inference, kept from what ends the whole process.

In onnx 1.23 and in onnxruntime 1.31, which has the same code, a Slice of a tensor of negative size is no error but an
abort. Negative sizes come of windows larger than the image, negative padding and the like. So where a Slice comes after
an operator that can make them, it is left out until the sizes before it are known not to be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx.shape_inference
from onnx import NodeProto, helper

from onnxviz.model.inline import reads

__all__ = ["infer_shapes"]

_LEFT_OUT = "onnxviz.left_out"
"""A domain of which onnx knows nothing: it infers nothing of its operators."""

_HARMLESS = frozenset(
    {
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Elu",
        "Equal",
        "Erf",
    }
    | {
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
    }
    | {
        "GlobalMaxPool",
        "Greater",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
    }
    | {
        "LeakyRelu",
        "Less",
        "Log",
        "LRN",
        "MatMul",
        "Max",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Pow",
        "PRelu",
    }
    | {
        "QuantizeLinear",
        "DequantizeLinear",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
    }
    | {
        "Round",
        "Shape",
        "Sigmoid",
        "Size",
        "Slice",
        "Softmax",
        "Softplus",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
    }
    | {"Transpose", "Unsqueeze", "Where"}
)
"""Operators that give no negative sizes where they get none."""


def infer_shapes(
    model: onnx.ModelProto, check: Callable[[onnx.ModelProto], None] = lambda inferred: None
) -> onnx.ModelProto:
    """The model with the types and shapes that follow from its inputs and small constants.

    Args:
        model: whose nodes are in topological order; it is not changed. Its inputs have no negative sizes.
        check: is given a model as far as it is inferred, and raises if a size in it is negative.
    """
    nodes = model.graph.node
    slices = [i for i, node in enumerate(nodes) if node.op_type == "Slice" and not node.domain]
    left_out = set(slices) - _sure(nodes, set(slices), checked=False) if slices else set()
    while left_out:
        inferred = _infer(_without(model, left_out))
        check(inferred)
        left_out -= _sure(nodes, left_out, checked=True)
    return _infer(model)


def _sure(nodes: Sequence[NodeProto], left_out: set[int], *, checked: bool) -> set[int]:
    """Numbers of the Slices left out that what comes before them cannot have given a negative size.

    Args:
        checked: whether all sizes are checked that do not hang on what is left out; else all operators that may make
            negative ones are doubted.
    """
    hanging: set[str] = set()  # on a Slice that is left out
    doubtful: set[str] = set()
    sure = set()
    for number, node in enumerate(nodes):
        read = reads(node)
        hangs, doubted = not hanging.isdisjoint(read), not doubtful.isdisjoint(read)
        if number in left_out:
            if not doubted:
                sure.add(number)
            hangs = True
        elif (node.domain or node.op_type not in _HARMLESS) and (hangs or not checked):
            doubted = True
        if hangs:
            hanging.update(node.output)
        if doubted:
            doubtful.update(node.output)
    return sure


def _without(model: onnx.ModelProto, left_out: set[int]) -> onnx.ModelProto:
    """The model with some of its nodes as operators that onnx does not know."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.opset_import.append(helper.make_opsetid(_LEFT_OUT, 1))
    for number in left_out:
        other.graph.node[number].domain = _LEFT_OUT
    return other


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
