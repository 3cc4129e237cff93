"""Receptive fields and strides, against what a change of single pixels changes in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

import onnxviz
from onnxviz.model.graph import Node
from onnxviz.model.pulls import padding_begin
from onnxviz.model.spans import Span, union, whole
from tests.model.nets import build, node, write

HEIGHT, WIDTH = 25, 23


def _positive(seed: int, *shape: int) -> np.ndarray:
    """Weights that let no two changes cancel."""
    scale = np.random.default_rng(seed).uniform(0.5, 1.5, shape)
    return (scale / np.prod(shape[1:])).astype(np.float32)


W3, W5, W1, W35 = (
    _positive(0, 2, 2, 3, 3),
    _positive(1, 2, 2, 5, 5),
    _positive(2, 2, 2, 1, 1),
    _positive(3, 2, 2, 3, 5),
)
INTS = {name: np.array(values, np.int64) for name, values in {
    "start": [2, 1], "end": [21, 22], "axes": [2, 3], "step": [2, 1], "pads": [0, 0, 2, 1, 0, 0, 3, 0],
    "less": [0, 0, -2, -1, 0, 0, 0, -3], "halves": [1, 1], "last": [25], "rows": [2], "behind": [-20],
}.items()}  # fmt: skip

NETS = {
    "conv": [node("Conv", "x w3", "y")],
    "conv-same": [node("Conv", "x w3", "y", pads=[1, 1, 1, 1])],
    "conv-stride": [node("Conv", "x w5", "y", strides=[2, 3], pads=[2, 2, 2, 2])],
    "conv-asymmetric-pads": [node("Conv", "x w3", "y", strides=[2, 2], pads=[0, 1, 2, 0])],
    "conv-not-square": [node("Conv", "x w35", "y", strides=[1, 2])],
    "conv-dilated": [node("Conv", "x w3", "y", dilations=[2, 3], pads=[2, 3, 2, 3])],
    "conv-same-upper": [node("Conv", "x w5", "y", strides=[2, 2], auto_pad="SAME_UPPER")],
    "conv-same-lower": [node("Conv", "x w3", "a", strides=[2, 2], auto_pad="SAME_LOWER"), node("Conv", "a w3", "y")],
    "conv-valid": [node("Conv", "x w3", "y", strides=[2, 2], auto_pad="VALID")],
    "strided-pointwise": [node("Conv", "x w1", "y", strides=[3, 2])],
    "two-convs": [
        node("Conv", "x w5", "a", strides=[2, 2], pads=[2, 2, 2, 2]),
        node("Conv", "a w3", "y", pads=[1, 1, 1, 1]),
    ],
    "conv-relu-pool-conv": [
        node("Conv", "x w3", "a", strides=[2, 1]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0]),
        node("Conv", "c w3", "y", pads=[1, 0, 1, 0]),
    ],
    "max-pool-dilated": [node("MaxPool", "x", "y", kernel_shape=[2, 3], dilations=[3, 2], strides=[2, 1])],
    "max-pool-ceil": [node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)],
    "average-pool": [node("AveragePool", "x", "y", kernel_shape=[3, 2], strides=[3, 2], pads=[1, 0, 1, 1])],
    "residual": [
        node("Conv", "x w3", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "a w3", "b", pads=[1, 1, 1, 1]),
        node("Conv", "x w1", "c", strides=[2, 2]),
        node("Add", "b c", "y"),
    ],
    "inception": [
        node("Conv", "x w1", "a"),
        node("Conv", "x w5", "b", pads=[2, 2, 2, 2]),
        node("MaxPool", "x", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", "a b c", "d", axis=1),
        node("AveragePool", "d", "y", kernel_shape=[2, 2], strides=[2, 2]),
    ],
    "off-centre-branches": [
        node("Conv", "x w3", "a", pads=[2, 2, 0, 0]),
        node("Conv", "x w3", "b", pads=[0, 0, 2, 2]),
        node("Add", "a b", "y"),
    ],
    "pad": [node("Pad", "x pads", "p"), node("Conv", "p w3", "y", strides=[2, 2])],
    "pad-less": [node("Pad", "x less", "p"), node("Conv", "p w3", "y", strides=[2, 2])],
    "slice": [node("Slice", "x start end axes", "s"), node("Conv", "s w3", "y", strides=[2, 2])],
    "slice-step": [node("Slice", "x start end axes step", "s"), node("Conv", "s w3", "y", pads=[1, 1, 1, 1])],
    "slice-from-the-end": [
        node("Conv", "x w3", "a", pads=[1, 1, 1, 1]),
        node("Slice", "a behind last rows", "s"),
        node("Relu", "s", "y"),
    ],
    "split-channels": [
        node("Conv", "x w3", "a", strides=[2, 2]),
        node("Split", "a halves", "b c", axis=1),
        node("Concat", "c b", "d", axis=1),
        node("Conv", "d w3", "y"),
    ],
    "transposed-and-back": [
        node("Conv", "x w35", "a", strides=[2, 1]),
        node("Transpose", "a", "b", perm=[0, 3, 1, 2]),
        node("Relu", "b", "c"),
        node("Transpose", "c", "d", perm=[0, 2, 3, 1]),
        node("Conv", "d w3", "y"),
    ],
    "normalised": [
        node("BatchNormalization", "x ones zeros zeros ones", "a"),
        node("LRN", "a", "b", size=3),
        node("Clip", "b", "c"),
        node("Dropout", "c", "d"),
        node("Conv", "d w3", "y", strides=[2, 2]),
    ],
    "softmax-over-channels": [node("Conv", "x w3", "a", strides=[2, 2]), node("Softmax", "a", "y", axis=1)],
    "squeeze-and-excite": [
        node("Conv", "x w3", "a", strides=[2, 2]),
        node("GlobalAveragePool", "a", "g"),
        node("Sigmoid", "g", "h"),
        node("Mul", "a h", "y"),
    ],
    "global-pool": [node("Conv", "x w3", "a"), node("GlobalAveragePool", "a", "y")],
    "mean-over-rows": [node("Conv", "x w3", "a", strides=[2, 2]), node("ReduceMean", "a", "y", axes=[2])],
    "softmax-over-columns": [node("Conv", "x w3", "a"), node("Softmax", "a", "y", axis=3)],
    "gemm": [node("Flatten", "x", "f"), node("Gemm", "f dense", "y", transB=1)],
}  # fmt: skip
WHOLE = {"squeeze-and-excite", "global-pool", "gemm"}
ROWS_WHOLE, COLUMNS_WHOLE = {"mean-over-rows"}, {"softmax-over-columns"}


@pytest.fixture(scope="module", params=list(NETS))
def seen(request, tmp_path_factory):
    """A net's last layer, and (units…, H, W): whether a pixel's change changes the unit in any channel."""
    weights = {"w1": W1, "w3": W3, "w5": W5, "w35": W35, **INTS}
    weights |= {"ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32)}
    weights["dense"] = _positive(4, 3, 2 * HEIGHT * WIDTH)
    model = build(NETS[request.param], weights, x=("N", 2, HEIGHT, WIDTH), outputs=["y"])
    net = onnxviz.load(write(tmp_path_factory.mktemp("net") / "m.onnx", model), provider="cpu")
    layer = net.layers[-1]
    assert layer.tensor == "y"
    base = np.random.default_rng(9).uniform(0.5, 1, (1, 2, HEIGHT, WIDTH)).astype(np.float32)
    changed = np.repeat(base, HEIGHT * WIDTH, axis=0)
    pixels = np.arange(HEIGHT * WIDTH)
    changed[pixels, :, pixels // WIDTH, pixels % WIDTH] += [
        100,
        250,
    ]  # in a ratio of its own: Softmax sees it
    before, after = net.activations(base, layer), net.activations(changed, layer)
    different = (np.abs(after - before) > 1e-7 * np.abs(before)).any(axis=1)
    return request.param, layer, np.moveaxis(different, 0, -1).reshape(*different.shape[1:], HEIGHT, WIDTH)


def _bounds(line: np.ndarray) -> tuple[int, int]:
    places = np.flatnonzero(line)
    return int(places[0]), int(places[-1]) + 1


def test_receptive_field(seen):
    name, layer, influence = seen
    if name in WHOLE:
        assert layer.stride is None
        assert layer.receptive_field == (HEIGHT, WIDTH)
        assert layer.box(0, 0) == (0, 0, HEIGHT, WIDTH)
        return
    assert layer.size == influence.shape[:2]
    inside = 0
    for y, x in np.ndindex(layer.size):
        field = influence[y, x]
        if not field.any():  # a window in the padding alone
            continue
        rows, columns = _bounds(field.any(axis=1)), _bounds(field.any(axis=0))
        top, left, bottom, right = layer.box(y, x)
        assert top <= rows[0]
        assert left <= columns[0]
        assert bottom >= rows[1]
        assert right >= columns[1]
        if top >= 0 and left >= 0 and bottom <= HEIGHT and right <= WIDTH:
            inside += 1
            if not name.startswith(("pad", "slice")):  # what is cut away at a side belongs to no unit there
                assert (top, left, bottom, right) == (rows[0], columns[0], rows[1], columns[1])
    assert inside >= 4
    y, x = layer.size[0] // 2, layer.size[1] // 2
    middle = influence[y, x]
    assert layer.box(y, x) == tuple(
        bound
        for pair in zip(_bounds(middle.any(axis=1)), _bounds(middle.any(axis=0)), strict=True)
        for bound in pair
    )


def test_stride(seen):
    name, layer, influence = seen
    if name in WHOLE:
        assert layer.stride is None
        return
    y, x = layer.size[0] // 2, layer.size[1] // 2
    below = influence[y if name in ROWS_WHOLE else y + 1, x]
    here, beside = influence[y, x], influence[y, x + 1]
    assert (layer.stride[0] == 0, layer.stride[1] == 0) == (name in ROWS_WHOLE, name in COLUMNS_WHOLE)
    moved = (
        _bounds(below.any(axis=1))[0] - _bounds(here.any(axis=1))[0],
        _bounds(beside.any(axis=0))[0] - _bounds(here.any(axis=0))[0],
    )
    assert layer.stride == moved


def test_a_channel_shuffle_leaves_the_field_as_it_is(tmp_path):
    """ShuffleNet's Reshape, Transpose, Reshape splits and joins the channel axis alone."""
    nodes = [
        node("Conv", "x w3", "a", strides=[2, 2]),
        node("Reshape", "a split", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "c joined", "d"),
        node("Conv", "d w3", "y"),
    ]
    weights = {"w3": W3, "split": np.array([0, 2, 1, 12, 11]), "joined": np.array([0, 2, 12, 11])}
    model = build(nodes, weights, x=("N", 2, HEIGHT, WIDTH))
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    assert net.layer("y").receptive_field == (7, 7)
    assert net.layer("y").stride == (2, 2)


def test_branches_of_different_strides_see_everything(tmp_path):
    """Their units are not in one affine relation with pixels."""
    nodes = [
        node("Conv", "x w1", "a", strides=[2, 2]),
        node("Conv", "x w1", "b"),
        node("Slice", "b zero twelve axes", "c"),
        node("Add", "a c", "y"),
    ]
    weights = {"w1": W1, "zero": np.array([0, 0]), "twelve": np.array([13, 12]), "axes": np.array([2, 3])}
    model = build(nodes, weights, x=("N", 2, HEIGHT, WIDTH))
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    assert net.layer("y").stride is None
    assert net.layer("y").receptive_field == (HEIGHT, WIDTH)


# Spans by themselves


def test_a_strided_window_over_a_span():
    unit = Span(1, 0, 1, 2)
    first = unit.strided(2, 3, 1)
    assert first == Span(3, -1, 2, 2)
    assert first.strided(4, 11, 0) == Span(19, -4, 8, 2)


def test_union_holds_both():
    a, b = Span(3, -1, 2, 2), Span(1, 0, 2, 2)
    assert union([(a,), (b,)], (50,)) == (Span(3, -1, 2, 2),)
    assert union([(a,), (Span(4, 1, 2, 2),)], (50,)) == (Span(6, -1, 2, 2),)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Span(3, 0, 2, 2), Span(3, 0, 1, 2)),
        (Span(3, 0, 2, 2), Span(3, 0, 2, 3)),
        (Span(3, 0, 2, 2), Span(50)),
    ],
    ids=["stride", "axis", "whole"],
)
def test_union_of_what_moves_differently_is_the_whole_axis(a, b):
    assert union([(a,), (b,)], (50,)) == whole((50,))
    assert union([(b,), (a,)], (50,)) == whole((50,))


def test_union_no_larger_than_the_axis():
    assert union([(Span(60, -5, 2, 2),)], (50,)) == (Span(50),)


@pytest.mark.parametrize(
    ("auto", "size", "kernel", "stride", "begin"),
    [
        ("SAME_UPPER", 7, 3, 2, 1),
        ("SAME_UPPER", 8, 3, 2, 0),
        ("SAME_LOWER", 8, 3, 2, 1),
        ("SAME_UPPER", 8, 4, 1, 1),
        ("SAME_LOWER", 8, 4, 1, 2),
        ("SAME_UPPER", 8, 1, 2, 0),
        ("VALID", 8, 3, 2, 0),
        ("NOTSET", 8, 3, 2, 5),
    ],
)
def test_padding_begin(auto, size, kernel, stride, begin):
    attrs = {
        "auto_pad": auto,
        "kernel_shape": (kernel,),
        "strides": (stride,),
        "dilations": (1,),
        "pads": (5, 6),
    }
    assert padding_begin(Node("c", "Conv", "", ("x", "w"), ("y",), attrs), (size,)) == (begin,)
