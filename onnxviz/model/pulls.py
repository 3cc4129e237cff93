"""What part of its inputs each operator needs for a part of its output.

`pull` maps the spans of an output to spans of the inputs, with one small function an operator (or family).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from onnxviz.model.spans import Span, Spans, whole

if TYPE_CHECKING:
    from onnxviz.model.graph import Node, Shape

__all__ = [
    "WEIGHTS",
    "Pull",
    "pad_begins",
    "padding_begin",
    "permutation",
    "pull",
    "reduced_axes",
    "resized_axes",
    "slices",
    "subscripts",
    "transposed_begins",
    "with_window",
]


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
    return _everything(node, index, shapes)


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


def _broadcast(spans: Spans, full: Shape, shape: Shape) -> Spans:
    """Spans of an operand of ``shape`` for spans of its broadcast to ``full``: a broadcast axis is seen whole."""
    tail = spans[len(spans) - len(shape) :] if len(shape) <= len(spans) else whole(shape)
    sizes = full[len(full) - len(shape) :]
    return tuple(s if n == size else Span(n) for s, n, size in zip(tail, shape, sizes, strict=False))


@_pulls("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", "Mean", "Mod", "Where", "PRelu", "SwiGLU")
@_pulls("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def _pointwise(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Elementwise, with NumPy broadcasting."""
    full = shapes[node.outputs[index]]
    return Pull(spans, tuple(_broadcast(spans, full, shapes.get(name, ())) for name in node.inputs))


@_pulls(
    *("Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "HardSwish"),
    *("Clip", "Shrink", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign"),
    *("Abs", "Neg", "Reciprocal", "Sqrt", "Exp", "Log", "Erf", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan"),
    *("Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
    *("Dropout", "Identity", "Cast", "CastLike"),
    *("Not", "Ceil", "Floor", "Round", "Sign", "IsNaN", "IsInf"),
    *("ParametricSoftplus", "ScaledTanh", "Affine", "ImageScaler", "Scale"),
)
def _first_pointwise(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Elementwise in the first input; the others are parameters."""
    return Pull(spans, (spans, *_parameters(node, shapes)))


def _mixed_axes(node: Node, rank: int) -> Collection[int]:
    """The axes along which a normalisation or the like does not work position by position."""
    if node.op == "BatchNormalization" and node.attrs.get("training_mode"):
        return range(rank)
    if node.op in ("InstanceNormalization", "GroupNormalization") or node.attrs.get("spatial") == 0:
        return range(1, rank)
    if node.op in ("LRN", "BatchNormalization"):
        return (1,)
    if node.op == "MeanVarianceNormalization":
        return {a % rank for a in _ints(node, "axes")}
    axis = axis_of(node, rank)
    to_the_last = node.op in ("LayerNormalization", "RMSNormalization") or node.attrs.get("flattened")
    return range(axis, rank) if to_the_last else (axis,)


@_pulls("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN")
@_pulls("LayerNormalization", "RMSNormalization", "MeanVarianceNormalization", "LpNormalization")
@_pulls("Softmax", "LogSoftmax")
@_pulls("CumSum", "CumProd", needs=("axis",))
def _mixing(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Pointwise but for some axes, which are taken whole."""
    source, target = shapes[node.inputs[0]], shapes[node.outputs[index]]
    mixed = _mixed_axes(node, len(source))
    needed, given = (
        tuple(Span(shape[i]) if i in mixed else span for i, span in enumerate(spans))
        for shape in (target, source)
    )
    parameters = _parameters(node, shapes)
    if node.op in ("LayerNormalization", "RMSNormalization"):
        parameters = tuple(_broadcast(given, source, shapes.get(name, ())) for name in node.inputs[1:])
    return Pull(needed, (given, *parameters))


def reduced_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes that a reduction takes together, each once: all if it names none, unless that means none."""
    axes = _ints(node, "axes") if "axes" in node.attrs else ()
    if not axes and not node.attrs.get("noop_with_empty_axes"):
        return tuple(range(rank))
    return tuple(sorted({a % rank for a in axes}))


@_pulls("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
@_pulls("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
def _reduction(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    source = shapes[node.inputs[0]]
    if "axes" not in node.attrs and any(node.inputs[1:]):
        return _everything(node, index, shapes)
    axes, keep = reduced_axes(node, len(source)), node.attrs["keepdims"]
    rest = iter(spans)
    apart = [next(rest) if keep or i not in axes else Span(1) for i in range(len(source))]
    given = tuple(
        Span(n) if i in axes else span for i, (n, span) in enumerate(zip(source, apart, strict=True))
    )
    needed = tuple(Span(1) if i in axes else s for i, s in enumerate(apart) if keep or i not in axes)
    return Pull(needed, (given, *_parameters(node, shapes)))


@_pulls("Det")
def _det(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    return Pull(spans, ((*spans, *whole(shapes[node.inputs[0]][-2:])),))


@_pulls("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def _loss(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """The loss of a position comes from its channels, axis 1; log-probabilities have that axis too."""
    source = shapes[node.inputs[0]]
    if index == 0 and node.attrs["reduction"] != "none":
        return _everything(node, index, shapes)
    places = spans if index == 0 else (*spans[:1], *spans[2:])
    given = (*places[:1], *whole(source[1:2]), *places[1:])
    return Pull(places if index == 0 else given, (given, places, *_parameters(node, shapes)[1:]))


WEIGHTS: Mapping[str, int] = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
"""Which input of a convolution holds its weights."""


def with_window(node: Node, kernel: Sequence[int]) -> Node:
    """The node with all that a convolution's window has; what it does not state has its default."""
    ones, none = (1,) * len(kernel), (0,) * (2 * len(kernel))
    defaults = {"strides": ones, "dilations": ones, "pads": none, "output_padding": none[: len(kernel)]}
    return replace(node, attrs={**defaults, **node.attrs, "kernel_shape": tuple(kernel)})


@_pulls("Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool")
def _window(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    source = shapes[node.inputs[0]]
    if node.op in WEIGHTS:
        node = with_window(node, shapes[node.inputs[WEIGHTS[node.op]]][2:])
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
    channels, produced = source[1], shapes[node.outputs[0]][1]
    needed = (spans[0], Span(produced), *spans[2:])
    return Pull(needed, ((spans[0], Span(channels), *moved), *_parameters(node, shapes)))


def transposed_begins(node: Node, sizes: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...]:
    """What a ConvTranspose cuts off before the first element of each spatial axis.

    Args:
        node: with its window (`with_window`).
        sizes: spatial sizes of its input, and ``outputs`` those of its output.

    Source: ONNX ConvTranspose-11; the odd one goes to the end with SAME_UPPER, else to the beginning.
    """
    auto = node.attrs.get("auto_pad", "NOTSET")
    if "output_shape" not in node.attrs:
        if auto == "VALID":
            return (0,) * len(sizes)
        if auto == "NOTSET":
            return _ints(node, "pads")[: len(sizes)]
    begins = []
    names = ("kernel_shape", "strides", "dilations", "output_padding")
    for size, out, kernel, stride, dilation, extra in zip(
        sizes, outputs, *(_ints(node, name) for name in names), strict=True
    ):
        total = max((size - 1) * stride + extra + (kernel - 1) * dilation + 1 - out, 0)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return tuple(begins)


@_pulls("ConvTranspose")
def _transposed(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """A window of the output is seen from a window of the input where the stride is 1, else mixed."""
    source, target = shapes[node.inputs[0]], shapes[node.output]
    node = with_window(node, shapes[node.inputs[1]][2:])
    needed, given = [spans[0], Span(target[1])], [spans[0], Span(source[1])]
    begins = transposed_begins(node, source[2:], target[2:])
    names = ("kernel_shape", "strides", "dilations")
    for axis, (begin, kernel, stride, dilation) in enumerate(
        zip(begins, *(_ints(node, name) for name in names), strict=True), start=2
    ):
        span, reach = spans[axis], (kernel - 1) * dilation
        needed.append(span if stride == 1 else Span(target[axis]))
        seen = replace(span, size=span.size + reach, b=span.b + begin - reach)
        given.append(seen if stride == 1 else Span(source[axis]))
    return Pull(tuple(needed), (tuple(given), *_parameters(node, shapes)))


@_pulls("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Every channel on its own, all positions together."""
    return Pull(spans, ((*spans[:2], *whole(shapes[node.inputs[0]][2:])),))


_ROW_BY_ROW: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (0,),
    "Col2Im": (0,),
    "DeformConv": (0, 2, 4),
    "DepthToSpace": (0,),
    "GridSample": (0, 1),
    "MaxUnpool": (0, 1),
}
"""Operators that mix all axes but the batch, and which of their inputs have it."""


@_pulls(*_ROW_BY_ROW)
def _row_by_row(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    inputs = []
    for i, name in enumerate(node.inputs):
        full = whole(shapes.get(name, ()))
        inputs.append((spans[0], *full[1:]) if i in _ROW_BY_ROW[node.op] and name else full)
    return Pull((spans[0], *whole(shapes[node.output][1:])), tuple(inputs))


def resized_axes(node: Node, source: Shape, target: Shape) -> dict[int, int]:
    """Axes that a Resize or Upsample resamples: each with its place in ``scales``, ``sizes`` and ``roi``.

    One that keeps its size and is not cropped is left alone; where the scales are computed that cannot be told.
    Where no axis changes its size onnxruntime copies, whatever else was asked for.
    """
    if source == target:
        return {}
    rank = len(source)
    axes = [a % rank for a in _ints(node, "axes")] if "axes" in node.attrs else list(range(rank))
    sized = len(node.inputs) > 3 and bool(node.inputs[3])
    stretched = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    cropped = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    resampled = {}
    for place, axis in enumerate(axes):
        scales, roi = node.attrs.get("scales"), node.attrs.get("roi")
        kept = source[axis] == target[axis]
        unscaled = scales[place] == 1 if isinstance(scales, tuple) else sized and stretched
        kept = kept and unscaled
        if cropped:
            kept = kept and isinstance(roi, tuple) and (roi[place], roi[len(axes) + place]) == (0, 1)
        if not kept:
            resampled[axis] = place
    return resampled


@_pulls("Resize", "Upsample")
def _resize(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    source, target = shapes[node.inputs[0]], shapes[node.output]
    mixed = resized_axes(node, source, target)
    needed = tuple(Span(target[a]) if a in mixed else s for a, s in enumerate(spans))
    given = tuple(Span(source[a]) if a in mixed else s for a, s in enumerate(spans))
    return Pull(needed, (given, *_parameters(node, shapes)))


@_pulls("SpaceToDepth")
def _space_to_depth(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Every position holds the block that it was made of."""
    source, block = shapes[node.inputs[0]], node.attrs["blocksize"]
    assert isinstance(block, int)
    moved = tuple(span.strided(block, block, 0) for span in spans[2:])
    return Pull(
        (spans[0], *whole(shapes[node.output][1:2]), *spans[2:]), ((spans[0], Span(source[1]), *moved),)
    )


@_pulls("CenterCropPad")
def _center_crop_pad(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """ONNX CenterCropPad-18: an odd rest is cropped, and padded, after the end."""
    source = tuple(
        span.shifted((have - want) // 2 if have > want else -((want - have) // 2))
        for span, have, want in zip(spans, shapes[node.inputs[0]], shapes[node.output], strict=True)
    )
    return Pull(spans, (source, *_parameters(node, shapes)))


@_pulls("QuantizeLinear", "DequantizeLinear")
def _quantized(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Elementwise; an axis with scales of its own is taken whole, and so are all where scales are of blocks."""
    full = whole(shapes[node.output])
    scale = shapes[node.inputs[1]]
    if len(scale) == 1 and scale != (1,):
        axis = axis_of(node, len(spans))
        spans = (*spans[:axis], full[axis], *spans[axis + 1 :])
    elif len(scale) > 1:
        spans = full
    return Pull(spans, (spans, *_parameters(node, shapes)))


_FACTORS: Mapping[str, tuple[int, int]] = {"MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
"""Which inputs of a quantised product its two factors are."""


@_pulls(*_FACTORS)
def _quantized_product(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Rows of the first factor keep their places where the second is one matrix."""
    inputs = [whole(shapes.get(name, ())) for name in node.inputs]
    first, second = _FACTORS[node.op]
    if len(inputs[second]) != 2 or len(inputs[first]) < 2:
        return Pull(whole(shapes[node.output]), tuple(inputs))
    inputs[first] = (*spans[:-1], *inputs[first][-1:])
    return Pull((*spans[:-1], *whole(shapes[node.output][-1:])), tuple(inputs))


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
    if "axes" not in node.attrs and any(node.inputs[1:]):
        return _everything(node, index, shapes)
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
    begins = pad_begins(node, len(spans))
    if node.attrs.get("mode", "constant") != "constant":
        sizes = list(zip(shapes[node.inputs[0]], shapes[node.outputs[0]], begins, strict=True))
        kept = [n == out and not begin for n, out, begin in sizes]
        return Pull(
            tuple(s if k else Span(out) for s, k, (_, out, _) in zip(spans, kept, sizes, strict=True)),
            (
                tuple(s if k else Span(n) for s, k, (n, _, _) in zip(spans, kept, sizes, strict=True)),
                *parameters,
            ),
        )
    source = tuple(span.shifted(-begin) for span, begin in zip(spans, begins, strict=True))
    return Pull(spans, (source, *parameters))


def _everything(node: Node, index: int, shapes: Mapping[str, Shape]) -> Pull:
    """All positions are mixed, in a way not known here."""
    return Pull(
        whole(shapes[node.outputs[index]]), tuple(whole(shapes.get(name, ())) for name in node.inputs)
    )


def _by_rows(
    node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape], inputs: Sequence[int], axis: int = 0
) -> Pull:
    """Along ``axis`` the output and the numbered ``inputs`` go together; all other axes are mixed."""
    shape = shapes[node.outputs[index]]

    def kept(full: Shape) -> Spans:
        return (*whole(full[:axis]), spans[axis], *whole(full[axis + 1 :]))

    return Pull(
        kept(shape),
        tuple(
            kept(full) if i in inputs and full[axis : axis + 1] == (shape[axis],) else whole(full)
            for i, full in enumerate(shapes.get(name, ()) for name in node.inputs)
        ),
    )


@_pulls("Expand")
def _expand(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    pulled = _pointwise(replace(node, inputs=node.inputs[:1]), index, spans, shapes)
    return Pull(spans, (*pulled.inputs, *_parameters(node, shapes)))


@_pulls("Tile", "Trilu", "TopK", "Compress", "ReverseSequence")
def _other_axes(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Axes on which positions are moved are seen whole; the others keep their places."""
    source, target = shapes[node.inputs[0]], shapes[node.outputs[index]]
    parameters = _parameters(node, shapes)
    rank = len(source)
    if len(target) != rank or (node.op == "Compress" and "axis" not in node.attrs):
        return _everything(node, index, shapes)
    if node.op == "Tile":
        moved = {i for i in range(rank) if source[i] != target[i]}
    elif node.op == "Trilu":
        moved = {rank - 2, rank - 1}
    elif node.op == "ReverseSequence":
        moved = {axis_of(node, rank, "time_axis"), axis_of(node, rank, "batch_axis")}
        if axis_of(node, rank, "batch_axis") == 0:
            moved, parameters = moved - {0}, ((spans[0],),)
    else:
        moved = {axis_of(node, rank)}

    def kept(full: Shape) -> Spans:
        return tuple(Span(full[i]) if i in moved else span for i, span in enumerate(spans))

    return Pull(kept(target), (kept(source), *parameters))


@_pulls("Gather")
def _gather(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    source, picked = (shapes[name] for name in node.inputs)
    axis = axis_of(node, len(source))
    before, after = spans[:axis], spans[axis + len(picked) :]
    return Pull(
        (*before, *whole(picked), *after), ((*before, Span(source[axis]), *after), *_parameters(node, shapes))
    )


@_pulls("GatherElements", "Scatter", "ScatterElements", "TensorScatter")
def _elements(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    if axis_of(node, len(shapes[node.inputs[0]])) == 0:
        return _everything(node, index, shapes)
    return _by_rows(node, index, spans, shapes, range(len(node.inputs)))


@_pulls("GatherND", "ScatterND")
def _tuples(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Index tuples pick whole slices, whose axes keep their places; so does axis 0 where it is a batch."""
    source, picked = shapes[node.inputs[0]], shapes[node.inputs[1]]
    batch = node.attrs.get("batch_dims", 0)
    assert isinstance(batch, int)
    slices_ = len(source) - batch - picked[-1]
    lead = spans[:1] if batch else ()
    rest = spans[len(spans) - slices_ :]

    def kept(full: Shape) -> Spans:
        return (*lead, *whole(full[len(lead) : len(full) - slices_]), *rest)

    indices = (*lead, *whole(picked[len(lead) :]))
    updates = [kept(shapes[name]) for name in node.inputs[2:]]
    return Pull(kept(shapes[node.outputs[index]]), (kept(source), indices, *updates))


@_pulls("MatMul")
def _matmul(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Batch axes and the rows of the product keep their places; its columns are taken together."""
    a, b = (shapes[name] for name in node.inputs)
    full = shapes[node.outputs[index]]
    rows, columns = int(len(a) > 1), int(len(b) > 1)
    batch = len(full) - rows - columns

    def stretched(shape: Shape) -> Spans:
        at = batch - len(shape)
        return tuple(spans[at + i] if n == full[at + i] else Span(n) for i, n in enumerate(shape))

    left = (*stretched(a[:-2]), *spans[batch : batch + rows], Span(a[-1]))
    right = (*stretched(b[:-2]), *whole(b[-2:]))
    return Pull((*spans[: batch + rows], *whole(full[batch + rows :])), (left, right))


@_pulls("Gemm")
def _gemm(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """The rows of the product keep their places."""
    a = shapes[node.inputs[0]]
    needed = (spans[0], *whole(shapes[node.outputs[index]][1:]))
    left = (Span(a[0]), spans[0]) if node.attrs.get("transA") else (spans[0], Span(a[1]))
    bias = _pointwise(replace(node, inputs=node.inputs[2:]), index, needed, shapes).inputs
    return Pull(needed, (left, whole(shapes[node.inputs[1]]), *bias))


def subscripts(equation: str, ranks: Sequence[int]) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Labels of the axes of each operand and of the result of an Einsum; those under an ellipsis are numbers.

    Source: ONNX Einsum-12. Without an arrow the result has the ellipsis, then every letter that occurs once, sorted.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    widest = max([w for term, w in zip(terms, widths, strict=True) if "..." in term], default=0)

    def labels(term: str, width: int) -> tuple[str, ...]:
        head, dots, tail = term.partition("...")
        return (*head, *(str(k) for k in range(widest - width, widest) if dots), *tail)

    operands = tuple(labels(term, width) for term, width in zip(terms, widths, strict=True))
    if not arrow:
        letters = "".join(terms).replace(".", "")
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return operands, labels(right, widest)


@_pulls("Einsum")
def _einsum(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """An axis of the result keeps its place in operands that share the result's first axis, the rows."""
    equation = node.attrs["equation"]
    assert isinstance(equation, str)
    full = shapes[node.outputs[index]]
    terms, result = subscripts(equation, [len(shapes[name]) for name in node.inputs])
    operands = list(zip(terms, (shapes[name] for name in node.inputs), strict=True))
    places = {}
    for label, span, size in zip(result, spans, full, strict=True):
        having = [(term, shape) for term, shape in operands if label in term]
        if all(
            term[0] == result[0] and term.count(label) == 1 and shape[term.index(label)] == size
            for term, shape in having
        ):
            places[label] = span
    return Pull(
        tuple(places.get(label, Span(size)) for label, size in zip(result, full, strict=True)),
        tuple(
            tuple(places.get(label, Span(n)) for label, n in zip(term, shape, strict=True))
            for term, shape in operands
        ),
    )


_BATCHED: Mapping[str, Mapping[int, int]] = {
    "Attention": {0: 0, 1: 0, 2: 0, 3: 4, 4: 0, 5: 0, 6: 0},
    "RotaryEmbedding": {0: 0, 1: 3, 2: 3, 3: 0},
    "STFT": {0: 0},
}
"""Inputs that have a batch, with the rank from which on they have it."""


@_pulls(*_BATCHED)
def _sequences(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Every sequence of the batch on its own."""
    ranks = [len(shapes.get(name, ())) for name in node.inputs]
    rows = [i for i, least in _BATCHED[node.op].items() if i < len(ranks) and ranks[i] >= least]
    return _by_rows(node, index, spans, shapes, rows)


@_pulls("DFT", needs=("axis",))
def _transformed(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Every row on its own, unless they are transformed."""
    if axis_of(node, len(spans)) == 0:
        return _everything(node, index, shapes)
    return _by_rows(node, index, spans, shapes, (0,))


@_pulls("RNN", "GRU", "LSTM")
def _recurrent(node: Node, index: int, spans: Spans, shapes: Mapping[str, Shape]) -> Pull:
    """Every sequence on its own; the batch comes first only in layout 1."""
    if not node.attrs.get("layout", 0):
        return _everything(node, index, shapes)
    return _by_rows(node, index, spans, shapes, (0, 4, 5, 6))
