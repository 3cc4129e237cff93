"""onnx's shape inference, kept from what ends the whole process, or does not end.

In onnx 1.23 and in onnxruntime 1.31, which has the same code, a Slice of a tensor of negative size is no error but an
abort. Negative sizes come of windows larger than the image, negative padding and the like. So where a Slice comes after
an operator that can make them, it is left out until the sizes before it are known not to be negative.

And where the values of vectors are followed, since they may be sizes, onnx makes an entry for each element of any
vector. So what would follow the values of one that may be very long is left out until its length is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx.shape_inference
from onnx import NodeProto

from onnxviz.model.inline import reads

__all__ = ["infer_shapes"]

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


_FOLLOWING = frozenset(
    {"Add", "Cast", "Concat", "Gather", "Mul", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze"}
)
"""Operators that follow the values of vectors."""

_LENGTHENING: Mapping[str, int | None] = {
    **dict.fromkeys(
        ("Compress", "NonZero", "OneHot", "RandomNormal", "RandomUniform", "Range", "Resize", "Upsample")
    ),
    **dict.fromkeys(("Expand", "Pad", "Reshape", "Tile"), 1),
    "ConstantOfShape": 0,
}
"""Operators whose output can be a vector much longer than any input, with the input that has an entry for each axis."""

_SPATIAL = frozenset(
    {
        "AveragePool",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LpPool",
        "MaxPool",
    }
    | {"LRN", "InstanceNormalization", "QLinearConv", "DepthToSpace", "SpaceToDepth", "Flatten", "Gemm"}
)
"""Operators whose output is no vector."""

_LONGEST = 1 << 16

Dims: TypeAlias = tuple[int | None, ...]


def infer_shapes(
    model: onnx.ModelProto, shapes: Callable[[onnx.ModelProto], Mapping[str, Dims]]
) -> onnx.ModelProto:
    """The model with the types and shapes that follow from its inputs and small constants.

    Args:
        model: whose nodes are in topological order; it is not changed. Its inputs have no negative sizes.
        shapes: reads off a model what it states, and raises if a size in it is negative.
    """
    nodes = [_Step.of(node) for node in model.graph.node]
    known, settled = shapes(model), set[int]()
    inferred = bare = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        graph=onnx.GraphProto(
            name=model.graph.name, input=model.graph.input, initializer=model.graph.initializer
        ),
    )
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    while True:
        left_out = _doubted(nodes, {**stored, **known}, settled)
        if not left_out:
            return _infer(model)
        before, settled = settled, _independent(nodes, left_out)
        if settled == before:
            return inferred
        part = onnx.ModelProto()
        part.CopyFrom(bare)
        part.graph.node.extend(model.graph.node[number] for number in sorted(settled))
        inferred = _infer(part)
        known = shapes(inferred)


@dataclass(frozen=True)
class _Step:
    """Of a node what is asked again and again: its operator ("" for those of other domains), and what it reads."""

    op: str
    inputs: tuple[str, ...]
    read: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, node: NodeProto) -> _Step:
        return cls("" if node.domain else node.op_type, tuple(node.input), reads(node), tuple(node.output))


def _doubted(nodes: Sequence[_Step], known: Mapping[str, Dims], settled: Collection[int]) -> set[int]:
    """Numbers of the nodes that are to be left out.

    Args:
        settled: numbers of the nodes of which all is in ``known`` that will ever be.
    """
    negative: set[str] = set()  # tensors that may have a negative size
    long = {name for name, shape in known.items() if _is_long(shape)}
    doubted = set()
    for number, node in enumerate(nodes):
        after_long = not long.isdisjoint(node.read)
        if node.op in _FOLLOWING and (
            after_long or (node.op == "Slice" and not negative.isdisjoint(node.read))
        ):
            doubted.add(number)
        if number in settled or node.op in (
            "Shape",
            "Size",
        ):  # which have an entry an axis, or are one number
            continue
        if node.op not in _HARMLESS or not negative.isdisjoint(node.read):
            negative.update(node.outputs)
        if (node.op in _LENGTHENING or (after_long and node.op not in _SPATIAL)) and _axes(node, known) < 2:
            long.update(node.outputs)
    return doubted


def _axes(node: _Step, known: Mapping[str, Dims]) -> int:
    """How many axes a node's output is sure to have, if one of its inputs tells."""
    place = _LENGTHENING.get(node.op)
    if place is None or place >= len(node.inputs):
        return 0
    entries = known.get(node.inputs[place], ())
    return (entries[0] or 0) // (1 + (node.op == "Pad")) if len(entries) == 1 else 0


def _is_long(shape: Dims) -> bool:
    return len(shape) == 1 and shape[0] is not None and shape[0] > _LONGEST


def _independent(nodes: Sequence[_Step], left_out: Collection[int]) -> set[int]:
    """Numbers of the nodes that do not hang on those left out."""
    hanging: set[str] = set()
    found = set()
    for number, node in enumerate(nodes):
        if number in left_out or not hanging.isdisjoint(node.read):
            hanging.update(node.outputs)
        else:
            found.add(number)
    return found


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
