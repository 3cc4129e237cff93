"""Networks whose input is not an image of channels: planes, signals and vectors."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli
from onnxviz.errors import ModelError, UsageError
from onnxviz.images.preprocess import resolve_preprocess
from tests.model.nets import build, conv_weights, node, write
from tests.reverse.pasting import paste

RNG = np.random.default_rng(3)
LEADS, SAMPLES = 5, 60

SIGNAL = build(
    [
        node("Conv", "x w", "a", "conv_a", strides=[2], pads=[3, 3]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[3], strides=[2], pads=[1, 1]),
        node("Conv", "c v", "y", "conv_b", dilations=[2], pads=[2, 2]),
    ],
    {"w": conv_weights(RNG, 6, LEADS, 7), "v": conv_weights(RNG, 4, 6, 3)},
    x=("N", LEADS, SAMPLES),
)
PLANE = build(
    [
        node("Unsqueeze", "x one", "u"),
        node("Conv", "u w", "a", "conv_a", strides=[2, 1]),
        node("Relu", "a", "y"),
    ],
    {"w": conv_weights(RNG, 6, 1, 3, 3), "one": np.array([1])},
    x=("N", 11, 13),
)
VECTOR = build(
    [node("Gemm", "x w", "a", "first"), node("Relu", "a", "b"), node("Gemm", "b v", "y", "last")],
    {"w": conv_weights(RNG, 9, 7), "v": conv_weights(RNG, 7, 4)},
    x=("N", 9),
)
READING = build(
    [
        node("Conv", "x w", "a", "conv_a", strides=[1, 2], pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("ReduceMean", "b", "c", axes=[2], keepdims=0),
        node("Conv", "c v", "y", "letters", pads=[1, 1]),
    ],
    {"w": conv_weights(RNG, 6, 3, 3, 3), "v": conv_weights(RNG, 4, 6, 3)},
    x=("N", 3, 8, 40),
)
"""Rows are averaged away, as in networks that read text: what is left is a sequence along the width."""

CHANNELS_LAST = build(
    [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("Conv", "t w", "a", "conv_a", strides=[2], pads=[3, 3]),
        node("Relu", "a", "y"),
    ],
    {"w": conv_weights(RNG, 6, 3, 7)},
    x=("N", 50, 3),
)

NETS = {
    "signal": SIGNAL,
    "channels-last": CHANNELS_LAST,
    "plane": PLANE,
    "vector": VECTOR,
    "reading": READING,
}


@pytest.fixture(params=list(NETS))
def opened(request, tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", NETS[request.param]), provider="cpu")
    x = np.random.default_rng(11).standard_normal(net.image.shape(3, net.size)).astype(np.float32)
    return request.param, net, x


def test_the_input_as_understood(opened):
    name, net, x = opened
    expected = {
        "signal": ("NHW", 1, LEADS, SAMPLES),
        "plane": ("NHW", 1, 11, 13),
        "channels-last": ("NWH", 1, 3, 50),
        "vector": ("NW", 1, 1, 9),
        "reading": ("NCHW", 3, 8, 40),
    }[name]
    image = net.image
    assert (image.layout, image.channels, image.height, image.width) == expected
    assert image.to_nchw(x).shape == (3, image.channels, *net.size)


def test_a_sequence_has_one_row_and_follows_the_width(tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", SIGNAL), provider="cpu")
    layer = net.layer("conv_b")
    assert layer.size == (15,)
    assert layer.grid == (1, 15)
    assert layer.stride == (0, 4)
    top, _, bottom, _ = layer.box(0, 2)
    assert (top, bottom) == (0, LEADS)
    reading = onnxviz.load(write(tmp_path / "r.onnx", READING), provider="cpu").layer("letters")
    assert (reading.stride, reading.receptive_field[0]) == ((0, 2), 8)


def test_boxes_hold_just_what_the_unit_sees(opened):
    """Against a change of one pixel at a time, through onnxruntime."""
    _, net, x = opened
    layer = net.layers[-1]
    height, width = net.size
    base = net.image.to_nchw(x[:1])
    many = np.repeat(base, height * width, axis=0)
    pixels = np.arange(height * width)
    many[pixels, :, pixels // width, pixels % width] += 5
    recipe = resolve_preprocess(
        channels=net.image.channels, height=height, width=width, layout=net.image.layout, dtype="float32"
    )
    before = net.activations(x[:1], layer)
    after = net.activations(recipe.batch(list(many)), layer)
    changed = (np.abs(after - before) > 1e-6).any(axis=1).reshape(height, width, *layer.grid)
    for y, u in np.ndindex(layer.grid):
        rows, columns = np.nonzero(changed[:, :, y, u])
        top, left, bottom, right = layer.box(y, u)
        assert rows.size == 0 or (top <= rows.min() and rows.max() < bottom)
        assert columns.size == 0 or (left <= columns.min() and columns.max() < right)


@pytest.mark.parametrize("method", ["gradient", "deconvnet"])
def test_units_equal_whole_projections(opened, method):
    _, net, x = opened
    layer = net.layers[-1]
    rows, columns = layer.grid
    places = [(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)]
    units = np.array([[n, 1, *places[n]] for n in range(3)])
    windows = net.project_units(x, layer, units, method)
    whole = net.image.to_nchw(net.project(x, layer, 1, places, method))
    for pixels, box, expected in zip(windows.pixels, windows.boxes, whole, strict=True):
        np.testing.assert_allclose(paste(pixels, box, net.size), expected, atol=1e-6 * np.abs(expected).max())
    assert np.abs(whole).max() > 0


def test_the_gradient_is_the_derivative(opened):
    _, net, x = opened
    layer = net.layers[-1]
    strongest = net.activations(x[:1], layer)[0, 2].argmax()  # a rectifier lets it through
    y, u = (int(i) for i in np.unravel_index(strongest, layer.grid))
    gradient = net.project(x[:1], layer, 2, (y, u), "gradient")
    # Along the gradient the difference is largest, far above what float32 rounds.
    d = (0.01 * gradient / np.sqrt((gradient**2).sum())).astype(np.float32)

    def unit(at):
        return float(net.activations(at, layer)[0, 2].reshape(layer.grid)[y, u])

    assert np.vdot(gradient, d) == pytest.approx((unit(x[:1] + d) - unit(x[:1] - d)) / 2, rel=2e-3)


def test_analysed_from_arrays(opened, tmp_path):
    """A report of every layer from the network's own float values."""
    name, net, _ = opened
    data = (
        np.random.default_rng(12).standard_normal((12, *net.image.shape(1, net.size)[1:])).astype(np.float32)
    )
    if name == "vector":
        data = data[:, None, :]
    np.save(tmp_path / "data.npy", data)
    result = CliRunner().invoke(
        cli.app,
        [
            *("analyze", str(net.file.path), "--images", str(tmp_path / "data.npy"), "--layer", "*"),
            *("--out", str(tmp_path / "out"), "--preprocess", "raw"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "12 images scanned, 0 skipped" in result.stdout
    assert (tmp_path / "out" / "index.html").exists()


def test_a_position_outside_a_sequence(tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", SIGNAL), provider="cpu")
    x = np.zeros((1, LEADS, SAMPLES), np.float32)
    with pytest.raises(UsageError, match=r"1×15 units; there is no unit \(1, 0\)"):
        net.project(x, "conv_b", 0, (1, 0))


# Several inputs

value = helper.make_tensor_value_info
TWO = build(
    [
        node("Conv", "x w", "a", "left_conv"),
        node("Conv", "right w", "b", "right_conv"),
        node("Mul", "b gain", "c"),
        node("Add", "a c", "y"),
    ],
    {"w": conv_weights(RNG, 4, 3, 3, 3)},
    more_inputs=[
        value("right", TensorProto.FLOAT, ["N", 3, 12, 12]),
        value("gain", TensorProto.FLOAT, ["N", 4, 1, 1]),
    ],
)


def test_the_image_input_is_named_and_the_others_are_fed(tmp_path):
    path = write(tmp_path / "two.onnx", TWO)
    with pytest.raises(ModelError, match="Name one with --input"):
        onnxviz.load(path, provider="cpu")
    other = np.random.default_rng(13).standard_normal((1, 3, 12, 12)).astype(np.float32)
    net = onnxviz.load(path, provider="cpu", image="right", feeds={"x": other, "gain": np.full(4, 2.5)})
    x = np.random.default_rng(14).standard_normal((3, 3, 12, 12)).astype(np.float32)
    plain = onnxviz.load(path, provider="cpu", image="x", feeds={"right": other, "gain": np.full(4, 2.5)})
    sum_ = net.activations(x, "y")
    expected = 2.5 * net.activations(x, "right_conv") + plain.activations(other, "left_conv")
    np.testing.assert_allclose(sum_, expected, atol=1e-5)
    gradient = net.project(x, "y", 1, (4, 4), "gradient")
    np.testing.assert_allclose(gradient, 2.5 * net.project(x, "right_conv", 1, (4, 4), "gradient"), rtol=1e-5)


def test_vjp_answers_for_every_input(tmp_path):
    net = onnxviz.load(write(tmp_path / "two.onnx", TWO), provider="cpu", image="x")
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("x", (2, 3, 12, 12)), ("right", (2, 3, 12, 12)), ("gain", (2, 4, 1, 1)))
    }
    g = rng.standard_normal((2, 4, 10, 10)).astype(np.float32)
    answer = net.vjp(inputs, {"y": g})
    assert {name: a.shape for name, a in answer.items()} == {n: v.shape for n, v in inputs.items()}
    b = net.vjp(inputs, {"right_conv": g})["right"]
    np.testing.assert_allclose(
        answer["right"], net.vjp(inputs, {"right_conv": g * inputs["gain"]})["right"], rtol=1e-4, atol=1e-5
    )
    assert np.abs(b).max() > 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 1, "Name one with --input"),
        (["--input", "nothing"], 2, "has no input 'nothing'"),
        (["--input", "x"], 1, "--feed right=VALUE"),
        (["--input", "x", "--feed", "right"], 2, "write NAME=0.5"),
        (["--input", "x", "--feed", "right=zero"], 2, "write NAME=0.5"),
        (["--input", "x", "--feed", "right=1", "--feed", "gain=1,2,3"], 2, "gain"),
        (["--input", "x", "--feed", "nobody=1"], 2, "nobody"),
        (["--input", "x", "--feed", "right=missing.npy"], 2, "missing.npy"),
    ],
)
def test_errors(tmp_path, options, code, words):
    path = write(tmp_path / "two.onnx", TWO)
    result = CliRunner().invoke(
        cli.app, ["analyze", str(path), "--layer", "y", "--out", str(tmp_path / "out"), *options]
    )
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_fed_from_the_command_line(tmp_path):
    path = write(tmp_path / "two.onnx", TWO)
    np.save(tmp_path / "right.npy", np.ones((1, 3, 12, 12), np.float32))
    result = CliRunner().invoke(
        cli.app,
        [
            *("analyze", str(path), "--layer", "y", "--out", str(tmp_path / "out"), "--limit", "6"),
            *("--input", "x", "--feed", f"right={tmp_path / 'right.npy'}", "--feed", "gain=1,2,3,4"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "6 images scanned" in result.stdout
