"""`onnxviz check`: what it says of a model, held against what then really happens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli
from onnxviz.check import check
from onnxviz.errors import LayerNotFoundError, OnnxvizError
from onnxviz.reverse.methods import make_method
from tests import light
from tests.model.nets import build, conv_weights, node, write

ROOT = Path(__file__).parents[1]
DECONVNET = make_method("deconvnet")
RNG = np.random.default_rng(0)
W = {"w": conv_weights(RNG, 4, 3, 3, 3), "v": conv_weights(RNG, 4, 4, 3, 3)}
BEHIND = [
    node("Conv", "x w", "a", "first"),
    node("Conv", "a v", "b", "beside"),
    node("Gelu", "a", "c", "mystery", domain="com.microsoft"),
    node("Conv", "c v", "d", "behind"),
    node("Concat", "b d", "y", "joined", axis=1),
]
"""An operator without a rule on one of two branches."""


def _call(*arguments: object):
    return CliRunner().invoke(cli.app, ["check", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture
def behind(tmp_path):
    return write(tmp_path / "behind.onnx", build(BEHIND, W, domains=["com.microsoft"]))


def test_a_model_that_can_be_analysed():
    result = _call(ROOT / "models" / "squeezenet1_1.onnx")
    assert result.exit_code == 0, result.output
    assert "It can be analysed: all " in result.stdout
    for words in (
        "opset",
        "13",
        "N×3×227×227 (NCHW)",
        "model metadata",
        "convolution",
        "max_pool",
        "rectify",
    ):
        assert words in result.stdout
    assert "NOT AT ALL" not in result.stdout


def test_json_has_the_same(behind):
    result = _call(behind, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {layer["name"]: layer["problem"] is None for layer in found["layers"]} == {
        "first": True,
        "beside": True,
        "mystery": False,
        "behind": False,
        "joined": False,
    }
    assert found["inputs"] == ["x: float32 N×3×12×12"]
    assert (found["layout"], found["batch"], found["size"]) == ("NCHW", None, [12, 12])
    assert found["verdict"].startswith("It can be analysed in part: 2 of 5 layers.")


def test_what_has_no_rule_stands_first_and_is_named(behind):
    lines = _call(behind).stdout.splitlines()
    row = next(line for line in lines if line.startswith("com.microsoft.Gelu"))
    assert "NOT AT ALL: no reverse rule (first: mystery)" in row
    assert lines.index(row) < next(i for i, line in enumerate(lines) if line.startswith("Conv "))
    assert "mystery (gelu1): com.microsoft.Gelu 'mystery': no reverse rule" in lines[-1]


def test_a_layer_that_cannot_be_analysed_fails(behind):
    result = _call(behind, "--layer", "behind")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("It cannot be analysed: com.microsoft.Gelu 'mystery'")
    assert _call(behind, "--layer", "beside").exit_code == 0


def test_layers_are_judged_as_the_analysis_will(behind):
    network = onnxviz.load(behind, provider="cpu")
    for judged in check(behind, DECONVNET).layers:
        try:
            network.check([network.layer(judged.name)], DECONVNET)
            assert judged.problem is None
        except OnnxvizError:
            assert judged.problem is not None


def test_no_layer_behind_what_nothing_passes(tmp_path):
    nodes = [node("Conv", "x w", "a"), node("ArgMax", "a", "b", axis=1), node("Cast", "b", "c", "end", to=1)]
    path = write(tmp_path / "m.onnx", build([*nodes, node("Relu", "c", "y")], W))
    found = {layer.name: layer.problem for layer in check(path, DECONVNET).layers}
    assert found["a"] is None
    assert found["y"] == "no small change of the image changes it"
    with pytest.raises(OnnxvizError, match=r"cannot be traced back to x.*ArgMax 'b' gives places"):
        network = onnxviz.load(path, provider="cpu")
        network.check([network.layer("y")], DECONVNET)


@pytest.mark.parametrize(
    ("shape", "dtype"), [(("N", "T"), TensorProto.INT64), (("N", 3, 4, 8, 8), TensorProto.FLOAT)]
)
def test_a_model_without_images(tmp_path, shape, dtype):
    path = write(tmp_path / "m.onnx", build([node("Identity", "x", "y")], x=shape, dtype=dtype))
    result = _call(path)
    assert result.exit_code == 1
    assert "no image input" in result.stdout.splitlines()[-1]
    assert "made by" in result.stdout
    assert json.loads(_call(path, "--json").stdout)["problem"]


def test_usage_errors(behind, tmp_path):
    assert _call(behind, "--layer", "nowhere").exit_code == 2
    assert _call(behind, "--size", "99").exit_code == 2
    assert _call(behind, "--input", "z").exit_code == 2
    assert _call(tmp_path / "missing.onnx").exit_code == 2
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    assert _call(text).exit_code == 1
    with pytest.raises(LayerNotFoundError):
        check(behind, DECONVNET, layers=["nowhere"])


def _half(tmp_path):
    model = build([node("Conv", "x w", "y")], {"w": W["w"].astype(np.float16)}, dtype=TensorProto.FLOAT16)
    return write(tmp_path / "m.onnx", model)


def _old(tmp_path):
    return write(tmp_path / "m.onnx", build([node("Conv", "x w", "y")], W, opset=7))


def _quantised(tmp_path):
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Conv", "d w", "y"),
    ]
    weights = {**W, "s": np.float32(0.1), "z": np.uint8(3)}
    return write(tmp_path / "m.onnx", build(nodes, weights))


def _fixed(tmp_path):
    return write(tmp_path / "m.onnx", build([node("Conv", "x w", "y")], W, x=(4, 3, 12, 12)))


def _open_size(tmp_path):
    return write(tmp_path / "m.onnx", build([node("Conv", "x w", "y")], W, x=("N", 3, "H", "W")))


def _more_inputs(tmp_path):
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    nodes = [node("Conv", "x w", "a"), node("Mul", "a scale", "y")]
    return write(tmp_path / "m.onnx", build(nodes, W, more_inputs=[scale]))


def _foreign(tmp_path):
    return write(tmp_path / "m.onnx", build(BEHIND, W, domains=["com.microsoft"]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_fixed, "The preprocessing is a guess"),
        (_fixed, "The batch is fixed at 4"),
        (_half, "Half precision"),
        (_old, "Opset 7 was converted to 8"),
        (_quantised, "Approximation: straight through"),
        (_open_size, "any size; 224×224 is used"),
        (_more_inputs, "--feed scale=VALUE"),
        (_foreign, "com.microsoft.Gelu"),
    ],
)
def test_warnings(tmp_path, make, words):
    assert any(words in warning for warning in check(make(tmp_path), DECONVNET).warnings)


def test_an_input_without_a_value_stands_in_the_way_until_it_is_fed(tmp_path):
    path = _more_inputs(tmp_path)
    found = {layer.name: layer.problem for layer in check(path, DECONVNET).layers}
    assert found["a"] is None
    assert "--feed scale=VALUE" in found["y"]
    assert _call(path, "--layer", "y").exit_code == 1
    assert _call(path, "--layer", "y", "--feed", "scale=2").exit_code == 0


def test_activations_in_pieces_are_named_with_their_policy(tmp_path):
    nodes = [node("Conv", "x w", "a"), node("Sigmoid", "a", "s"), node("Mul", "a s", "y", "silu")]
    path = write(tmp_path / "m.onnx", build(nodes, W))
    for policy, treatment in ((None, "max(g, 0)"), ("gradient", "exact")):
        method = make_method("deconvnet", activation=policy)
        (swish,) = [one for one in check(path, method).operators if one.op == "Swish"]
        assert sorted(swish.pieces) == ["Mul", "Sigmoid"]
        assert swish.how.startswith(treatment)


@pytest.mark.parametrize("name", light.NAMES)
def test_the_light_models(name: str, tmp_path):
    found = check(light.write_light(name, tmp_path), DECONVNET)
    assert found.problem is None
    assert all(layer.problem is None for layer in found.layers)


@pytest.mark.parametrize("broken", ["output-type", "unknown-domain", "cyclic-names"])
def test_odd_files_give_a_verdict(tmp_path, broken):
    model = build([node("Conv", "x w", "y")], W)
    if broken == "output-type":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    if broken == "unknown-domain":
        model.graph.node.append(node("Odd", "y", "z", domain="nowhere"))
        model.opset_import.append(helper.make_opsetid("nowhere", 1))
        model.graph.output.append(onnx.ValueInfoProto(name="z"))
    if broken == "cyclic-names":
        model.graph.node.append(node("Relu", "b", "a2"))
        model.graph.node.append(node("Relu", "a2", "b"))
    result = _call(write(tmp_path / "m.onnx", model))
    assert result.exit_code in (0, 1)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_weights_that_are_gone(tmp_path):
    nodes = [node("Conv", "x v", "a", pads=[1, 1, 1, 1]), node("Conv", "a w", "y", kernel_shape=[3, 3])]
    model = build(nodes, {"v": conv_weights(RNG, 3, 3, 3, 3)})
    big = numpy_helper.from_array(W["w"], "w")
    big.ClearField("raw_data")
    big.data_location = TensorProto.EXTERNAL
    big.external_data.add(key="location", value="gone.bin")
    model.graph.initializer.append(big)
    found = {one.name: one.problem for one in check(write(tmp_path / "m.onnx", model), DECONVNET).layers}
    assert found["a"] is None
    assert "gone.bin" in found["y"]


def test_what_onnxruntime_does_not_run(tmp_path):
    """There is no kernel for Relu of bfloat16 on the CPU; what comes before runs."""
    nodes = [node("Conv", "x w", "a"), node("Cast", "a", "h", to=16), node("Relu", "h", "b")]
    path = write(tmp_path / "m.onnx", build([*nodes, node("Cast", "b", "y", "end", to=1)], W))
    result = check(path, DECONVNET)
    found = {one.name: one.problem for one in result.layers}
    assert found["a"] is None
    assert result.problem is None
    assert "onnxruntime cannot run it" in found["b"]
