"""Levels what differs between opsets and exporters, so that a rule never asks for a version.

After `normalize`:

1. every attribute that has a default in the operator's schema is there;
2. Conv and the pools have ``kernel_shape``, ``strides``, ``dilations`` and ``pads``;
3. what became an input over time is an attribute again where it is constant: the bounds of Clip, ``axes`` of
   Squeeze, Unsqueeze and the reductions, ``pads``, ``axes`` and ``value`` of Pad, ``starts``, ``ends``,
   ``axes`` and ``steps`` of Slice;
4. Softmax says whether it works on one axis or on all from ``axis`` on (``flattened``, before opset 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from onnxviz.model.graph import Attribute, Constants, Graph, Node, schema_defaults

__all__ = ["normalize"]

Attributes = dict[str, Attribute]
Leveller = Callable[[Node, Attributes, Constants], None]

_WINDOWED = ("Conv", "MaxPool", "AveragePool")


def normalize(graph: Graph, constants: Constants, opset: int) -> Graph:
    """The same graph with levelled attributes, without the nodes that only make constants."""
    defaults: dict[str, Mapping[str, Attribute]] = {}
    nodes = []
    for node in graph.nodes:
        if all(name in constants for name in node.outputs if name):
            continue
        if node.kind not in defaults:
            defaults[node.kind] = schema_defaults(node.op, node.domain, opset)
        attrs = {**defaults[node.kind], **node.attrs}
        if not node.domain and (leveller := _LEVELLERS.get(node.op)):
            leveller(node, attrs, constants)
        if not node.domain and node.op in ("Softmax", "LogSoftmax"):
            attrs["flattened"] = int(opset < 13)
        nodes.append(replace(node, attrs=attrs))
    return replace(graph, nodes=tuple(nodes))


def _constant(node: Node, index: int, constants: Constants) -> np.ndarray | None:
    if len(node.inputs) > index and node.inputs[index] in constants:
        return constants[node.inputs[index]]
    return None


def _window(node: Node, attrs: Attributes, constants: Constants) -> None:
    if "kernel_shape" not in attrs:
        weight = _constant(node, 1, constants)
        if weight is None:
            return
        attrs["kernel_shape"] = tuple(weight.shape[2:])
    kernel = attrs["kernel_shape"]
    assert isinstance(kernel, tuple)
    attrs.setdefault("strides", (1,) * len(kernel))
    attrs.setdefault("dilations", (1,) * len(kernel))
    attrs.setdefault("pads", (0,) * (2 * len(kernel)))


def _inputs_to_attributes(*names: str) -> Leveller:
    """Levels operators whose inputs 1, 2, … are the integer attributes of old."""

    def level(node: Node, attrs: Attributes, constants: Constants) -> None:
        for index, name in enumerate(names, start=1):
            if (value := _constant(node, index, constants)) is not None:
                attrs[name] = tuple(int(v) for v in value.reshape(-1))

    return level


def _clip(node: Node, attrs: Attributes, constants: Constants) -> None:
    for index, (name, open_end) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = _constant(node, index, constants)
        if value is not None:
            attrs[name] = float(value)
        elif len(node.inputs) <= index or not node.inputs[index]:
            attrs[name] = attrs.get(name, open_end)
        else:
            attrs.pop(name, None)


def _pad(node: Node, attrs: Attributes, constants: Constants) -> None:
    if "paddings" in attrs:
        attrs["pads"] = attrs["paddings"]
    for index, name in ((1, "pads"), (3, "axes")):
        if (value := _constant(node, index, constants)) is not None:
            attrs[name] = tuple(int(v) for v in value.reshape(-1))
    if (fill := _constant(node, 2, constants)) is not None:
        attrs["value"] = float(fill.reshape(-1)[0])


_LEVELLERS: Mapping[str, Leveller] = {
    **dict.fromkeys(_WINDOWED, _window),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _inputs_to_attributes("axes")),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"),
        _inputs_to_attributes("axes"),
    ),
    "Slice": _inputs_to_attributes("starts", "ends", "axes", "steps"),
    "Clip": _clip,
    "Pad": _pad,
}
