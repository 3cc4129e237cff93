"""Whole networks as exporters write them: every convolution's pull-back is the derivative.

The graphs are stored without weights (`tests/graphs`) and get seeded ones. The witness is a finite difference through
onnxruntime of the same network with its kinks frozen (`tests.seeded.freeze`): where it is piecewise linear, wide
steps are exact, so that float32 tells many digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxviz
from onnxviz.check import check
from onnxviz.network import Network
from onnxviz.reverse.methods import make_method
from tests import light, seeded
from tests.reverse.cases import Array
from tests.reverse.pasting import CLOSE, corner_units, window_error

PIECEWISE_LINEAR = 5e-6
"""Roundings of float32 in networks of Conv, Relu, pools and the like; the largest seen was 1e-6."""
SMOOTH = 1e-3
"""With SiLU, GELU, gates and norms the differences are blurred by curvature or rounding: up to 4e-4 was seen, in single
layers. A tenth of a percent of one operator is noticed by the tests of rules, which are much sharper."""
CURVED = frozenset(
    {
        "Gelu",
        "HardSwish",
        "LayerNormalization",
        "LSTM",
        "Mul",
        "ReduceL2",
        "Sigmoid",
        "Softmax",
        "Swish",
        "Tanh",
    }
)
"""Operators that make a network smooth rather than piecewise linear. (Mul of constants, too: it is not looked into.)"""

BATCH_MOVED = frozenset({"crnn", "ocr", "swin", "vit"})
"""Networks that put their steps, tokens or windows on axis 0 in places."""

SAMPLED = 3


@dataclass(frozen=True)
class Opened:
    """A network with one image and a direction, the convolutions' tensors and their slopes along it."""

    net: Network
    x: Array
    direction: Array
    slopes: Mapping[str, Array]
    tolerance: float


@cache
def opened(path: Path, candidates: int) -> Opened:
    """``candidates``: how many inputs to choose the one from that is furthest from kinks."""
    net = onnxviz.load(path, provider="cpu")
    if path.stem in seeded.names():
        draw = seeded.inputs(path.stem, candidates)
    else:
        shape = net.image.shape(candidates, net.size)
        draw = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    x, frozen = seeded.freeze(path, draw)
    net = net.resized(net.size_of(x))
    layers = net.layers
    tensors = [x_.tensor for x_ in layers if x_.op in ("Conv", "ConvTranspose")]
    direction = np.random.default_rng(7).standard_normal(x.shape).astype(np.float32)
    slopes = {name: value[0] for name, value in seeded.slopes(frozen, x, tensors, direction).items()}
    curved = any(node.op in CURVED for node in net.graph.nodes)
    return Opened(net, x, direction, slopes, SMOOTH if curved else PIECEWISE_LINEAR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def stored(name: str, folder: Path) -> Opened:
    path = folder / f"{name}.onnx"
    if not path.exists():
        seeded.write_seeded(name, folder)
    return opened(path, 8)


def error(found: Opened, names: list[str], rng: np.random.Generator) -> float:
    """|Σ⟨J d, y⟩ − ⟨d, Jᵀ y⟩| over some tensors, relative; each counts as much as the others."""
    x = found.net.image.name
    cotangents, ahead, scale = {}, 0.0, 0.0
    for name in names:
        slope = found.slopes[name]
        size = np.sqrt((slope**2).sum())
        y = (slope / size + rng.standard_normal(slope.shape) / np.sqrt(slope.size)).astype(np.float32)
        cotangents[name] = (y / size)[np.newaxis]
        ahead += float((slope * y).sum() / size)
        scale += float(np.sqrt((y**2).sum())) ** 2
    back = found.net.vjp({x: found.x}, cotangents)[x]
    return abs(ahead - float(np.vdot(back.astype(float), found.direction))) / np.sqrt(scale * len(names))


every_graph = pytest.mark.parametrize("name", seeded.names())


@every_graph
def test_every_convolution_is_pulled_back_to_the_derivative(name: str, folder: Path):
    found = stored(name, folder)
    rng = np.random.default_rng(0)
    tensors = list(found.slopes)
    assert len(tensors) >= 1
    assert error(found, tensors, rng) < found.tolerance
    for tensor in rng.choice(tensors, min(SAMPLED, len(tensors)), replace=False):
        assert error(found, [str(tensor)], rng) < found.tolerance


@every_graph
def test_it_is_understood(name: str, folder: Path):
    """All layers can be analysed, but for those that no small change of the image changes, or that mix the batch.

    Convolutions all can, and the ends of blocks of a transformer.
    """
    found = check(stored(name, folder).net.file.path, make_method("deconvnet"))
    assert found.problem is None
    assert all(layer.problem is None for layer in found.layers if layer.op == "Conv")
    problems = [layer.problem for layer in found.layers if layer.problem]
    if name.removesuffix("_dynamo") in BATCH_MOVED:
        problems = [words for words in problems if not re.search(r"has \d+ rows for 1 image\(s\)", words)]
        assert any(layer.op == "Add" and layer.problem is None for layer in found.layers) or "vit" not in name
    assert set(problems) <= {"no small change of the image changes it"}


@every_graph
def test_windows_equal_whole_maps(name: str, folder: Path):
    found = stored(name, folder)
    layers = [layer for layer in found.net.layers if layer.tensor in found.slopes]
    layer = layers[len(layers) // 2]
    for method in ("deconvnet", "gradient"):
        units = corner_units(found.net, layer.name, 1)
        assert window_error(found.net, found.x, layer.name, units, method) < CLOSE


@pytest.mark.parametrize("name", light.NAMES)
def test_the_light_models(name: str, tmp_path: Path):
    """Their weights are random and not fitted: with depth the signal fades, in two of them below float32's roundings of
    the activations. Sampled are convolutions of which a difference still tells something.
    """
    found = opened(light.write_light(name, tmp_path), 4)
    values = found.net.record(found.x, list(found.slopes)).values
    told = [n for n, slope in found.slopes.items() if np.abs(slope).max() > 1e-3 * np.abs(values[n]).max()]
    rng = np.random.default_rng(0)
    assert len(told) >= 5
    for tensor in (told[-1], *rng.choice(told[:-1], SAMPLED, replace=False)):
        assert error(found, [str(tensor)], rng) < found.tolerance


def test_a_tenth_of_a_percent_in_one_convolution_is_noticed(folder: Path, tmp_path: Path):
    """The witness, held against a network of which one weight tensor is off."""
    found = stored("resnet18", folder)
    model = onnx.load(str(found.net.file.path))
    conv = next(
        node for node in model.graph.node if node.op_type == "Conv" and node.output[0] in found.slopes
    )
    for tensor in model.graph.initializer:
        if tensor.name == conv.input[1]:
            wrong = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    net = onnxviz.load(tmp_path / "wrong.onnx", provider="cpu").resized(found.net.size)
    off = Opened(net, found.x, found.direction, found.slopes, found.tolerance)
    assert error(off, [conv.output[0]], np.random.default_rng(0)) > 10 * found.tolerance
