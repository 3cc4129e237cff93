"""Operators that move, join, repeat or take apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxviz.model.graph import Attribute, Node
from onnxviz.model.pulls import pad_begins, permutation, slices
from onnxviz.reverse.kernels import Array, dilate, place, put
from onnxviz.reverse.rules.registry import Cotangents, Step, parameters, register, sum_to


def _settled(step: Step, *names: str) -> Node:
    """The node with its inputs 1, 2, … as the attributes ``names``, also where they were computed at run time."""
    attrs: dict[str, Attribute] = dict(step.node.attrs)
    for index, name in enumerate(names, start=1):
        if name and name not in attrs and len(step.node.inputs) > index and step.node.inputs[index]:
            attrs[name] = tuple(int(v) for v in step.value(index).reshape(-1))
    return replace(step.node, attrs=attrs)


@register("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(step: Step, g: Array) -> Cotangents:
    """Back to the input's shape. ONNX Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21."""
    xp = g.__array_namespace__()
    return (xp.reshape(g, step.shape(0)),)


@register("Transpose")
def transpose(step: Step, g: Array) -> Cotangents:
    """The inverse permutation. ONNX Transpose-21."""
    xp = g.__array_namespace__()
    perm = permutation(step.node, g.ndim)
    return (xp.permute_dims(g, tuple(perm.index(axis) for axis in range(g.ndim))),)


@register("Concat", slots=None)
def concat(step: Step, g: Array) -> Cotangents:
    """To each input its own part: the geometry says where that lies. ONNX Concat-13."""
    return tuple(g if i in step.wanted else None for i in range(len(step.node.inputs)))


@register("Split", outputs=None)
def split(step: Step, g: Array) -> Cotangents:
    """Each output's part at its place: the geometry says where that lies. ONNX Split-18."""
    return (g,)


@register("Expand")
def expand(step: Step, g: Array) -> Cotangents:
    """The sum over all copies. ONNX Expand-13."""
    return (sum_to(g, step.shape(0)),)


@register("Tile")
def tile(step: Step, g: Array) -> Cotangents:
    """The sum over all copies. ONNX Tile-13."""
    xp = g.__array_namespace__()
    shape = step.shape(0)
    apart = [k for out, n in zip(g.shape, shape, strict=True) for k in (out // n if n else 0, n)]
    return (xp.sum(xp.reshape(g, tuple(apart)), axis=tuple(range(0, len(apart), 2))),)


@register("Trilu", record=parameters)
def trilu(step: Step, g: Array) -> Cotangents:
    """The same triangle of g. ONNX Trilu-14."""
    xp = g.__array_namespace__()
    k = int(step.value(1).reshape(())) if any(step.node.inputs[1:]) else 0
    return (xp.triu(g, k=k) if step.attr("upper") else xp.tril(g, k=k),)


@register("Slice", record=parameters)
def slice_(step: Step, g: Array) -> Cotangents:
    """Back to where it was cut out, zeros between steps. ONNX Slice-13."""
    node = _settled(step, "starts", "ends", "axes", "steps")
    steps = slices(node, step.full_shape(0))
    spread = dilate(g, [by for _, by in steps])
    if "starts" in step.node.attrs:
        return (spread,)
    begins = [start + min((n - 1) * by, 0) for n, (start, by) in zip(g.shape, steps, strict=True)]
    return (place(spread, begins, step.shape(0)),)


@register("Pad", slots=(0, 2), record=parameters)
def pad(step: Step, g: Array) -> Cotangents:
    """What was padded on is cut off, and adds up for the padding value; else back to the original. ONNX Pad-21."""
    node = _settled(step, "pads", "", "axes")
    source, target = step.full_shape(0), step.full_shapes[step.node.output]
    begins = pad_begins(node, g.ndim)
    mode = str(step.attr("mode"))
    if mode == "constant":
        value = None
        if 2 in step.wanted:
            padding = place(np.zeros(source, g.dtype) - 1, begins, target) + 1
            xp = g.__array_namespace__()
            value = xp.reshape(xp.sum(g * step.over_output(padding)), step.shape(2))
        known = "pads" in step.node.attrs
        return (g if known else place(g, [-begin for begin in begins], source), None, value)
    for axis, (n, out, begin) in enumerate(zip(source, target, begins, strict=True)):
        if out != n or begin:
            g = put(g, _copied_from(n, begin, out, mode), axis, n)
    return (g,)


def _copied_from(n: int, begin: int, out: int, mode: str) -> Array:
    """For each of ``out`` padded positions the position, of ``n``, that it is a copy of.

    Negative pads crop before the others pad, as in onnxruntime; ONNX does not say.
    """
    end = out - n - begin
    low, left = max(-begin, 0), n + min(begin, 0) + min(end, 0)
    place = np.arange(out) - max(begin, 0)
    if mode == "edge":
        return low + np.clip(place, 0, left - 1)
    if mode == "wrap":
        return low + place % left
    turn = max(left - 1, 1)
    return low + (left - 1) - np.abs(place % (2 * turn) - (left - 1))
