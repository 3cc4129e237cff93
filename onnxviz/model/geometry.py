"""Which part of every tensor a unit can see.

Along each axis the unit at ``p`` sees an interval ``[a·p + b, a·p + b + size)``, a `Span`. Each operator maps
the spans of its output to spans of its inputs (`pull`). Followed from a layer down to the image, this gives the
windows outside which a projection is zero; followed from the image up (`fields`), every unit's receptive field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from onnxviz.model.graph import Graph, Node, Shape

__all__ = ["Field", "Pull", "Span", "Spans", "fields", "padding_begin", "pull", "union", "whole"]


@dataclass(frozen=True)
class Span:
    """The interval ``[a·p + b, a·p + b + size)`` of one axis, ``p`` being the unit's coordinate ``coord``.

    With ``coord`` None the interval is fixed: ``[b, b + size)``.
    """

    size: int
    b: int = 0
    a: int = 0
    coord: int | None = None

    def shifted(self, by: int) -> Span:
        """The same interval, moved."""
        return replace(self, b=self.b + by)

    def strided(self, stride: int, extent: int, begin: int) -> Span:
        """What a window of ``extent`` sees that steps by ``stride`` from ``-begin`` on, over this interval."""
        return Span((self.size - 1) * stride + extent, self.b * stride - begin, self.a * stride, self.coord)


Spans: TypeAlias = tuple[Span, ...]


def whole(shape: Iterable[int]) -> Spans:
    """All of a tensor."""
    return tuple(Span(size) for size in shape)


def union(spans: Sequence[Spans], shape: Shape) -> Spans:
    """The least spans that hold all of ``spans``; an axis becomes whole where they move differently."""
    merged = []
    for axis, size in enumerate(shape):
        choices = {s[axis] for s in spans}
        first = next(iter(choices))
        if first.coord is None or any((s.coord, s.a) != (first.coord, first.a) for s in choices):
            merged.append(Span(size))
            continue
        begin = min(s.b for s in choices)
        end = max(s.b + s.size for s in choices)
        span = replace(first, b=begin, size=end - begin)
        merged.append(span if span.size < size else Span(size))
    return tuple(merged)


@dataclass(frozen=True)
class Pull:
    """What an operator's reverse needs and gives.

    ``output``: the spans over which the output's cotangent must be known. ``inputs``: for each input, the
    spans that the rule's answer covers; they may reach over the tensor's border.
    """

    output: Spans
    inputs: tuple[Spans, ...]


def pull(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Map spans of output number ``index`` of ``node`` to spans of its inputs.

    An operator that mixes positions in a way not known here asks for the whole output and gives the whole
    inputs. An input without a shape (left out) gets empty spans.
    """
    rule = None if node.domain else _PULLS.get(node.op)
    if rule is not None and all(name in node.attrs for name in _NEEDED.get(node.op, ())):
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


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """An axis attribute, counted from the front."""
    axis = node.attrs[name]
    assert isinstance(axis, int), (node.name, name, axis)
    return axis % rank if rank else 0


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


def _first_pointwise(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Elementwise in the first input; the others are parameters."""
    return Pull(spans, (spans, *(whole(shapes.get(name, ())) for name in node.inputs[1:])))


def _along_axis(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Pointwise but for ``axis`` (and all after it, if ``flattened``), which is mixed."""
    shape = shapes[node.outputs[index]]
    axis = axis_of(node, len(shape))
    mixed = range(axis, len(shape)) if node.attrs.get("flattened") else (axis,)
    needed = tuple(Span(shape[i]) if i in mixed else s for i, s in enumerate(spans))
    return Pull(needed, (needed,))


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
    parameters = tuple(whole(shapes.get(name, ())) for name in node.inputs[1:])
    return Pull(
        (*spans[:1], *whole(shapes[node.outputs[0]][1:2]), *spans[2:]), ((*lead, *moved), *parameters)
    )


def _transpose(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    perm = permutation(node, len(spans))
    source = [Span(0)] * len(spans)
    for to, axis in enumerate(perm):
        source[axis] = spans[to]
    return Pull(spans, (tuple(source),))


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """``perm`` of a Transpose: reversed axes unless stated."""
    return _ints(node, "perm") if "perm" in node.attrs else tuple(reversed(range(rank)))


def _reshape(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Trailing axes of one size keep their places (as in a channel shuffle); the axes before them are mixed."""
    source, target = shapes[node.inputs[0]], shapes[node.output]
    kept = 0
    while kept < min(len(source), len(target)) and source[-1 - kept] == target[-1 - kept]:
        kept += 1
    tail = spans[len(spans) - kept :]
    needed = whole(target[: len(target) - kept]) + tail
    parameters = tuple(whole(shapes.get(name, ())) for name in node.inputs[1:])
    return Pull(needed, (whole(source[: len(source) - kept]) + tail, *parameters))


def _squeeze(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    shape = shapes[node.inputs[0]]
    if "axes" in node.attrs:
        gone = {a % len(shape) for a in _ints(node, "axes")}
    else:
        gone = {axis for axis, size in enumerate(shape) if size == 1}
    rest = iter(spans)
    source = tuple(Span(1) if axis in gone else next(rest) for axis in range(len(shape)))
    return Pull(spans, (source, *(whole(shapes.get(name, ())) for name in node.inputs[1:])))


def _unsqueeze(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    new = {a % len(spans) for a in _ints(node, "axes")}
    source = tuple(span for axis, span in enumerate(spans) if axis not in new)
    return Pull(spans, (source, *(whole(shapes.get(name, ())) for name in node.inputs[1:])))


def _concat(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    axis = axis_of(node, len(spans))
    inputs, offset = [], 0
    for name in node.inputs:
        inputs.append((*spans[:axis], spans[axis].shifted(-offset), *spans[axis + 1 :]))
        offset += shapes[name][axis]
    return Pull(spans, tuple(inputs))


def _split(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    axis = axis_of(node, len(spans))
    offset = sum(shapes[name][axis] for name in node.outputs[:index])
    source = (*spans[:axis], spans[axis].shifted(offset), *spans[axis + 1 :])
    return Pull(spans, (source, *(whole(shapes.get(name, ())) for name in node.inputs[1:])))


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
    parameters = tuple(whole(shapes.get(name, ())) for name in node.inputs[1:])
    return Pull(tuple(needed), (tuple(source), *parameters))


def pad_begins(node: Node, rank: int) -> tuple[int, ...]:
    """How much a Pad adds before the first element of each axis (negative: takes away)."""
    pads = _ints(node, "pads")
    axes = _ints(node, "axes") if "axes" in node.attrs else tuple(range(rank))
    begins = [0] * rank
    for begin, axis in zip(pads[: len(axes)], axes, strict=True):
        begins[axis % rank] = begin
    return tuple(begins)


def _pad(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    parameters = tuple(whole(shapes.get(name, ())) for name in node.inputs[1:])
    if node.attrs.get("mode", "constant") != "constant":
        return Pull(whole(shapes[node.outputs[0]]), (whole(shapes[node.inputs[0]]), *parameters))
    begins = pad_begins(node, len(spans))
    source = tuple(span.shifted(-begin) for span, begin in zip(spans, begins, strict=True))
    return Pull(spans, (source, *parameters))


_PullRule: TypeAlias = "Callable[[Node, int, Spans, Mapping[str, Shape]], Pull]"

_PULLS: Mapping[str, _PullRule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", "Mean"), _pointwise),
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Dropout", "Identity", "Cast"), _first_pointwise
    ),
    **dict.fromkeys(("BatchNormalization", "LRN"), _first_pointwise),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _along_axis),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool"), _window),
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
}

_NEEDED: Mapping[str, tuple[str, ...]] = {"Slice": ("starts",), "Pad": ("pads",), "Unsqueeze": ("axes",)}
"""Attributes that a node lacks if they are computed at run time: then its geometry is not known."""


@dataclass(frozen=True)
class Field:
    """What units of a tensor see of the image.

    ``axes``: for each of the image's two axes the tensor axis that moves over it and the span, in input pixels,
    with ``coord`` that axis; or None where every unit sees the whole image.
    """

    axes: tuple[Span | None, Span | None]


def fields(
    graph: Graph, image: str, image_axes: tuple[int, int], shapes: Mapping[str, Shape]
) -> dict[str, Field]:
    """The receptive field of every tensor that depends on ``image`` and has a shape."""
    found = {image: Field(tuple(Span(1, 0, 1, axis) for axis in image_axes))}  # type: ignore[arg-type]
    for node in graph.nodes:
        sources = [(i, name) for i, name in enumerate(node.inputs) if name in found]
        if not sources or any(name and name not in shapes for name in node.inputs):
            continue
        for index, output in enumerate(node.outputs):
            if not output or output not in shapes or 0 in shapes[output]:
                continue
            unit = tuple(Span(1, 0, 1, axis) for axis in range(len(shapes[output])))
            pulled = pull(node, index, unit, shapes)
            seen = [_compose(found[name], pulled.inputs[i]) for i, name in sources]
            found[output] = Field(tuple(_merge([f.axes[k] for f in seen]) for k in (0, 1)))  # type: ignore[arg-type]
    return found


def _compose(field: Field, spans: Spans) -> Field:
    """Field of the units whose operator sees ``spans`` of a tensor with ``field``."""

    def one(seen: Span | None) -> Span | None:
        if seen is None or seen.coord is None or seen.coord >= len(spans):
            return None
        local = spans[seen.coord]
        if local.coord is None:
            return None
        return Span(
            seen.a * (local.size - 1) + seen.size, seen.a * local.b + seen.b, seen.a * local.a, local.coord
        )

    return Field((one(field.axes[0]), one(field.axes[1])))


def _merge(choices: Sequence[Span | None]) -> Span | None:
    known = [s for s in choices if s is not None]
    if len(known) < len(choices) or any((s.coord, s.a) != (known[0].coord, known[0].a) for s in known):
        return None
    begin = min(s.b for s in known)
    return replace(known[0], b=begin, size=max(s.b + s.size for s in known) - begin)
