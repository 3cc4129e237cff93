"""Whatever onnxruntime loads is opened and judged: a verdict or an error in words, and the analysis agrees."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli
from onnxviz.analysis import analyze
from onnxviz.check import check
from onnxviz.errors import ModelError, OnnxvizError, UnsupportedOpError
from onnxviz.reverse.methods import make_method
from onnxviz.runtime import error_line
from tests.model.nets import build, conv_weights, node, subgraph, write
from tests.reverse.node_tests import collected
from tests.reverse.witnesses import derivative_error, onnxruntime_forward

DECONVNET = make_method("deconvnet")
RNG = np.random.default_rng(0)
W = {"w": conv_weights(RNG, 4, 3, 3, 3), "v": conv_weights(RNG, 4, 4, 3, 3)}
CONV = node("Conv", "x w", "a", "conv")


def _problems(path: Path) -> dict[str, str | None]:
    return {layer.name: layer.problem for layer in check(path, DECONVNET).layers}


def test_all_node_tests_get_a_verdict(tmp_path):
    failed = {}
    path = tmp_path / "m.onnx"
    for name, case in collected().items():
        onnx.save(case.model, path)
        try:
            assert check(path, DECONVNET).verdict
        except OnnxvizError as error:
            assert error.exit_code == 1, name
        except Exception as error:
            failed[name] = repr(error)
    assert failed == {}
    assert len(collected()) > 1500


@pytest.mark.parametrize(
    "nodes",
    [
        [CONV, node("Split", "a empty", "p q", axis=1), node("Relu", "q", "y")],
        [CONV, node("Split", "a", "- q", axis=1), node("Relu", "q", "y")],
    ],
    ids=["a part of size 0", "a part left out"],
)
def test_parts_of_a_split(tmp_path, nodes):
    path = write(tmp_path / "m.onnx", build(nodes, W | {"empty": np.array([0, 4])}, opset=13))
    assert _problems(path)["y"] is None
    analyze(path, layers=["y"], limit=2, provider="cpu")


KEPT = [
    CONV,
    node("GlobalMaxPool", "a", "g"),
    node("Flatten", "g", "f"),
    node("NonZero", "f", "places", "which"),
    node("Transpose", "places", "rows"),
    node("GatherND", "f rows", "flat", "kept"),
    node("Unsqueeze", "flat axis", "q"),
    node("Relu", "q", "y"),
]
"""A detector's end: how many values are left depends on the image."""

MASKED = [
    CONV,
    node("Less", "a zero", "low"),
    node("NonZero", "low", "places"),
    node("Transpose", "places", "rows"),
    node("Shape", "rows", "size"),
    node("Slice", "size axis one", "count"),
    node("Expand", "zero count", "zeros"),
    node("ScatterND", "a rows zeros", "b", "mask"),
    node("Conv", "b v", "y"),
]
"""x[x < 0] = 0, as PyTorch writes it. Zeros, from which shapes are read, have nothing below zero."""


@pytest.mark.parametrize(("nodes", "where"), [(KEPT, "kept"), (MASKED, "mask")])
def test_sizes_that_depend_on_values_stand_in_the_way(tmp_path, nodes, where):
    axis = {"axis": np.array([0]), "one": np.array([1]), "zero": np.array(0, np.float32)}
    path = write(tmp_path / "m.onnx", build(nodes, W | axis))
    found = _problems(path)
    assert found["conv"] is None
    if where == "mask":
        net = onnxviz.load(path, provider="cpu")
        reason = rf"{where}'.*sizes depend on the images' values"
        assert re.search(reason, found["y"] or "")
        with pytest.raises(UnsupportedOpError, match=reason):
            net.project(np.ones((1, 3, 12, 12)), "y", 0)


def test_vjp_knows_sizes_that_depend_on_values(tmp_path):
    """It is given the values: its shapes are those of a run with them."""
    axis = {"axis": np.array([0]), "one": np.array([1]), "zero": np.array(0, np.float32)}
    model = build(MASKED, W | axis)
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    x = np.random.default_rng(2).standard_normal((1, 3, 12, 12)).astype(np.float32)
    forward = onnxruntime_forward(model)
    # Small steps: the mask's kinks are everywhere.
    error = derivative_error(forward, lambda x, y: net.vjp(x, y), {"x": x}, np.random.default_rng(1), 1e-3)
    assert error < 5e-3


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_a_folded_relu_is_described(tmp_path, method):
    nodes = [
        CONV,
        node("QuantizeLinear", "a scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "b"),
        node("Conv", "b v", "y"),
    ]
    scale = {"scale": np.array(0.02, np.float32), "zero": np.array(0, np.uint8)}
    path = write(tmp_path / "m.onnx", build(nodes, W | scale))
    found = {one.op: one.how for one in check(path, make_method(method)).operators}
    assert all(found.values())
    assert ("max(g, 0)" in found["QuantizeLinear"]) == (method != "gradient")


@pytest.mark.parametrize("limit", [1, 3])
def test_a_layer_with_the_batch_on_another_axis_is_refused(tmp_path, limit):
    nodes = [CONV, node("Flatten", "a", "b", axis=3), node("MatMul", "b m", "y")]
    path = write(tmp_path / "m.onnx", build(nodes, W | {"m": np.ones((10, 5), np.float32)}))
    found = _problems(path)
    assert found["conv"] is None
    assert "has 40 rows for 1 image" in (found["y"] or "")
    with pytest.raises(ModelError, match="has 40 rows"):
        analyze(path, layers=["y"], limit=limit, provider="cpu")


def test_an_if_on_the_images_values_is_named(tmp_path):
    branches = {
        "then_branch": subgraph([node("Relu", "a", "p")], "p"),
        "else_branch": subgraph([node("Neg", "a", "q")], "q"),
    }
    nodes = [
        CONV,
        node("ReduceMax", "a", "top", keepdims=0),
        node("Greater", "top zero", "high"),
        node("If", "high", "b", "choice", **branches),
        node("Conv", "b v", "y"),
    ]
    path = write(tmp_path / "m.onnx", build(nodes, W | {"zero": np.array(0, np.float32)}))
    assert _problems(path) == {
        "conv": None,
        "choice": "If 'choice': no reverse rule",
        "y": "If 'choice': no reverse rule",
    }


def test_an_input_of_size_0(tmp_path):
    empty = helper.make_tensor_value_info("empty", TensorProto.FLOAT, [0, 4, 10, 10])
    nodes = [CONV, node("Relu", "a", "r"), node("Concat", "r empty", "y", axis=0)]
    path = write(tmp_path / "m.onnx", build(nodes, W, more_inputs=[empty]))
    found = _problems(path)
    assert found["r"] is None
    assert "--feed empty=VALUE" in (found["y"] or "")
    path = write(tmp_path / "m.onnx", build([CONV], W, x=("N", 3, 0, 12)))
    assert "N×3×0×12" in (check(path, DECONVNET).problem or "")


def test_values_that_were_made_up_are_named(tmp_path):
    scales = helper.make_tensor_value_info("scales", TensorProto.FLOAT, [4])
    path = write(
        tmp_path / "m.onnx",
        build([CONV, node("Resize", "a - scales", "b"), node("Relu", "b", "y")], W, more_inputs=[scales]),
    )
    problem = check(path, DECONVNET).problem or ""
    assert "Zeros were given for scales; --feed NAME=VALUE gives others." in problem
    feeds = {"scales": np.array([1, 1, 2, 2], np.float32)}
    assert check(path, DECONVNET, feeds=feeds).problem is None


LONG = "/".join(f"block{k}" for k in range(80))


@pytest.mark.parametrize("name", [LONG, "two\nlines", "😀/🔥", '"a" b', "*", "conv1..conv2", "<b>", "all"])
def test_strange_names(tmp_path, name):
    nodes = [node("Conv", "x w", "a", name), node("Relu", "a", "y")]
    path = write(tmp_path / "m.onnx", build(nodes, W))
    for command in ("layers", "check"):
        result = CliRunner().invoke(cli.app, [command, str(path), "--size", "12"])
        assert result.exit_code == 0
        rows = [line for line in result.stdout.splitlines() if " conv1 " in line or "(conv1, " in line]
        assert len(rows) == 1
        assert len(rows[0]) <= 110
    analyze(path, layers=[name], limit=1, provider="cpu").report(tmp_path / "report")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Concat node. "
            "Name:'c.7' Status Message: concatbase.h:133 PrepareForComputeImpl Axis 2 has 1 and 4",
            "Concat 'c.7': Axis 2 has 1 and 4",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : ONNX Runtime only *guarantees* support for models stamped with official "
            "released onnx opset versions. Opset 99 is under development and support for this is limited. The rest",
            "it does not know opset 99; export the model with an older one, or update onnxruntime",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/core/graph/model.cc:256 ort::Model::Model(onnx::ModelProto&&, "
            "const ort::Options&) Unsupported model IR version: 14",
            "Unsupported model IR version: 14",
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following "
            "indices\n index: 0 Got: 1 Expected: 4\n Please fix either the inputs/outputs or the model.",
            "Got invalid dimensions for input: x, index: 0 Got: 1 Expected: 4",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: /src/core/providers/cuda/nn/lrn.cc:63 "
            "ort::cuda::LRN<T, Layout>::LRN(const ort::OpKernelInfo&) [with T = float; bool Layout = false] "
            "norm_desc_.Set( gsl::narrow_cast<uint32_t>(size)) .IsOK() was false. ",
            "Exception during initialization: norm_desc_.Set( gsl::narrow_cast<uint32_t>(size)) .IsOK() was false. ",
        ),
    ],
)
def test_onnxruntimes_errors_without_its_own_places(text, line):
    assert error_line(RuntimeError(text)) == line


def test_a_check_warns_of_nothing_itself(tmp_path):
    path = write(tmp_path / "m.onnx", build([CONV, node("Relu", "a", "y")], W))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(path, DECONVNET).problem is None


def test_projecting_that_no_memory_holds(tmp_path, monkeypatch):
    net = onnxviz.load(
        write(tmp_path / "m.onnx", build([CONV], {"w": W["w"]}, outputs=["a"])), provider="cpu"
    )

    def exhausted(*arguments):
        raise MemoryError("Unable to allocate 16.0 GiB")

    monkeypatch.setattr("onnxviz.reverse.project.Program", exhausted)
    with pytest.raises(ModelError, match=r"m\.onnx: projecting conv .*more memory.*16\.0 GiB.*--size"):
        net.project_units(np.ones((1, 3, 12, 12), np.float32), "conv", [(0, 0, 1, 1)])


@pytest.mark.parametrize("engine", ["stages", "numpy"])
def test_a_resize_that_no_memory_holds(tmp_path, engine):
    """A signal of 32,768 samples made 65,536 long: the pictures are small, the matrix of shares is not."""
    nodes = [
        node("Resize", "x - scales", "r", "resized", mode="linear"),
        node("Conv", "r w", "y", "conv"),
    ]
    weights = {"scales": np.array([1, 1, 2], np.float32), "w": np.ones((2, 1, 1), np.float32)}
    model = build(nodes, weights, x=(1, 1, 32768), outputs=["y"], opset=13)
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu", engine=engine)
    x = np.ones(net.image.shape(1, net.size), np.float32)
    with pytest.raises(ModelError, match=r"projecting conv .*more memory.*32,768 to 65,536 takes 17\.2 GB"):
        net.project_units(x, "conv", [(0, 0, 0, 1)])


def test_a_pool_whose_next_window_would_be_far_away(tmp_path):
    """One window on each axis: a stride of 2⁴⁰ is one of 1."""
    found = []
    for stride in (1, 1 << 40):
        nodes = [CONV, node("MaxPool", "a", "y", "pool", kernel_shape=[10, 10], strides=[stride, stride])]
        path = write(tmp_path / f"{stride}.onnx", build(nodes, {"w": W["w"]}, outputs=["y"]))
        net = onnxviz.load(path, provider="cpu")
        x = np.random.default_rng(3).normal(size=net.image.shape(2, net.size)).astype(np.float32)
        found.append(net.project_units(x, "pool", [(0, 1, 0, 0), (1, 2, 0, 0)]).pixels)
    assert found[0].any()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMean", "ReduceL2", "ReduceProd"])
def test_a_reduction_that_names_an_axis_twice(tmp_path, op):
    """Onnxruntime takes it once."""
    found = []
    for number, axes in enumerate([[2, 3], [-1, 2, 3, -1]]):
        model = build([node(op, "x", "y", "reduced", axes=axes, keepdims=0)], outputs=["y"], opset=11)
        net = onnxviz.load(write(tmp_path / f"{number}.onnx", model), provider="cpu")
        x = np.random.default_rng(3).normal(size=net.image.shape(2, net.size)).astype(np.float32)
        g = np.arange(1.0, 1 + x[:, :, 0, 0].size, dtype=np.float32).reshape(x.shape[:2])
        found.append(net.vjp({net.image.name: x}, {"y": g})[net.image.name])
    assert found[0].any()
    np.testing.assert_array_equal(found[0], found[1])
