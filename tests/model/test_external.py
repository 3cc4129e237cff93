"""Weights in other files: mapped, not read; large models without copies in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxviz.errors import ModelError
from onnxviz.forward.session import Session
from onnxviz.model.graph import ModelFile
from tests.model.nets import build, conv_weights, node, run, small, subgraph, write

RNG = np.random.default_rng(3)


def move_out(tensor: TensorProto, **entries: object) -> None:
    """Have a tensor say that its data lies elsewhere."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


TYPES = (
    *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "INT32", "INT64", "UINT64", "BOOL"),
    *("FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"),
)


@pytest.mark.parametrize("gap", [0, 3, 64])
@pytest.mark.parametrize("kind", TYPES)
def test_an_array_from_a_file_is_the_array_in_the_model(tmp_path, kind, gap):
    """``gap``: where in its file it begins, aligned to its elements or not."""
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    array = RNG.integers(0, 2 if kind == "BOOL" else 7, (3, 5)).astype(dtype)
    tensor = numpy_helper.from_array(array, "w")
    data = tensor.raw_data
    (tmp_path / "w.bin").write_bytes(b"\1" * gap + data + b"\2" * 7)
    move_out(tensor, location="w.bin", offset=gap, length=len(data))
    proto = build([node("Relu", "x", "y")])
    proto.graph.initializer.append(tensor)
    found = ModelFile(write(tmp_path / "m.onnx", proto)).constants["w"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float64), array.astype(np.float64))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_an_array_is_a_view_of_its_mapped_file(tmp_path):
    w = conv_weights(RNG, 4, 3, 3, 3)
    tensor = numpy_helper.from_array(w, "w")
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    move_out(tensor, location="w.bin")
    proto = build([node("Conv", "x w", "y")])
    proto.graph.initializer.append(tensor)
    base = ModelFile(write(tmp_path / "m.onnx", proto)).constants["w"]
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_a_constant_node_may_have_a_file_too(tmp_path):
    w = conv_weights(RNG, 4, 3, 3, 3)
    proto = build([node("Constant", "", "w", value=numpy_helper.from_array(w)), node("Conv", "x w", "y")])
    x = RNG.normal(size=(1, 3, 12, 12)).astype(np.float32)
    want = run(proto, {"x": x})["y"]
    (tmp_path / "w.bin").write_bytes(w.tobytes())
    move_out(proto.graph.node[0].attribute[0].t, location="w.bin", length=w.nbytes)
    file = ModelFile(write(tmp_path / "m.onnx", proto))
    np.testing.assert_array_equal(file.constants["w"], w)
    np.testing.assert_allclose(Session(file, file.cut(["y"])).run({"x": x})["y"], want, rtol=1e-5, atol=1e-6)


def test_an_empty_tensor_needs_no_bytes(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[0, 3])
    move_out(tensor, location="w.bin", offset=0, length=0)
    proto = build([node("Relu", "x", "y")])
    proto.graph.initializer.append(tensor)
    assert ModelFile(write(tmp_path / "m.onnx", proto)).constants["w"].shape == (0, 3)


def _link(path, target):
    path.symlink_to(target)


def _linked_folder(folder, outside):
    (folder / "sub").symlink_to(outside.parent)


W = next(t for t in small().graph.initializer if t.name == "w1")
BYTES = len(W.raw_data)
WRONG = {
    "no-file": ({"location": "lost.bin"}, None, "No such file"),
    "no-location": ({}, None, "inside the model's folder"),
    "absolute": ({"location": "{outside}"}, None, "inside the model's folder"),
    "parent": ({"location": "../outside.bin"}, None, "inside the model's folder"),
    "parent-inside": ({"location": "a/../../outside.bin"}, None, "inside the model's folder"),
    "link": ({"location": "l.bin"}, lambda f, o: _link(f / "l.bin", o), "symbolic link"),
    "link-inside": ({"location": "l.bin"}, lambda f, o: _link(f / "l.bin", f / "w.bin"), "symbolic link"),
    "linked-folder": ({"location": "sub/outside.bin"}, _linked_folder, "symbolic link"),
    "hard-link": ({"location": "h.bin"}, lambda f, o: (f / "h.bin").hardlink_to(o), "hard links"),
    "folder": ({"location": "sub"}, lambda f, o: (f / "sub").mkdir(), "not a regular file"),
    "itself": ({"location": "."}, None, "not a regular file"),
    "pipe": ({"location": "p"}, lambda f, o: os.mkfifo(f / "p"), "not a regular file"),
    "offset-outside": ({"location": "w.bin", "offset": 8}, None, "outside the file"),
    "offset-negative": ({"location": "w.bin", "offset": -4}, None, "outside the file"),
    "offset-no-number": ({"location": "w.bin", "offset": "x"}, None, "invalid literal"),
    "length-too-small": ({"location": "w.bin", "length": BYTES - 4}, None, f"{BYTES} are needed"),
    "length-too-large": ({"location": "w.bin", "length": BYTES + 4}, None, f"{BYTES} are needed"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes need rights there")
@pytest.mark.parametrize("case", WRONG)
def test_what_a_model_may_not_read(tmp_path, case):
    entries, prepare, reason = WRONG[case]
    folder, outside = tmp_path / "model", tmp_path / "outside.bin"
    folder.mkdir()
    outside.write_bytes(W.raw_data)
    (folder / "w.bin").write_bytes(W.raw_data)
    if prepare:
        prepare(folder, outside)
    proto = small()
    tensor = next(t for t in proto.graph.initializer if t.name == "w1")
    move_out(tensor, **{k: str(v).format(outside=outside) for k, v in entries.items()})
    file = ModelFile(write(folder / "net.onnx", proto))
    with pytest.raises(ModelError, match="weights of w1") as error:
        _ = file.constants["w1"]
    assert reason in str(error.value)
    assert str(file.path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_text_cannot_lie_in_another_file(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"1234")
    tensor = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1])
    move_out(tensor, location="w.bin")
    proto = build([node("Relu", "x", "y")])
    proto.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match="text"):
        _ = ModelFile(write(tmp_path / "m.onnx", proto)).constants["w"]


def test_a_damaged_tensor_is_named(tmp_path):
    proto = small()
    next(t for t in proto.graph.initializer if t.name == "w1").raw_data = b"123"
    with pytest.raises(ModelError, match="'w1' is damaged"):
        _ = ModelFile(write(tmp_path / "m.onnx", proto)).constants["w1"]


# Memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
PEAK = "int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024"
"""Not ru_maxrss, which a process takes over from the one that started it."""


def _peak(script: str, *args: object) -> int:
    """MiB that a script needs at most, beyond what importing onnxviz needs."""
    text = (
        "import re, sys\n"
        "from onnxviz.forward.session import Session\n"
        "from onnxviz.model.graph import ModelFile\n"
        f"before = {PEAK}\n{script}\nprint({PEAK} - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@linux
def test_a_model_of_more_than_2_gib_opens_without_a_copy(tmp_path):
    """Two fully connected layers of 1.1 GiB each, in a file that takes no room on the disk."""
    rows = 18_000
    proto = build(
        [
            node("Conv", "x w", "c", "conv1"),
            node("Relu", "c", "r", "relu1"),
            node("GlobalAveragePool", "r", "g"),
            node("Flatten", "g", "f"),
            node("MatMul", "f narrow", "n", "fc1"),
            node("MatMul", "n large0", "l", "fc2"),
            node("MatMul", "l large1", "y", "fc3"),
        ],
        {"w": conv_weights(RNG, 4, 3, 3, 3), "narrow": conv_weights(RNG, 4, rows)},
    )
    size = rows * 16_384 * 4
    for index, dims in enumerate([(rows, 16_384), (16_384, rows)]):
        tensor = proto.graph.initializer.add(name=f"large{index}", data_type=TensorProto.FLOAT, dims=dims)
        move_out(tensor, location="weights.bin", offset=index * size, length=size)
    (tmp_path / "weights.bin").touch()
    os.truncate(tmp_path / "weights.bin", 2 * size)
    assert 2 * size > 2**31
    path = write(tmp_path / "m.onnx", proto)
    script = (
        "model = ModelFile(sys.argv[1])\n"
        "assert model.parameters > 2**29 and len(model.sha256) == 64\n"
        "shapes = model.shapes({'x': (1, 3, 12, 12)})\n"
        "assert shapes['y'] == (1, 18000), shapes['y']\n"
        "assert len(model.cut(['y'])) < 10**6\n"
        "assert model.constants['w'].shape == (4, 3, 3, 3)\n"
        "large = model.constants['large1']\n"
        "assert large.shape == (16384, 18000) and not large[5, :9].any() and not large[-1, -1]\n"
    )
    assert _peak(script, path) < 100
    layers = (
        "import onnxviz\n"
        "net = onnxviz.load(sys.argv[1], provider='cpu')\n"
        "assert [layer.alias for layer in net.layers][-1] == 'fc3'\n"
    )
    assert _peak(layers, path) < 100


MIB = 128


def _large(place: str) -> onnx.ModelProto:
    """128 MiB of weights, in eight tensors."""
    each = np.ones((MIB // 8, 2**18), np.float32)
    names = [f"w{index}" for index in range(8)]
    uses = [node("Gather", f"{name} first", f"row_{name}", axis=0) for name in names]
    total = node("Sum", " ".join(f"row_{name}" for name in names), "total")
    add = node("Add", "m total", "y")
    mean = node("ReduceMean", "x", "m", keepdims=0)
    first = {"first": np.array(0)}
    weights = dict.fromkeys(names, each)
    if place == "initializers":
        return build([*uses, total, mean, add], {**weights, **first})
    if place == "old-opset":
        return build(
            [*uses, total, mean, node("Add", "m total", "y")], {**weights, **first}, opset=7, x=(1, 3)
        )
    stored = numpy_helper.from_array(each)
    constants = [node("Constant", "", name, value=stored) for name in names]
    if place == "constant-nodes":
        return build([*constants, *uses, total, mean, add], first)
    if place == "branch":
        branch = subgraph([*constants, *uses, total], "total")
        other = subgraph([node("Neg", "m", "none")], "none")
        chosen = node("If", "c", "chosen", then_branch=branch, else_branch=other)
        return build([mean, chosen, node("Add", "m chosen", "y")], {**first, "c": np.array(True)})
    assert place == "beside-functions"
    proto = build(
        [*uses, total, node("Mean", "x", "m", domain="local"), add], {**weights, **first}, domains=["local"]
    )
    body = [node("ReduceMean", "a", "b", keepdims=0)]
    proto.functions.append(
        helper.make_function("local", "Mean", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    return proto


@linux
@pytest.mark.parametrize(
    "place", ["initializers", "constant-nodes", "beside-functions", "old-opset", "branch"]
)
def test_weights_in_the_model_are_copied_once_for_onnxruntime_and_never_before(tmp_path, place):
    """At the peak there are the message, beside it the mapped file or the cut model, and one tensor."""
    path = write(tmp_path / "m.onnx", _large(place))
    script = (
        "model = ModelFile(sys.argv[1])\n"
        "model.shapes({'x': (1, 3)})\n"
        f"assert model.parameters >= {MIB} * 2**18 and not model.graph.has_control_flow\n"
        f"assert len(model.cut(['y'])) > {MIB} * 2**20\n"
    )
    peak = _peak(script, path)
    assert peak < 2.5 * MIB
