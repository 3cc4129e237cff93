"""Levels what differs between opsets and exporters, so that a rule never asks for a version.

After `normalize`:

1. every attribute that has a default in the operator's schema is there;
2. Conv and the pools have ``kernel_shape``, ``strides``, ``dilations`` and ``pads``;
3. what became an input over time is an attribute again where it is constant: the bounds of Clip, ``axes`` of
   Squeeze, Unsqueeze and the reductions, ``axis`` of CumSum, CumProd and DFT, ``pads``, ``axes`` and ``value`` of
   Pad, ``starts``, ``ends``, ``axes`` and ``steps`` of Slice (of Pad and Slice all or none);
4. Resize before opset 11, and Upsample, say how they take coordinates; what Resize has as constant inputs it has
   as ``roi``, ``scales`` and ``sizes``; GridSample's modes have their newer names;
   MeanVarianceNormalization has ``axes``;
5. what quantises says whether a ReLU was folded into it (``rectifies``, see `saturation`);
6. Softmax says whether it works on one axis or on all from ``axis`` on (``flattened``, before opset 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from onnxviz.model.graph import Attribute, Constants, Graph, Node, schema_defaults
from onnxviz.model.pulls import WEIGHTS
from onnxviz.model.saturation import folded_rectifiers
from onnxviz.model.soundness import understood

__all__ = ["normalize"]

Attributes = dict[str, Attribute]
Leveller = Callable[[Node, Attributes, Constants], None]

_WINDOWED = (*WEIGHTS, "MaxPool", "AveragePool", "LpPool")


def normalize(graph: Graph, constants: Constants, opset: int) -> Graph:
    """The same graph with levelled attributes, without the nodes that only make constants."""
    defaults: dict[str, Mapping[str, Attribute]] = {}
    rectifiers = folded_rectifiers(graph, constants)
    nodes = []
    for node in graph.nodes:
        if all(name in constants for name in node.outputs if name):
            continue
        if node.kind not in defaults:
            defaults[node.kind] = schema_defaults(node.op, node.domain, opset)
        attrs = {**defaults[node.kind], **node.attrs}
        if not node.domain and (leveller := _LEVELLERS.get(node.op)):
            with understood(node):
                leveller(node, attrs, constants)
        if not node.domain and node.op in ("Softmax", "LogSoftmax"):
            attrs["flattened"] = int(opset < 13)
        if not node.domain and node.op in ("QuantizeLinear", "QLinearConv", "QLinearMatMul"):
            attrs["rectifies"] = int(node.output in rectifiers)
        nodes.append(replace(node, attrs=attrs))
    return replace(graph, nodes=tuple(nodes))


def _constant(node: Node, index: int, constants: Constants) -> np.ndarray | None:
    if len(node.inputs) > index and node.inputs[index] in constants:
        value = constants[node.inputs[index]]
        return None if value.dtype.kind == "c" else value
    return None


def _window(node: Node, attrs: Attributes, constants: Constants) -> None:
    if "kernel_shape" not in attrs:
        weight = _constant(node, WEIGHTS[node.op], constants)
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
            attrs[name] = float(value.item())
        elif len(node.inputs) <= index or not node.inputs[index]:
            attrs[name] = attrs.get(name, open_end)
        else:
            attrs.pop(name, None)


def _defaults(**values: Attribute) -> Leveller:
    """Levels operators whose attributes came later than they did."""

    def level(node: Node, attrs: Attributes, constants: Constants) -> None:
        for name, value in values.items():
            attrs.setdefault(name, value)

    return level


def _resize(node: Node, attrs: Attributes, constants: Constants) -> None:
    if len(node.inputs) < 3:  # Upsample, and Resize before opset 11
        attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
        names = {1: "scales"}
    else:
        names = {1: "roi", 2: "scales", 3: "sizes"}
    for index, name in names.items():
        value = _constant(node, index, constants)
        if value is not None and value.size:
            attrs[name] = tuple(value.reshape(-1).tolist())


def _grid_sample(node: Node, attrs: Attributes, constants: Constants) -> None:
    """Opset 20 has other names for the modes."""
    mode = attrs["mode"]
    assert isinstance(mode, str)
    attrs["mode"] = mode.removeprefix("bi")


def _col2im(node: Node, attrs: Attributes, constants: Constants) -> None:
    if (block := _constant(node, 2, constants)) is not None:
        attrs["block_shape"] = tuple(int(n) for n in block)
        for name, value in (("strides", 1), ("dilations", 1)):
            attrs.setdefault(name, (value,) * len(block))
        attrs.setdefault("pads", (0,) * (2 * len(block)))


def _all_or_none(*names: str) -> Leveller:
    """As `_inputs_to_attributes`; but if one is computed at run time, none is an attribute."""

    def level(node: Node, attrs: Attributes, constants: Constants) -> None:
        given = {n: i for n, i in zip(names, node.inputs[1:], strict=False) if n and i}
        if all(name in constants for name in given.values()):
            attrs |= {n: tuple(int(v) for v in constants[i].reshape(-1)) for n, i in given.items()}
        else:
            for parameter in names:
                attrs.pop(parameter, None)

    return level


def _mean_variance(node: Node, attrs: Attributes, constants: Constants) -> None:
    """Before opset 9 it says whether the channels are taken together."""
    attrs.setdefault("axes", (0, 1, 2, 3) if attrs.get("across_channels") else (0, 2, 3))
    attrs.setdefault("normalize_variance", 1)


def _axis(node: Node, attrs: Attributes, constants: Constants) -> None:
    if (value := _constant(node, 1, constants)) is not None:
        attrs["axis"] = int(value.reshape(-1)[0])


def _pad(node: Node, attrs: Attributes, constants: Constants) -> None:
    if "paddings" in attrs:
        attrs["pads"] = attrs["paddings"]
    _all_or_none("pads", "", "axes")(node, attrs, constants)
    if (fill := _constant(node, 2, constants)) is not None:
        attrs["value"] = float(fill.reshape(-1)[0])


def _dft(node: Node, attrs: Attributes, constants: Constants) -> None:
    if (axis := _constant(node, 2, constants)) is not None:
        attrs["axis"] = int(axis.reshape(()))
    elif len(node.inputs) <= 2:
        attrs.setdefault("axis", -2)


_LEVELLERS: Mapping[str, Leveller] = {
    "DFT": _dft,
    **dict.fromkeys(_WINDOWED, _window),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _inputs_to_attributes("axes")),
    **dict.fromkeys(
        (
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"),
            *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        ),
        _inputs_to_attributes("axes"),
    ),
    **dict.fromkeys(("CumSum", "CumProd"), _axis),
    "Slice": _all_or_none("starts", "ends", "axes", "steps"),
    "Clip": _clip,
    "LayerNormalization": _defaults(axis=-1, epsilon=1e-5),
    "MeanVarianceNormalization": _mean_variance,
    "ImageScaler": _defaults(scale=1.0),
    **dict.fromkeys(
        ("Affine", "ScaledTanh", "ParametricSoftplus", "ThresholdedRelu"), _defaults(alpha=1.0, beta=1.0)
    ),
    "Pad": _pad,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "GridSample": _grid_sample,
    "Col2Im": _col2im,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _defaults(mode="DCR")),
    "RoiAlign": _defaults(coordinate_transformation_mode="output_half_pixel"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _defaults(axis=1, block_size=0)),
}
