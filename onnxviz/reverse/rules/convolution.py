"""Convolution."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxviz.model.graph import Node, Shape
from onnxviz.model.pulls import WEIGHTS, padding_begin, transposed_begins, with_window
from onnxviz.reverse.kernels import (
    Array,
    Taps,
    add_at,
    conv,
    conv_transpose,
    conv_weight,
    place,
    taps,
)
from onnxviz.reverse.rules.registry import Cotangents, Step, register


@dataclass(frozen=True)
class _Window:
    """How a convolution steps: kernel, strides and dilations of each spatial axis, and the number of groups."""

    node: Node
    kernel: Shape
    strides: Shape
    dilations: Shape
    groups: int

    @property
    def reach(self) -> list[int]:
        """How far the last cell of the kernel is from the first."""
        return [(k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True)]


def _window(step: Step) -> _Window:
    kernel = step.full_shape(WEIGHTS.get(step.node.op, 1))[2:]
    node = with_window(step.node, kernel)
    strides, dilations = (tuple(int(v) for v in node.attrs[n]) for n in ("strides", "dilations"))  # type: ignore[union-attr]
    return _Window(node, kernel, strides, dilations, int(step.number("group")))


def _bias(step: Step, g: Array) -> Array:
    xp = g.__array_namespace__()
    summed: Array = xp.sum(g, axis=(0, *range(2, g.ndim)))
    return summed


def _partner(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record the weights for the cotangent of the input, and the input for that of the weights."""
    return {node.inputs[1 - i] for i in wanted & {0, 1}}


@register("Conv", slots=(0, 1, 2), record=_partner)
def convolution(step: Step, g: Array) -> Cotangents:
    """The transposed convolution; weights and bias get theirs where they are computed. ONNX Conv-22."""
    w = _window(step)
    gx = gw = None
    if 0 in step.wanted:
        gx = conv_transpose(g, step.value(1), w.strides, w.dilations, w.groups)
    if 1 in step.wanted:
        gw = conv_weight(step.value(0), g, w.kernel, w.strides, w.dilations, w.groups)
    return (gx, gw, _bias(step, g) if 2 in step.wanted else None)


def pull_convolution(step: Step, g: Array, weight: Array) -> Array:
    """The transposed convolution with weights that are not simply an input."""
    w = _window(step)
    return conv_transpose(g, weight, w.strides, w.dilations, w.groups)


@register("ConvTranspose", slots=(0, 1, 2), record=_partner)
def transposed_convolution(step: Step, g: Array) -> Cotangents:
    """A convolution with the same weights; these and the bias too where they are computed. ONNX ConvTranspose-22."""
    w = _window(step)
    begins = transposed_begins(w.node, step.full_shape(0)[2:], step.full_shapes[step.node.output][2:])
    # With stride 1 the answer covers all that sees g; else g is whole, and so is the answer.
    offsets = [r if s == 1 else b for r, s, b in zip(w.reach, w.strides, begins, strict=True)]
    sizes = [(n - 1) * s + r + 1 for n, s, r in zip(step.shape(0)[2:], w.strides, w.reach, strict=True)]
    full = place(g, [0, 0, *offsets], [*g.shape[:2], *sizes])
    gx = gw = None
    if 0 in step.wanted:
        gx = conv(full, step.value(1), w.strides, w.dilations, w.groups)
    if 1 in step.wanted:
        gw = conv_weight(full, step.value(0), w.kernel, w.strides, w.dilations, w.groups)
    return (gx, gw, _bias(step, g) if 2 in step.wanted else None)


def _deformed_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """All but the bias: each is a factor of the others' cotangents."""
    return [name for i, name in enumerate(node.inputs) if name and i != 3]


def _deformed_places(step: Step, w: _Window, outputs: Shape, shares: int) -> Taps:
    """What the kernel's cells read at every output position: rows and offset groups are one axis."""
    cells = np.indices(w.kernel).reshape(len(w.kernel), -1, 1)
    steps = np.indices(outputs).reshape(len(outputs), 1, -1)
    offset = step.value(2)
    offset = offset.reshape(len(offset) * shares, cells.shape[1], len(w.kernel), -1)
    begins = padding_begin(w.node, step.full_shape(0)[2:])
    at = []
    for d, begin in enumerate(begins):
        fixed = cells[d] * w.dilations[d] + steps[d] * w.strides[d] - begin
        at.append((offset[:, :, d] + fixed.astype(offset.dtype)).reshape(len(offset), -1))
    return taps(at, step.full_shape(0)[2:], "linear", "zeros")


@register("DeformConv", slots=(0, 1, 2, 3, 4), record=_deformed_needs)
def deformed_convolution(step: Step, g: Array) -> Cotangents:
    """A convolution's cotangents, taken to and from the places between positions that it read. ONNX DeformConv-22."""
    w, weight, source = _window(step), step.value(1), step.full_shape(0)[2:]
    shares = int(step.number("offset_group"))
    places = _deformed_places(step, w, g.shape[2:], shares)
    n, channels = len(g) * shares, step.full_shape(0)[1] // shares
    x = step.value(0).reshape(-1, channels, math.prod(source))
    grouped = g.reshape(len(g), w.groups, -1, math.prod(g.shape[2:]))
    # Cotangents of what the cells read, times the mask: (n, channels, cells · positions).
    matrix = weight.reshape(w.groups, len(weight) // w.groups, -1)
    read = np.matmul(matrix.swapaxes(1, 2), grouped).reshape(n, channels, -1)
    masked = len(step.node.inputs) > 4 and bool(step.node.inputs[4])
    mask = step.value(4).reshape(-1, 1, read.shape[2]) if masked else np.ones((1, 1, 1), g.dtype)
    felt = read * mask
    to_x, to_offset, values = [], [], []
    for k in range(n):
        row = places.row(k)
        seen = x[k][:, row.index]
        values.append((seen * row.weight).sum(-1))
        to_x.append(add_at(felt[k].T[:, None] * row.weight[..., None], row.index, x.shape[2]))
        met = np.einsum("cpk,cp->pk", seen, felt[k])
        to_offset.append(np.stack([(met * slope).sum(-1) for slope in row.slopes]))
    columns = np.stack(values)
    positions = grouped.shape[3]
    cell_first = np.stack(to_offset).reshape(n, len(source), -1, positions).swapaxes(1, 2)
    gw = None
    if 1 in step.wanted:
        matched = (columns * mask).reshape(*grouped.shape[:2], -1, positions)
        gw = np.matmul(grouped, matched.swapaxes(2, 3)).sum(0)
    found = (np.stack(to_x), gw, cell_first, _bias(step, g), (read * columns).sum(1))
    return tuple(
        answer.reshape(step.shape(i)) if i in step.wanted and answer is not None else None
        for i, answer in enumerate(found)
    )
