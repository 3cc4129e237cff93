"""Nodes grouped into the boxes of the diagram, and the columns that the boxes stand in.

A node that only carries its predecessor on (Conv, then BatchNormalization, then Relu) joins its stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from onnxviz.report.data import DiagramNode

__all__ = ["Stack", "ranks", "stack_nodes"]

Stack: TypeAlias = tuple[DiagramNode, ...]

FOLLOWERS = frozenset(
    {
        *("BatchNormalization", "InstanceNormalization", "LRN"),
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Clip"),
        *(
            "HardSwish",
            "HardSigmoid",
            "Sigmoid",
            "Swish",
            "Mish",
            "Tanh",
            "Softplus",
            "Softmax",
            "LogSoftmax",
        ),
        *("Dropout", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast"),
    }
)

NORMS = frozenset({"BatchNormalization", "InstanceNormalization"})
MERGES = frozenset({"Add", "Sum", "Concat", "Mul"})
"""Of a norm after one of these the next block begins (ResNet v2, DenseNet); it does not end the last."""


def stack_nodes(nodes: Sequence[DiagramNode]) -> list[Stack]:
    """Group nodes into stacks, in topological order of their heads.

    Raises ValueError for an input that names no earlier node, and for an id that appears twice.
    """
    consumers: dict[str, int] = {}
    for node in nodes:
        for name in set(node.inputs):
            if name not in consumers:
                raise ValueError(f"diagram node {node.id!r}: input {name!r} is no earlier node")
            consumers[name] += 1
        if node.id in consumers:
            raise ValueError(f"diagram node {node.id!r} appears twice")
        consumers[node.id] = 0
    op_of = {node.id: node.op for node in nodes}
    stacks: dict[str, list[DiagramNode]] = {}  # by the id of the last node
    for node in nodes:
        (only,) = set(node.inputs) if len(set(node.inputs)) == 1 else (None,)
        joins = only is not None and node.op in FOLLOWERS and consumers[only] == 1
        if only is not None and node.op in NORMS and op_of[only] in MERGES:
            joins = False
        if joins and only in stacks and stacks[only][0].op != "Input":
            stacks[node.id] = [*stacks.pop(only), node]
        else:
            stacks[node.id] = [node]
    position = {node.id: i for i, node in enumerate(nodes)}
    return sorted((tuple(stack) for stack in stacks.values()), key=lambda stack: position[stack[0].id])


def ranks(stacks: Sequence[Stack]) -> tuple[list[list[int]], list[int]]:
    """Return the stacks that each reads, by number, and each one's column: the longest path from the input."""
    owner = {stack[-1].id: i for i, stack in enumerate(stacks)}
    # Inputs of a stack always are the last nodes of others: a node with several consumers ends its stack.
    sources = [sorted({owner[name] for name in stack[0].inputs}) for stack in stacks]
    rank = [0] * len(stacks)
    for i, names in enumerate(sources):
        rank[i] = max((rank[j] + 1 for j in names), default=0)
    for i in reversed(range(len(stacks))):  # a constant stands right before its first consumer
        if not sources[i] and stacks[i][0].op != "Input":
            rank[i] = max(0, min((rank[j] - 1 for j, names in enumerate(sources) if i in names), default=0))
    return sources, rank
