"""The table of converters: what `onnxviz convert` offers."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest

from onnxviz.converters import CONVERTERS, alexnet
from onnxviz.errors import UsageError
from tests.converters import synthetic


def test_the_names():
    assert list(CONVERTERS) == ["alexnet", "vgg16", "simple"]
    assert [name for name, converter in CONVERTERS.items() if converter.name != name] == []


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        UsageError, match=r"no converter 'vgg19'; there are alexnet, vgg16, simple\. .*vgg16\?"
    ):
        CONVERTERS["vgg19"]


def test_run_converts(tmp_path):
    weights = synthetic.simple_npz(tmp_path / "weights.npz", seed=1)
    out = CONVERTERS["simple"].run(weights, tmp_path / "net.onnx", {"conv1_padding": None})
    assert out == tmp_path / "net.onnx"
    assert onnx.load(out).graph.name == "simple"


@pytest.mark.parametrize("name", ["vgg16", "simple"])
def test_an_option_of_another_converter(tmp_path, name):
    with pytest.raises(
        UsageError, match=rf"{name}: no option conv1_padding; it is an option of alexnet only"
    ):
        CONVERTERS[name].run(tmp_path / "w.npz", tmp_path / "net.onnx", {"conv1_padding": "same"})


def test_options_reach_the_converter(tmp_path, monkeypatch):
    monkeypatch.setattr(alexnet, "convert", lambda weights, out, **options: (weights, out, options))
    weights, out = tmp_path / "w.npy", tmp_path / "net.onnx"
    assert CONVERTERS["alexnet"].run(weights, out, {"conv1_padding": "same"}) == (
        weights,
        out,
        {"conv1_padding": "same"},
    )


def test_the_weights_are_never_overwritten(tmp_path):
    weights = synthetic.simple_npz(tmp_path / "weights.npz", seed=1)
    before = weights.read_bytes()
    with pytest.raises(UsageError, match="is the weight file itself"):
        CONVERTERS["simple"].run(weights, weights)
    assert weights.read_bytes() == before


def test_listing_loads_no_converter():
    code = "import sys, onnxviz.converters; print([name for name in sys.modules if 'converters.' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_training_script_starts_without_a_warning():
    command = [sys.executable, "-W", "error", "-m", "onnxviz.converters.simple", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--digits" in done.stdout
    assert done.stderr == ""
