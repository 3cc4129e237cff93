"""Tensors that are known once the sizes of the inputs are."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from onnxviz.model.constants import RANDOM

if TYPE_CHECKING:
    from onnxviz.model.graph import Graph, Node

__all__ = ["shape_only", "value_sized"]

_SHAPED_BY = {
    **dict.fromkeys(("ConstantOfShape", "BlackmanWindow", "HammingWindow", "HannWindow"), (0,)),
    **dict.fromkeys(
        (
            "AffineGrid",
            "CenterCropPad",
            "Expand",
            "OneHot",
            "Reshape",
            "Split",
            "Squeeze",
            "TopK",
            "Unsqueeze",
        ),
        (1,),
    ),
    **dict.fromkeys(("Col2Im", "DFT", "Tile", "Upsample"), (1, 2)),
    "Range": (0, 1, 2),
    "MaxUnpool": (2,),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "STFT": (1, 2, 3),
}
"""Inputs whose values say what shape an operator's output has; for reductions it is the second."""

_OPEN = (
    *("Compress", "ImageDecoder", "NonMaxSuppression", "NonZero", "StringSplit", "TfIdfVectorizer", "Unique"),
    *("If", "Loop", "Scan", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "OptionalGetElement"),
)
"""Operators whose output's shape is not known before it is there."""


def shape_only(graph: Graph, constants: Container[str]) -> frozenset[str]:
    """Tensors that depend on the inputs' sizes but not on their values, constants not among them.

    Every path from an input to one of them passes a Shape or Size node, which asks for the shape of a tensor that
    itself follows from sizes: the shape of what NonZero gives does not. Tensors that subgraphs capture count as
    inputs of the node.
    """
    return frozenset(_by_sizes(graph, constants)[0])


def value_sized(graph: Graph, constants: Container[str]) -> frozenset[str]:
    """Tensors whose shape depends on the inputs' values, such as what NonZero gives, and all that comes of it."""
    found, shaped = _by_sizes(graph, constants)
    made = {name for node in graph.nodes for name in node.outputs if name and name not in constants}
    return frozenset(made - found - shaped)


def _by_sizes(graph: Graph, constants: Container[str]) -> tuple[set[str], set[str]]:
    """Tensors whose values follow from the inputs' sizes, and those whose shapes do."""
    found: set[str] = set()
    shaped = {info.name for info in graph.inputs}
    """Tensors whose shape follows from the sizes of the inputs."""
    for node in graph.nodes:
        read = [name for name in (*node.inputs, *node.captures) if name]
        known = [name in constants or name in found for name in read]
        outputs = [name for name in node.outputs if name and name not in constants]
        settled = all(k or name in shaped for k, name in zip(known, read, strict=True))
        if not node.op.startswith(RANDOM) and (all(known) or (node.op in ("Shape", "Size") and settled)):
            found.update(outputs)
        elif settled and node.op not in _OPEN:
            sources = (node.inputs[i] for i in _shaping(node) if i < len(node.inputs) and node.inputs[i])
            if all(name in constants or name in found for name in sources):
                shaped.update(outputs)
    return found, shaped


def _shaping(node: Node) -> tuple[int, ...]:
    return (1,) if node.op.startswith("Reduce") else _SHAPED_BY.get(node.op, ())
