"""Opening a file: what is not a model, weights in other files, old opsets, functions."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper

import onnxviz
from onnxviz.errors import ModelError, OnnxvizError, UsageError
from onnxviz.forward.session import Session
from onnxviz.model.graph import ModelFile
from tests.model.nets import build, conv_weights, forward, node, small, write

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"


def _zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", "x")


BAD_FILES = {
    "text": (lambda p: p.write_text("hello, this is a text file\n"), "it holds text"),
    "text-in-newlines": (lambda p: p.write_text("\n\x05hello"), "it holds text"),
    "python": (lambda p: p.write_text("import torch\nnet = torch.nn.Linear(1, 1)\n"), "it holds text"),
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "truncated": (lambda p: p.write_bytes(small().SerializeToString()[:-40]), "not a complete protobuf"),
    "truncated-early": (
        lambda p: p.write_bytes(small().SerializeToString()[:500]),
        "not a complete protobuf",
    ),
    "zip": (_zip, "zip archive, perhaps a PyTorch checkpoint"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"w": np.zeros(9)})), "not a complete protobuf"),
    "png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), "not a complete protobuf"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(300)), "HDF5 file, perhaps a Keras model"),
    "lfs": (lambda p: p.write_text(LFS), "Git LFS pointer: run 'git lfs pull'"),
    "zeros": (lambda p: p.write_bytes(bytes(4096)), "is not an ONNX model"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path, kind):
    make, reason = BAD_FILES[kind]
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ModelError) as error:
        ModelFile(path)
    message = str(error.value)
    assert str(path) in message
    assert reason in message
    assert len(message.splitlines()) <= 2
    assert error.value.exit_code == 1


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_that_is_no_file_is_bad_usage(tmp_path, kind):
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(UsageError, match="no such file" if kind == "missing" else "is a folder") as error:
        ModelFile(path)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 2


def test_a_file_without_an_opset_is_no_model_that_runs(tmp_path):
    model = small()
    del model.opset_import[:]
    path = write(tmp_path / "model.onnx", model)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        _ = onnxviz.load(path, provider="cpu").layers


def test_a_name_with_spaces_and_umlauts_opens(tmp_path):
    path = write(tmp_path / "ein schönes Modell.onnx", small())
    assert len(onnxviz.load(path, provider="cpu").layers) == 9


# Weights in other files


def _external(tmp_path, location: str, data: bytes | None) -> tuple[onnx.ModelProto, object]:
    """A model whose w1 lies in another file, written unless ``data`` is None."""
    model = small()
    tensor = next(t for t in model.graph.initializer if t.name == "w1")
    raw = tensor.raw_data
    external_data_helper.set_external_data(tensor, location, offset=0, length=len(raw))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    folder = tmp_path / "model"
    folder.mkdir()
    if data is not None:
        target = folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data or raw)
    return write(folder / "net.onnx", model)


X = np.random.default_rng(5).normal(size=(2, 3, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("location", ["net.onnx.data", "weights/w1.bin"])
def test_external_weights_are_read_beside_the_model(tmp_path, monkeypatch, location):
    path = _external(tmp_path, location, b"")
    monkeypatch.chdir(tmp_path)  # not the model's folder
    net = onnxviz.load(path, provider="cpu")
    expected = forward(small(), X, ["r2"])["r2"]
    np.testing.assert_allclose(net.activations(X, "relu2"), expected, rtol=1e-5, atol=1e-6)
    plain = onnxviz.load(write(tmp_path / "plain.onnx", small()), provider="cpu")
    np.testing.assert_array_equal(net.project(X, "relu2", 3), plain.project(X, "relu2", 3))


def test_external_weights_are_found_through_a_link_to_the_model(tmp_path):
    path = _external(tmp_path, "w1.bin", b"")
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    assert onnxviz.load(link, provider="cpu").activations(X, "conv1").shape == (2, 5, 12, 12)


def test_missing_external_weights_are_named(tmp_path):
    path = _external(tmp_path, "lost.bin", None)
    with pytest.raises(ModelError, match=r"lost\.bin") as error:
        onnxviz.load(path, provider="cpu").activations(X, "conv1")
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_external_weights_outside_the_models_folder_are_refused(tmp_path, kind):
    """A model must not read files of its choice."""
    outside = tmp_path / "outside.bin"
    outside.write_bytes(next(t for t in small().graph.initializer if t.name == "w1").raw_data)
    location = {"parent": "../outside.bin", "absolute": str(outside), "link": "inside.bin"}[kind]
    path = _external(tmp_path, location, None)
    if kind == "link":
        (path.parent / "inside.bin").symlink_to(outside)
    file = ModelFile(path)
    with pytest.raises(ModelError, match="w1"):
        _ = file.constants["w1"]
    with pytest.raises(ModelError, match=r"outside|inside"):
        Session(file, file.cut(["c1"])).run({"x": X})


# What is levelled when the file is opened


def _old(opset: int, batch: int | str, *, axis: bool = True) -> onnx.ModelProto:
    """The same network as of opset 6 or 7 (Dropout and BatchNormalization still had is_test).

    ``axis``: opset 6 lines the bias (4,) up with an axis, as it could then; else it has the shape (4, 1, 1).
    """
    rng = np.random.default_rng(3)
    test = {"is_test": 1} if opset < 7 else {}
    affine = {"scale": rng.uniform(0.5, 1.5, 4), "shift": rng.normal(size=4), "mean": rng.normal(size=4)}
    weights = {name: value.astype(np.float32) for name, value in affine.items()}
    weights |= {"w": conv_weights(rng, 4, 3, 3, 3), "var": rng.uniform(0.5, 2, 4).astype(np.float32)}
    add = {"broadcast": 1, **({"axis": 1} if axis else {})} if opset < 7 else {}
    weights["bias"] = np.arange(4, dtype=np.float32).reshape(4 if "axis" in add else (4, 1, 1))
    return build(
        [
            node("Conv", "x w", "c", "conv1"),
            node("BatchNormalization", "c scale shift mean var", "n", "norm", **test),
            node("Add", "n bias", "a", "add", **add),
            node("Relu", "a", "r", "relu1"),
            node("Dropout", "r", "d", "drop", ratio=0.5, **test),
            node("MaxPool", "d", "p", "pool1", kernel_shape=[2, 2], strides=[2, 2]),
            node("GlobalAveragePool", "p", "g", "gap"),
        ],
        weights,
        x=(batch, 3, 12, 12),
        opset=opset,
        outputs=["g"],
    )


@pytest.mark.parametrize(
    ("opset", "axis"), [(6, False), (6, True), (7, False), (8, False)], ids=["6", "6-axis", "7", "8"]
)
def test_opsets_before_8_are_converted(tmp_path, opset, axis):
    model = _old(opset, 1, axis=axis)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("g", TensorProto.FLOAT, [1, 4, 1, 1]))
    net = onnxviz.load(write(tmp_path / "old.onnx", model), provider="cpu")
    assert net.model.opset == 8
    # onnxruntime has no BatchNormalization of opset 6: the same network at opset 7 is the witness there.
    expected = forward(_old(max(opset, 7), 1), X, ["p"])["p"]
    np.testing.assert_allclose(net.activations(X, "pool1"), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(net.project(X, "pool1", 1)).max() > 0


def test_a_model_that_cannot_be_converted_says_so(tmp_path):
    model = _old(6, "N")  # onnx's converter wants sizes where Add broadcasts in the old way
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("g", TensorProto.FLOAT, ["N", 4, 1, 1]))
    path = write(tmp_path / "old.onnx", model)
    with pytest.raises(ModelError, match=r"old\.onnx: opset 6 is older than 8") as error:
        ModelFile(path)
    assert len(str(error.value).splitlines()) <= 2


def test_local_functions_are_written_out(tmp_path):
    block = helper.make_function(
        "local",
        "Block",
        ["a", "w"],
        ["z"],
        [node("Conv", "a w", "y", "conv"), node("Relu", "y", "z", "relu")],
        [helper.make_opsetid("", 17)],
    )
    rng = np.random.default_rng(0)
    model = build(
        [
            node("Block", "x w", "h", "first", domain="local"),
            node("MaxPool", "h", "p", "pool", kernel_shape=[2, 2]),
        ],
        {"w": conv_weights(rng, 4, 3, 3, 3)},
        domains=["local"],
    )
    model.functions.append(block)
    net = onnxviz.load(write(tmp_path / "functions.onnx", model), provider="cpu")
    assert [layer.op for layer in net.layers] == ["Conv", "Relu", "MaxPool"]
    assert net.layer("conv1").receptive_field == (3, 3)


def test_sparse_initializers_are_refused_by_name(tmp_path):
    model = small()
    values = helper.make_tensor("bias_values", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("bias_indices", TensorProto.INT64, [1], [2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5]))
    with pytest.raises(ModelError, match="bias_values"):
        ModelFile(write(tmp_path / "sparse.onnx", model))


def test_what_the_file_says_of_itself(tmp_path):
    model = small(metadata={"a": "b"})
    model.producer_name, model.producer_version = "maker", "1.2"
    file = ModelFile(write(tmp_path / "model.onnx", model))
    assert file.producer_name == "maker 1.2"
    assert file.metadata == {"a": "b"}
    assert file.parameters == 5 * 27 + 5 + 7 * 45 + 7 + 8 * 7 + 8 + 6 * 8 + 6
    assert len(file.sha256) == 64


def test_errors_of_the_model_are_onnxvizs_own():
    assert issubclass(ModelError, OnnxvizError)
    assert issubclass(UsageError, OnnxvizError)


# Habits of exporters


def _backwards(model):
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _one_name(model):
    for proto in model.graph.node:
        proto.name = "node"


def _spelled_out(*imports: str):
    def spell(model):
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(domain, 17) for domain in imports)
        for proto in model.graph.node:
            proto.domain = "ai.onnx"

    return spell


def _lies(model):
    value = helper.make_tensor_value_info
    model.graph.value_info.extend(
        [value("c1", TensorProto.INT64, [1, 2]), value("r2", TensorProto.FLOAT, [7])]
    )
    model.graph.output[0].CopyFrom(value("d2", TensorProto.FLOAT, [3, 9, 9]))


def _weight_as_output(model):
    model.graph.output.append(onnx.ValueInfoProto(name="w1"))


HABITS = {
    "not-in-order": _backwards,
    "one-name-for-all-nodes": _one_name,
    "domain-spelled-out": _spelled_out(""),
    "domain-and-import-spelled-out": _spelled_out("ai.onnx"),
    "domain-imported-twice": _spelled_out("", "ai.onnx"),
    "lies-about-types-and-shapes": _lies,
    "a-node-without-outputs": lambda m: m.graph.node.append(node("Neg", "d2", "-")),
    "a-weight-twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    "a-weight-as-output": _weight_as_output,
    "no-name": lambda m: m.graph.ClearField("name"),
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_file_with_odd_habits_is_the_same_network(tmp_path, habit):
    plain, odd = small(), small()
    HABITS[habit](odd)
    file = ModelFile(write(tmp_path / "odd.onnx", odd))
    want = ModelFile(write(tmp_path / "plain.onnx", plain))
    assert [n.op for n in file.graph.nodes if n.op != "Neg"] == [n.op for n in want.graph.nodes]
    assert {n.kind for n in want.graph.nodes} == {n.op for n in want.graph.nodes}
    shape = {"x": (2, 3, 12, 12)}
    tensors = [n.output for n in want.graph.nodes]
    assert all(file.shapes(shape)[name] == want.shapes(shape)[name] for name in tensors)
    found = Session(file, file.cut(tensors)).run({"x": X})
    for name, value in forward(plain, X, tensors).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_output_left_out_is_not_the_first(tmp_path):
    """As of recurrent layers whose last state alone is used."""
    rng = np.random.default_rng(0)
    nodes = [node("Reshape", "x s", "rows"), node("GRU", "rows w r", "- last", "gru", hidden_size=2)]
    weights = {
        "s": np.array([3, -1, 12]),
        "w": rng.normal(size=(1, 6, 12)).astype(np.float32),
        "r": rng.normal(size=(1, 6, 2)).astype(np.float32),
    }
    model = build(nodes, weights, outputs=["last"])
    file = ModelFile(write(tmp_path / "gru.onnx", model))
    assert [n.output for n in file.graph.nodes] == ["rows", "last"]
    found = Session(file, file.cut(["last"])).run({"x": X[:1]})["last"]
    np.testing.assert_allclose(found, forward(model, X[:1], ["last"])["last"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", [13, 17], ids=lambda v: f"inner-{v}")
@pytest.mark.parametrize("outer", [13, 17], ids=lambda v: f"outer-{v}")
def test_functions_in_functions_with_their_attributes_and_opsets(tmp_path, inner, outer):
    leaky = node("LeakyRelu", "a", "b")
    leaky.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha")
    act = node("Act", "y", "z", domain="local")
    act.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    opset = helper.make_opsetid
    functions = [
        helper.make_function(
            "local",
            "Block",
            ["a", "w"],
            ["z"],
            [node("Conv", "a w", "y"), act],
            [opset("", outer), opset("local", 1)],
            ["slope"],
        ),
        helper.make_function("local", "Act", ["a"], ["b"], [leaky], [opset("", inner)], ["alpha"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"w": conv_weights(rng, 4, 3, 3, 3), "v": conv_weights(rng, 4, 4, 3, 3)}
    calls = [
        node("Block", "x w", "h", "first", domain="local", slope=0.3),
        node("Block", "h v", "k", "second", domain="local", slope=0.1),
    ]
    model = build(calls, weights, domains=["local"])
    model.functions.extend(functions)
    file = ModelFile(write(tmp_path / "functions.onnx", model))
    assert [n.op for n in file.graph.nodes] == ["Conv", "LeakyRelu", "Conv", "LeakyRelu"]
    assert [n.attrs["alpha"] for n in file.graph.nodes[1::2]] == pytest.approx([0.3, 0.1])
    found = Session(file, file.cut(["h", "k"])).run({"x": X})
    for name, value in forward(model, X, ["h", "k"]).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_functions_that_call_themselves_are_refused(tmp_path):
    call = node("Again", "a", "b", domain="local")
    block = helper.make_function("local", "Again", ["a"], ["b"], [call], [helper.make_opsetid("local", 1)])
    model = build([node("Again", "x", "y", domain="local")], domains=["local"])
    model.functions.append(block)
    with pytest.raises(ModelError, match="functions cannot be written out") as error:
        ModelFile(write(tmp_path / "m.onnx", model))
    assert len(str(error.value).splitlines()) == 1


def test_metadata_and_producer_survive_conversion(tmp_path):
    model = _old(7, 1)
    model.producer_name = "maker"
    helper.set_model_props(model, {"a": "b"})
    file = ModelFile(write(tmp_path / "old.onnx", model))
    assert (file.opset, file.producer_name, file.metadata) == (8, "maker", {"a": "b"})
    assert file.stated_opset == 7
