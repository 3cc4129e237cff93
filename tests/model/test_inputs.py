"""The input that takes images, among whatever inputs there are."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxviz
from onnxviz.errors import LayerNotFoundError, ModelError
from onnxviz.model.graph import ModelFile
from onnxviz.model.inputs import image_input
from tests.model.nets import build, conv_weights, node, write

value = helper.make_tensor_value_info
FLOAT, HALF, BYTES, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64


def _file(tmp_path, shape, dtype=FLOAT, more=()):
    model = build([node("Identity", "x", "y")], x=shape, dtype=dtype, more_inputs=more)
    return ModelFile(write(tmp_path / "model.onnx", model))


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "height", "width", "batch"),
    [
        (("N", 3, 224, 320), "NCHW", 3, 224, 320, None),
        ((1, 3, 224, 224), "NCHW", 3, 224, 224, 1),
        ((None, 3, None, None), "NCHW", 3, None, None, None),
        (("N", 1, 28, 28), "NCHW", 1, 28, 28, None),
        ((4, 7, 9, 11), "NCHW", 7, 9, 11, 4),
        (("N", 224, 320, 3), "NHWC", 3, 224, 320, None),
        ((1, 28, 28, 1), "NHWC", 1, 28, 28, 1),
        (("N", "H", "W", 3), "NHWC", 3, None, None, None),
        ((None, None, None, 4), "NHWC", 4, None, None, None),
        ((2, None, None, 12), "NHWC", 12, None, None, 2),
        ((1, 1, 1, 1), "NCHW", 1, 1, 1, 1),
        ((1, 3, 32, 3), "NCHW", 3, 32, 3, 1),
        (("N", 28, 28), "NHW", 1, 28, 28, None),
        (("N", 80, "T"), "NHW", 1, 80, None, None),
        (("N", 1, 16000), "NHW", 1, 1, 16000, None),
        ((1, 16000, 1), "NWH", 1, 1, 16000, 1),
        (("N", 128), "NW", 1, 1, 128, None),
    ],
)
def test_layout_and_sizes(tmp_path, shape, layout, channels, height, width, batch):
    image = image_input(_file(tmp_path, shape))
    assert (image.layout, image.channels, image.height, image.width, image.batch) == (
        layout,
        channels,
        height,
        width,
        batch,
    )


def test_order_and_shape():
    from onnxviz.model.inputs import ImageInput

    first = ImageInput("x", "float32", "NCHW", 3, None, None, None)
    last = ImageInput("x", "float32", "NHWC", 3, None, None, None)
    assert first.shape(2, (5, 7)) == (2, 3, 5, 7)
    assert last.shape(2, (5, 7)) == (2, 5, 7, 3)
    assert np.transpose(np.zeros(last.shape(2, (5, 7))), last.order).shape == first.shape(2, (5, 7))
    assert str(first) == "x: float32 N×3×H×W (NCHW)"
    assert str(last) == "x: float32 N×H×W×3 (NHWC)"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(FLOAT, "float32"), (HALF, "float16"), (BYTES, "uint8"), (TensorProto.DOUBLE, "float64")],
)
def test_types_that_hold_images(tmp_path, dtype, name):
    assert image_input(_file(tmp_path, ("N", 3, 8, 8), dtype)).dtype == name


@pytest.mark.parametrize(
    "more",
    [
        [value("mask", FLOAT, ["N", 10])],
        [value("ids", INT, ["N", 3, 8, 8])],
        [value("features", FLOAT, ["N", 256, 14, 14])],
        [value("flag", TensorProto.BOOL, [])],
    ],
    ids=["vector", "integers", "feature-map", "scalar"],
)
def test_the_image_among_other_inputs(tmp_path, more):
    assert image_input(_file(tmp_path, ("N", 3, 8, 8), more=more)).name == "x"


def test_two_images_are_one_too_many(tmp_path):
    more = [value("right", FLOAT, ["N", 3, 8, 8])]
    with pytest.raises(ModelError, match="several inputs") as error:
        image_input(_file(tmp_path, ("N", 3, 8, 8), more=more))
    message = str(error.value)
    assert "x: float32 N×3×8×8" in message
    assert "right: float32 N×3×8×8" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "shown"),
    [
        (("N", "seq"), INT, "x: int64 N×seq"),
        (("N", 3, 16, 112, 112), FLOAT, "N×3×16×112×112"),
        ((None, None, None, None), FLOAT, "x: float32 ?×?×?×?"),
        (None, FLOAT, "x: float32 of unknown shape"),
    ],
    ids=["tokens", "video", "open", "no-shape"],
)
def test_no_image_input_lists_what_there_is(tmp_path, shape, dtype, shown):
    path = tmp_path / "model.onnx"
    model = build([node("Identity", "x", "y")], x=shape, dtype=dtype)
    with pytest.raises(ModelError, match="no image input") as error:
        onnxviz.load(write(path, model), provider="cpu")
    message = str(error.value)
    assert str(path) in message
    assert shown in message
    assert error.value.exit_code == 1


def test_a_second_input_that_a_layer_does_not_need_is_not_fed(tmp_path):
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("GlobalAveragePool", "c", "g", "gap"),
        node("Flatten", "g", "f", "flat"),
        node("Concat", "f extra", "y", "concat", axis=1),
    ]
    weights = {"w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3)}
    model = build(nodes, weights, more_inputs=[value("extra", FLOAT, ["N", 10])])
    net = onnxviz.load(write(tmp_path / "two.onnx", model), provider="cpu")
    x = np.zeros((2, 3, 12, 12), np.float32)
    assert net.activations(x, "conv1").shape == (2, 4, 10, 10)
    # Nobody feeds ``extra``: what needs it cannot be had, and nothing else is given for it.
    with pytest.raises((ModelError, LayerNotFoundError)):
        net.activations(x, "concat")


CONV_FIRST = {
    "NCHW": [node("Sub", "x mean", "a"), node("Conv", "a w", "y", group=2)],
    "NHWC": [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "y", group=2)],
}


@pytest.mark.parametrize("layout", CONV_FIRST)
def test_where_the_file_says_nothing_the_first_convolution_counts_the_channels(tmp_path, layout):
    weights = {"w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3), "mean": np.float32(0.5)}
    model = build(CONV_FIRST[layout], weights, x=(None, None, None, None))
    image = image_input(ModelFile(write(tmp_path / "m.onnx", model)))
    assert (image.layout, image.channels, image.height, image.width) == (layout, 6, None, None)


def test_an_image_goes_before_signals_and_signals_among_themselves_are_too_many(tmp_path):
    more = [value("state", FLOAT, [2, 1, 128]), value("gain", FLOAT, ["N", 4])]
    assert image_input(_file(tmp_path, ("N", 3, 8, 8), more=more)).name == "x"
    with pytest.raises(ModelError, match="Name one with --input"):
        image_input(_file(tmp_path, ("N", "T"), more=more))
    assert image_input(_file(tmp_path, ("N", "T"), more=more), "x").layout == "NW"
