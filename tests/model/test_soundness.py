"""Files whose parts do not fit together, or that ask for absurd amounts: refused in words, before anything is run."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxviz
from onnxviz.check import check
from onnxviz.errors import ModelError, OnnxvizError
from onnxviz.forward.session import Session
from onnxviz.model.graph import ModelFile
from onnxviz.reverse.methods import make_method
from tests.model.nets import build, conv_weights, node, small, subgraph, write

DECONVNET = make_method("deconvnet")
RNG = np.random.default_rng(0)
W = {"w": conv_weights(RNG, 4, 3, 3, 3)}
CONV = node("Conv", "x w", "a", "conv")
F = np.float32


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _refused(path) -> str:
    """Why a model cannot be analysed: `check` and `load` agree on it."""
    with pytest.raises(ModelError) as error:
        _ = onnxviz.load(path, provider="cpu").layers
    try:
        found = check(path, DECONVNET).problem
    except ModelError as other:
        found = str(other)
    assert found, "check finds nothing wrong"
    return str(error.value)


def _tensor(name):
    return lambda m: next(t for t in m.graph.initializer if t.name == name)


def _set(message, **values):
    for name, value in values.items():
        field = getattr(message, name)
        if isinstance(value, list):
            del field[:]
            field.extend(value)
        else:
            setattr(message, name, value)


def _attribute(model, op, name):
    return next(a for n in model.graph.node if n.op_type == op for a in n.attribute if a.name == name)


def _without(model, op, name):
    found = next(n for n in model.graph.node if n.op_type == op)
    found.attribute.remove(_attribute(model, op, name))


def _refer(model):
    _attribute(model, "MaxPool", "strides").ref_attr_name = "outer"


def _text_of_bytes(model):
    """A name that is no UTF-8, which protobuf's Python does not let one write."""
    data = model.SerializeToString().replace(b"conv1", b"con\xff1")
    model.ParseFromString(data)


UNSOUND = {
    "a type that is none": (lambda m: _set(_tensor("w1")(m), data_type=99), "'w1' is of type 99"),
    "no type": (lambda m: _set(_tensor("w1")(m), data_type=0), "'w1' is of type 0"),
    "a negative size": (lambda m: _set(_tensor("w1")(m), dims=[5, 3, -3, -3]), r"\(5, 3, -3, -3\)"),
    "too few bytes": (lambda m: _set(_tensor("w1")(m), raw_data=b"12"), "'w1' is damaged: 2 bytes.*540"),
    "an absurd size": (lambda m: _set(_tensor("w1")(m), dims=[2**40, 2**40]), "'w1' is damaged"),
    "text as bytes": (lambda m: _set(_tensor("b1")(m), data_type=TensorProto.STRING), "text as raw bytes"),
    "an input of no type": (
        lambda m: _set(m.graph.input[0].type.tensor_type, elem_type=77),
        "'x' is of type 77",
    ),
    "no kernel": (lambda m: _without(m, "MaxPool", "kernel_shape"), "MaxPool 'pool1' has no kernel_shape"),
    "an attribute of another type": (
        lambda m: _set(_attribute(m, "MaxPool", "strides"), type=onnx.AttributeProto.FLOAT),
        "strides of MaxPool 'pool1' is of type FLOAT, not INTS",
    ),
    "too few inputs": (lambda m: _set(m.graph.node[0], input=["x"]), "Conv 'conv1' has 1 inputs, not 2 to 3"),
    "too many inputs": (lambda m: _set(m.graph.node[1], input=["c1", "c1"]), "Relu 'relu1' has 2 inputs"),
    "no output": (lambda m: _set(m.graph.node[1], output=[]), "Relu 'relu1' has 0 outputs, not 1"),
    "an absurd version": (lambda m: _set(m.opset_import[0], version=2**62), "version 4611686018427387904"),
    "a reference outside a function": (_refer, "refers to an attribute of a function"),
    "a name that is no text": (_text_of_bytes, "not UTF-8"),
}


@pytest.mark.parametrize(("change", "reason"), UNSOUND.values(), ids=UNSOUND)
def test_parts_that_do_not_fit_are_named_when_the_file_is_opened(tmp_path, change, reason):
    model = small()
    change(model)
    with pytest.raises(ModelError, match=reason) as error:
        ModelFile(write(tmp_path / "m.onnx", model))
    assert "m.onnx" in str(error.value)


@pytest.mark.parametrize("way", ["decode", "run"])
def test_large_tensors_are_counted_when_they_are_read(tmp_path, way, monkeypatch):
    """Opening would copy them all: half a second of a file of 553 MB."""
    monkeypatch.setattr("onnxviz.model.soundness._COUNTED", 500)
    model = small()
    _set(_tensor("w1")(model), raw_data=b"12")
    file = ModelFile(write(tmp_path / "m.onnx", model))
    with pytest.raises(ModelError, match=r"m\.onnx.*w1"):
        if way == "decode":
            file.decode(file.initializers["w1"])
        else:
            Session(file, file.cut(["c1"]))


def test_a_split_with_more_outputs_than_it_says(tmp_path):
    """At which onnx 1.23 and onnxruntime 1.31 end the process."""
    nodes = [CONV, node("Split", "a", "p q r", "parts", axis=1, num_outputs=2), node("Relu", "r", "y")]
    with pytest.raises(ModelError, match="Split 'parts' has 3 outputs, and num_outputs 2"):
        ModelFile(write(tmp_path / "m.onnx", build(nodes, W, x=(1, 3, 12, 12), opset=18)))


def test_the_same_inside_a_subgraph(tmp_path):
    body = subgraph([node("MaxPool", "a", "p")], "p")
    nodes = [
        CONV,
        node("If", "yes", "y", then_branch=body, else_branch=subgraph([node("Relu", "a", "q")], "q")),
    ]
    with pytest.raises(ModelError, match="MaxPool 'p' has no kernel_shape"):
        ModelFile(write(tmp_path / "m.onnx", build(nodes, W | {"yes": np.array(True)})))


@pytest.mark.parametrize("field", ["producer", "maker 1", "graph's name", "key", "value", "an input", "N"])
def test_text_that_is_none(tmp_path, field):
    """Wherever it stands."""
    model = build([CONV], W | {}, x=("N", 3, 12, 12), metadata={"key": "value"})
    model.producer_name, model.producer_version, model.graph.name = "producer", "maker 1", "graph's name"
    model.graph.input.add(name="an input").type.tensor_type.elem_type = TensorProto.FLOAT
    data = model.SerializeToString()
    assert data.count(field.encode()) >= 1
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(field.encode(), b"\xff" + field.encode()[1:]))
    try:
        file = ModelFile(path)
    except ModelError as error:
        assert "UTF-8" in str(error)
    else:  # where the text is not one that is ever read
        assert file.graph.nodes


CONTRADICTIONS = {
    "pads of one axis": (lambda m: _attribute(m, "Conv", "pads").ints.__delitem__(slice(1, 4)), "conv1"),
    "strides of one axis": (lambda m: _attribute(m, "MaxPool", "strides").ints.pop(), "pool1"),
    "no strides": (lambda m: _set(_attribute(m, "MaxPool", "strides"), ints=[0, 0]), ""),
    "a kernel of another rank": (lambda m: _attribute(m, "MaxPool", "kernel_shape").ints.append(3), "pool1"),
}


@pytest.mark.parametrize(("change", "where"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_attributes_that_contradict_the_tensors(tmp_path, change, where):
    model = small(x=(1, 3, 12, 12))
    change(model)
    assert where in _refused(write(tmp_path / "m.onnx", model))


S = {"starts": ints(0), "ends": ints(5), "axes": ints(2)}
SLICED = {
    "padding that takes away more than there is": [node("Pad", "x p", "b")],
    "a window larger than the image": [node("AveragePool", "x", "b", kernel_shape=[50, 50])],
    "a dilation larger than the image": [node("Conv", "x w", "b", dilations=[50, 50])],
    "a scale that is no number": [node("Resize", "x - nan", "b")],
    "a negative scale": [node("Resize", "x - minus", "b")],
    "an infinite scale": [node("Resize", "x - infinite", "b")],
    "parts of negative size": [node("Split", "x parts", "b rest", axis=2)],
    "behind another one": [
        node("Slice", "x starts ends axes", "s"),
        node("Relu", "s", "r"),
        node("MaxPool", "r", "b", kernel_shape=[9, 9]),
    ],
    "a size that a box is cut to": [node("CenterCropPad", "x five", "b", axes=[2])],
    "a constant": [
        node("AveragePool", "image", "c", kernel_shape=[50, 50]),
        node("Slice", "c starts ends axes", "d"),
        node("Add", "x one", "b"),
    ],
}
CONSTANTS = {
    "p": ints(0, 0, -50, 0, 0, 0, 0, 0),
    "nan": np.array([1, 1, np.nan, 1], F),
    "minus": np.array([1, 1, -2, 1], F),
    "infinite": np.array([1, 1, 1e30, 1], F),
    "parts": ints(-5, 17),
    "five": ints(-5),
    "one": np.ones(1, F),
    "image": np.ones((1, 3, 12, 12), F),
}


@pytest.mark.parametrize("nodes", SLICED.values(), ids=SLICED)
@pytest.mark.parametrize("size", [12, "H"], ids=["fixed", "open"])
def test_a_slice_of_a_negative_size_does_not_end_the_process(tmp_path, nodes, size):
    """onnx 1.23 and onnxruntime 1.31 abort where they infer the shape of such a Slice."""
    model = build(
        [*nodes, node("Slice", "b starts ends axes", "e"), node("Relu", "e", "y")],
        {**W, **S, **CONSTANTS},
        x=(1, 3, size, size),
        opset=18,
    )
    path = write(tmp_path / "m.onnx", model)
    try:
        _ = onnxviz.load(path, provider="cpu", size=(12, 12)).layers
    except OnnxvizError as error:
        assert isinstance(error, ModelError)


def test_images_too_small_for_a_network_with_slices(tmp_path):
    """As of YOLO, whose windows are larger than what is left of a small image."""
    nodes = [
        CONV,
        node("AveragePool", "a", "b", kernel_shape=[7, 7]),
        node("Slice", "b starts ends axes", "y"),
    ]
    path = write(tmp_path / "m.onnx", build(nodes, W | S, x=("N", 3, "H", "W")))
    assert onnxviz.load(path, provider="cpu", size=(20, 20)).layers
    with pytest.raises(ModelError, match=r"'b' would have the shape 1×4×-2×-2"):
        _ = onnxviz.load(path, provider="cpu", size=(6, 6)).layers


def test_shapes_behind_slices_are_all_there(tmp_path):
    """What is left out for a while is not left out in the end."""
    nodes = []
    name = "x"
    for k in range(4):
        nodes += [
            node("Conv", f"{name} k", f"c{k}", pads=[1, 1, 1, 1]),
            node("Slice", f"c{k} starts ends axes", f"s{k}"),
        ]
        name = f"s{k}"
    weights = {
        "k": conv_weights(RNG, 3, 3, 3, 3),
        "starts": ints(1, 0),
        "ends": ints(2**31, -1),
        "axes": ints(2, 3),
    }
    file = ModelFile(write(tmp_path / "m.onnx", build(nodes, weights, x=(2, 3, 12, 12))))
    assert [file.shapes({})[f"s{k}"] for k in range(4)] == [(2, 3, 11 - k, 11 - k) for k in range(4)]


LARGE = 2**34
BOMBS = {
    "ConstantOfShape": [node("ConstantOfShape", "large", "b"), node("Add", "a b", "y")],
    "Expand": [node("Expand", "one large", "b"), node("Add", "a b", "y")],
    "Expand of the image": [node("Expand", "a large4", "y")],
    "Tile": [node("Tile", "a repeats", "y")],
    "Range": [
        node("Range", "zero limit step", "r"),
        node("ReduceSum", "r", "s", keepdims=0),
        node("Cast", "s", "t", to=TensorProto.FLOAT),
        node("Add", "a t", "y"),
    ],
    "summed up": [
        node("Expand", "one large", "b"),
        node("ReduceSum", "b", "s", keepdims=0),
        node("Add", "a s", "y"),
    ],
    "hidden in arithmetic, summed up": [
        node("Cast", "large", "f", to=TensorProto.DOUBLE),
        node("Pow", "f two", "g"),
        node("Sqrt", "g", "h"),
        node("Cast", "h", "i", to=TensorProto.INT64),
        node("Expand", "one i", "b"),
        node("ReduceSum", "b", "s", keepdims=0),
        node("Add", "a s", "y"),
    ],
    "hidden in arithmetic, filled": [
        node("Cast", "large", "f", to=TensorProto.DOUBLE),
        node("Pow", "f two", "g"),
        node("Sqrt", "g", "h"),
        node("Cast", "h", "i", to=TensorProto.INT64),
        node("ConstantOfShape", "i", "b"),
        node("ReduceSum", "b", "s", keepdims=0),
        node("Add", "a s", "y"),
    ],
    "hidden in the image's size": [
        node("Shape", "x", "size"),
        node("ReduceProd", "size", "n", keepdims=1),
        node("Mul", "n million", "m"),
        node("Expand", "one m", "b"),
        node("ReduceSum", "b", "s", keepdims=0),
        node("Add", "a s", "y"),
    ],
    "Pad": [node("Pad", "a wide", "y")],
    "Resize": [node("Resize", "a - scales", "y")],
    "Conv": [node("Conv", "a v", "y", pads=[2**20] * 4)],
    "ConvTranspose": [node("ConvTranspose", "a v", "y", strides=[2**15, 2**15])],
    "MatMul": [
        node("Flatten", "a", "f"),
        node("Unsqueeze", "f last", "u"),
        node("Expand", "one line", "l"),
        node("MatMul", "u l", "y"),
    ],
    "OneHot": [
        node("ArgMax", "a", "i", axis=1),
        node("OneHot", "i depth onoff", "y", axis=1),
    ],
    "RandomNormal": [node("RandomNormal", "", "b", shape=[LARGE]), node("Add", "a b", "y")],
}
BOMB_CONSTANTS = {
    "large": ints(LARGE),
    "large4": ints(LARGE, 4, 10, 10),
    "one": np.ones(1, F),
    "two": np.array(2.0),
    "million": ints(10**9),
    "repeats": ints(1, 1, 2**17, 2**17),
    "zero": np.array(0),
    "limit": np.array(LARGE),
    "step": np.array(1),
    "wide": ints(0, 0, 2**17, 2**17, 0, 0, 2**17, 2**17),
    "scales": np.array([1, 1, 2**16, 2**16], F),
    "v": conv_weights(RNG, 4, 4, 3, 3),
    "last": ints(2),
    "line": ints(1, 2**28),
    "depth": np.array(2**30),
    "onoff": np.array([0, 1], F),
}


@pytest.mark.parametrize("nodes", BOMBS.values(), ids=BOMBS)
def test_sizes_that_no_memory_holds_are_refused(tmp_path, nodes):
    path = write(tmp_path / "m.onnx", build([CONV, *nodes], W | BOMB_CONSTANTS, x=(1, 3, 12, 12)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    message = _refused(path)
    unit = 1 if sys.platform == "darwin" else 1 << 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 5 << 30, message
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 2**40, 12), (1, 2**40, 12, 12), (2**40, 3, 12, 12), ("N", 2**30, 1, 1), (1, 3, 2**31, 2**31)],
    ids=str,
)
def test_images_that_no_memory_holds_are_refused(tmp_path, shape):
    message = _refused(write(tmp_path / "m.onnx", build([node("Relu", "x", "y")], x=shape)))
    assert "too large" in message


def test_an_input_beside_the_image_that_no_memory_holds(tmp_path):
    more = helper.make_tensor_value_info("q", TensorProto.FLOAT, [2**40])
    model = build([CONV, node("Add", "a q", "y")], W, more_inputs=[more])
    assert "'q'" in _refused(write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [0, 2**33, 2**33]], ids=str)
def test_an_input_of_size_0_that_is_absurd_all_the_same(tmp_path, shape):
    more = helper.make_tensor_value_info("q", TensorProto.FLOAT, shape)
    model = build(
        [CONV, node("Shape", "q", "s"), node("Reshape", "a s", "y")], W, more_inputs=[more], x=(1, 3, 12, 12)
    )
    assert "'q'" in _refused(write(tmp_path / "m.onnx", model))


def test_a_reduction_whose_axes_do_not_fit(tmp_path):
    """Its output is said to have more axes than are kept."""
    model = build(
        [CONV, node("ReduceMin", "a", "y", axes=[1, 2], keepdims=7)],
        W,
        x=(1, 3, 12, 12),
        opset=13,
        outputs=["y"],
    )
    path = write(tmp_path / "m.onnx", model)
    try:
        _ = onnxviz.load(path, provider="cpu").layers
    except OnnxvizError as error:
        assert isinstance(error, ModelError)


def test_a_constant_without_a_name(tmp_path):
    constant = helper.make_node("Constant", [], [], value=onnx.numpy_helper.from_array(np.ones(1, F)))
    model = build([CONV, constant, node("Relu", "a", "y")], W)
    del model.opset_import[:]
    with pytest.raises(ModelError):
        _ = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu").layers


def test_an_external_tensor_that_no_memory_holds(tmp_path):
    model = small()
    tensor = _tensor("w1")(model)
    tensor.ClearField("raw_data")
    _set(tensor, dims=[2**40, 3, 3, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(540))
    assert "w1" in _refused(write(tmp_path / "m.onnx", model))


VECTORS = {
    "Range": [node("Range", "zero limit step", "r"), node("Cast", "r", "t", to=TensorProto.FLOAT)],
    "filled": [node("ConstantOfShape", "large", "r"), node("Cast", "r", "t", to=TensorProto.INT64)],
    "of the image's size": [
        node("Shape", "x", "s"),
        node("Gather", "s step", "n"),
        node("Mul", "n million", "m"),
        node("Expand", "step m", "r"),
        node("Concat", "r r", "t", axis=0),
    ],
    "a flat image": [node("Reshape", "x flat", "r"), node("Gather", "r zero", "t")],
}


@pytest.mark.parametrize("nodes", VECTORS.values(), ids=VECTORS)
def test_values_of_long_vectors_are_not_followed(tmp_path, nodes):
    """onnx makes an entry for each of their elements; here there are 50 million and more."""
    length = 2**28
    weights = W | BOMB_CONSTANTS | {"limit": np.array(length), "large": ints(length), "flat": ints(-1)}
    size = 2**12 if "flat" in nodes[0].input else 12
    model = build([CONV, *nodes, node("Relu", "a", "y")], weights, x=(1, 3, size, size), outputs=["y", "t"])
    start = time.monotonic()
    try:
        file = ModelFile(write(tmp_path / "m.onnx", model))
        assert file.shapes({})["a"] == (1, 4, size - 2, size - 2)
    except ModelError as error:
        assert "'m'" in str(error) or "'r'" in str(error) or "'t'" in str(error)
    assert time.monotonic() - start < 5


def test_a_loop_without_end_is_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxviz.runtime._TRIAL_SECONDS", 1.0)
    kinds = {"i": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "go2": (TensorProto.BOOL, [])}
    body = subgraph(
        [node("Add", "h one", "h2"), node("Identity", "go", "go2")], "go2 h2", "i go h", types=kinds
    )
    nodes = [CONV, node("Loop", "trips yes a", "h3", "loop", body=body), node("Conv", "h3 v", "y")]
    weights = W | {
        "trips": np.array(2**62),
        "yes": np.array(True),
        "one": F(1),
        "v": conv_weights(RNG, 4, 4, 3, 3),
    }
    start = time.monotonic()
    assert "Loop 'loop': no end after 1 s" in _refused(write(tmp_path / "m.onnx", build(nodes, weights)))
    assert time.monotonic() - start < 30


def test_a_layer_whose_channels_hang_on_the_number_of_images(tmp_path):
    """Its kernel is made of the images: for two of them it has two channels."""
    nodes = [CONV, node("Conv", "a a", "y", "odd")]
    path = write(tmp_path / "m.onnx", build(nodes, W))
    with pytest.raises(ModelError, match="does not treat images alike"):
        onnxviz.analyze(path, layers=["odd"], limit=3, batch_size=3, provider="cpu")


def test_names_are_printed_as_text(tmp_path):
    """A name must not clear the terminal, nor fill it."""
    with pytest.raises(OnnxvizError) as error:
        raise ModelError(f"m.onnx: no tensor '\x1b[2J' and {'n' * 5000} in the file\nof two lines \udcff")
    text = str(error.value)
    assert text.isprintable()
    assert len(text) <= 480
    assert text.startswith("m.onnx: no tensor '\\x1b[2J' and nnn")
    assert text.endswith("in the file of two lines \\udcff")
