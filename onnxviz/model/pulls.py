"""What part of its inputs each operator needs for a part of its output.

`pull` maps the spans of an output to spans of the inputs, with one small function an operator (or family).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from onnxviz.model.spans import Span, Spans, whole

if TYPE_CHECKING:
    from onnxviz.model.graph import Node, Shape

__all__ = ["Pull", "pad_begins", "padding_begin", "permutation", "pull", "slices"]


@dataclass(frozen=True)
class Pull:
    """What an operator's reverse needs and gives.

    ``output``: the spans over which the output's cotangent must be known. ``inputs``: for each input, the
    spans that the rule's answer covers; they may reach over the tensor's border.
    """

    output: Spans
    inputs: tuple[Spans, ...]


_PullRule: TypeAlias = "Callable[[Node, int, Spans, Mapping[str, Shape]], Pull]"

PULLS: dict[str, _PullRule] = {}
"""How each operator of the default domain pulls spans. One that is not here mixes all positions."""

_NEEDED: dict[str, tuple[str, ...]] = {}
"""Attributes that a node lacks if they are computed at run time: then its geometry is not known."""


def _pulls(*ops: str, needs: tuple[str, ...] = ()) -> Callable[[_PullRule], _PullRule]:
    """Enter a function as the geometry of ``ops``, whose nodes must have the attributes ``needs``."""

    def add(function: _PullRule) -> _PullRule:
        for op in ops:
            if op in PULLS:
                raise ValueError(f"{op} has a geometry already: {PULLS[op].__name__}")
            PULLS[op] = function
            _NEEDED[op] = needs
        return function

    return add


def pull(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Map spans of output number ``index`` of ``node`` to spans of its inputs.

    An operator that mixes positions in a way not known here asks for the whole output and gives the whole
    inputs. An input without a shape (left out) gets empty spans.
    """
    rule = None if node.domain else PULLS.get(node.op)
    if rule is not None and all(name in node.attrs for name in _NEEDED[node.op]):
        return rule(node, index, spans, shapes)
    return Pull(
        whole(shapes[node.outputs[index]]), tuple(whole(shapes.get(name, ())) for name in node.inputs)
    )


def padding_begin(node: Node, sizes: Sequence[int]) -> tuple[int, ...]:
    """Padding before the first element on each spatial axis of a Conv or pool, ``auto_pad`` worked out.

    Source: ONNX Conv-11 and MaxPool-12, ``auto_pad``: with SAME the output size is ceil(input / stride).
    """
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return (0,) * len(sizes)
    if auto == "NOTSET":
        return tuple(_ints(node, "pads")[: len(sizes)])
    begins = []
    for size, kernel, stride, dilation in zip(
        sizes, _ints(node, "kernel_shape"), _ints(node, "strides"), _ints(node, "dilations"), strict=True
    ):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return tuple(begins)


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attrs[name]
    assert isinstance(value, tuple), (node.name, name, value)
    return tuple(int(v) for v in value)


def _parameters(node: Node, shapes: Mapping[str, Shape]) -> tuple[Spans, ...]:
    """All of every input after the first."""
    return tuple(whole(shapes.get(name, ())) for name in node.inputs[1:])


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """An axis attribute, counted from the front."""
    axis = node.attrs[name]
    assert isinstance(axis, int), (node.name, name, axis)
    return axis % rank if rank else 0


@_pulls("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", "Mean")
def _pointwise(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Elementwise, with NumPy broadcasting: a broadcast axis is seen whole."""
    full = shapes[node.outputs[index]]
    inputs = []
    for name in node.inputs:
        shape = shapes.get(name, ())
        tail = spans[len(spans) - len(shape) :] if len(shape) <= len(spans) else whole(shape)
        sizes = full[len(full) - len(shape) :]
        inputs.append(
            tuple(s if n == size else Span(n) for s, n, size in zip(tail, shape, sizes, strict=False))
        )
    return Pull(spans, tuple(inputs))


@_pulls("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Dropout", "Identity", "Cast")
def _first_pointwise(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Elementwise in the first input; the others are parameters."""
    return Pull(spans, (spans, *_parameters(node, shapes)))


@_pulls("BatchNormalization", "LRN")
def _channels(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Pointwise but for the channels, axis 1, that are taken together."""
    needed = (*spans[:1], *whole(shapes[node.outputs[index]][1:2]), *spans[2:])
    return Pull(needed, (needed, *_parameters(node, shapes)))


@_pulls("Softmax", "LogSoftmax")
def _along_axis(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Pointwise but for ``axis`` (and all after it, if ``flattened``), which is mixed."""
    shape = shapes[node.outputs[index]]
    axis = axis_of(node, len(shape))
    mixed = range(axis, len(shape)) if node.attrs.get("flattened") else (axis,)
    needed = tuple(Span(shape[i]) if i in mixed else s for i, s in enumerate(spans))
    return Pull(needed, (needed,))


@_pulls("Conv", "MaxPool", "AveragePool")
def _window(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    source = shapes[node.inputs[0]]
    if "kernel_shape" not in node.attrs:  # the weights are computed: their shape says it
        kernel, ones = shapes[node.inputs[1]][2:], (1,) * (len(source) - 2)
        filled = {"strides": ones, "dilations": ones, "pads": (0,) * (2 * len(ones)), **node.attrs}
        node = replace(node, attrs={**filled, "kernel_shape": kernel})
    moved = tuple(
        span.strided(stride, (kernel - 1) * dilation + 1, begin)
        for span, kernel, stride, dilation, begin in zip(
            spans[2:],
            _ints(node, "kernel_shape"),
            _ints(node, "strides"),
            _ints(node, "dilations") if "dilations" in node.attrs else (1,) * (len(source) - 2),
            padding_begin(node, source[2:]),
            strict=True,
        )
    )
    lead = (spans[0], Span(source[1])) if node.op == "Conv" else spans[:2]
    parameters = _parameters(node, shapes)
    return Pull(
        (*spans[:1], *whole(shapes[node.outputs[0]][1:2]), *spans[2:]), ((*lead, *moved), *parameters)
    )


@_pulls("Transpose")
def _transpose(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    perm = permutation(node, len(spans))
    source = [Span(0)] * len(spans)
    for to, axis in enumerate(perm):
        source[axis] = spans[to]
    return Pull(spans, (tuple(source),))


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """``perm`` of a Transpose: reversed axes unless stated."""
    return _ints(node, "perm") if "perm" in node.attrs else tuple(reversed(range(rank)))


@_pulls("Reshape", "Flatten")
def _reshape(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Axes that a reshape leaves alone keep their places; those that it splits or joins are mixed."""
    source, target = shapes[node.inputs[0]], shapes[node.output]
    needed, given = list(whole(target)), list(whole(source))
    for here, there in _matched_axes(source, target):
        needed[there] = given[here] = spans[there]
    return Pull(tuple(needed), (tuple(given), *_parameters(node, shapes)))


def _matched_axes(source: Shape, target: Shape) -> list[tuple[int, int]]:
    """Pairs of axes of one size with as many elements before (and so after) them in both shapes."""
    pairs = []
    here = there = 0
    before_here = before_there = 1
    while here < len(source) and there < len(target):
        if before_here == before_there and source[here] == target[there]:
            pairs.append((here, there))
            before_here, before_there = before_here * source[here], before_there * target[there]
            here, there = here + 1, there + 1
        elif before_here * source[here] <= before_there * target[there]:
            before_here, here = before_here * source[here], here + 1
        else:
            before_there, there = before_there * target[there], there + 1
    return pairs


@_pulls("Squeeze")
def _squeeze(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    shape = shapes[node.inputs[0]]
    if "axes" in node.attrs:
        gone = {a % len(shape) for a in _ints(node, "axes")}
    else:
        gone = {axis for axis, size in enumerate(shape) if size == 1}
    rest = iter(spans)
    source = tuple(Span(1) if axis in gone else next(rest) for axis in range(len(shape)))
    return Pull(spans, (source, *_parameters(node, shapes)))


@_pulls("Unsqueeze", needs=("axes",))
def _unsqueeze(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    new = {a % len(spans) for a in _ints(node, "axes")}
    source = tuple(span for axis, span in enumerate(spans) if axis not in new)
    return Pull(spans, (source, *_parameters(node, shapes)))


@_pulls("Concat")
def _concat(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    axis = axis_of(node, len(spans))
    inputs, offset = [], 0
    for name in node.inputs:
        inputs.append((*spans[:axis], spans[axis].shifted(-offset), *spans[axis + 1 :]))
        offset += shapes[name][axis]
    return Pull(spans, tuple(inputs))


@_pulls("Split")
def _split(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    axis = axis_of(node, len(spans))
    offset = sum(shapes[name][axis] for name in node.outputs[:index])
    source = (*spans[:axis], spans[axis].shifted(offset), *spans[axis + 1 :])
    return Pull(spans, (source, *_parameters(node, shapes)))


def slices(node: Node, shape: Shape) -> tuple[tuple[int, int], ...]:
    """(start, step) on every axis of the input of a Slice (ONNX Slice-13: clamped, negative from the end)."""
    steps = [(0, 1)] * len(shape)
    starts = _ints(node, "starts")
    axes = _ints(node, "axes") if "axes" in node.attrs else tuple(range(len(starts)))
    strides = _ints(node, "steps") if "steps" in node.attrs else (1,) * len(starts)
    for start, axis, step in zip(starts, axes, strides, strict=True):
        size = shape[axis % len(shape)]
        start = start + size if start < 0 else start
        steps[axis % len(shape)] = (min(max(start, 0), size if step > 0 else size - 1), step)
    return tuple(steps)


@_pulls("Slice", needs=("starts",))
def _slice(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    source, needed = [], []
    for span, size, (start, step) in zip(
        spans, shapes[node.outputs[0]], slices(node, shapes[node.inputs[0]]), strict=True
    ):
        if step < 0:
            needed.append(Span(size))
            source.append(Span((size - 1) * -step + 1, start + (size - 1) * step))
        else:
            needed.append(span)
            source.append(Span((span.size - 1) * step + 1, span.b * step + start, span.a * step, span.coord))
    parameters = _parameters(node, shapes)
    return Pull(tuple(needed), (tuple(source), *parameters))


def pad_begins(node: Node, rank: int) -> tuple[int, ...]:
    """How much a Pad adds before the first element of each axis (negative: takes away)."""
    pads = _ints(node, "pads")
    axes = _ints(node, "axes") if "axes" in node.attrs else tuple(range(rank))
    begins = [0] * rank
    for begin, axis in zip(pads[: len(axes)], axes, strict=True):
        begins[axis % rank] = begin
    return tuple(begins)


@_pulls("Pad", needs=("pads",))
def _pad(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    parameters = _parameters(node, shapes)
    if node.attrs.get("mode", "constant") != "constant":
        return Pull(whole(shapes[node.outputs[0]]), (whole(shapes[node.inputs[0]]), *parameters))
    begins = pad_begins(node, len(spans))
    source = tuple(span.shifted(-begin) for span, begin in zip(spans, begins, strict=True))
    return Pull(spans, (source, *parameters))
