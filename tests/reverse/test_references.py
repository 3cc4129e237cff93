"""Stored projections that PyTorch made (`tests/references/make.py`), on networks that its two exporters wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxviz
from onnxviz.network import Network
from tests.reverse.cases import Array
from tests.reverse.pasting import CLOSE, corner_units, paste, window_error

FOLDER = Path(__file__).parents[1] / "references"
CHANNEL = 2
TOLERANCE = 1e-4
"""Of the largest value."""

LAYERS = {
    "residual": {"b": "conv5", "head": "fc1"},
    "inception": {"five": "conv6", "last": "conv8"},
    "mobile": {"point": "conv3", "last": "conv5", "head": "fc1"},
}
ALL_METHODS = ("gradient", "deconvnet", "guided")
METHODS = {"residual": ALL_METHODS, "inception": ALL_METHODS, "mobile": ("gradient",)}
EXPORTERS = {"torchscript": "", "dynamo": "_dynamo"}

networks = pytest.mark.parametrize("exporter", EXPORTERS)
stored_layers = pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, layers in LAYERS.items() for layer in layers]
)
stored_projections = pytest.mark.parametrize(
    ("name", "layer", "method"),
    [(name, layer, m) for name, layers in LAYERS.items() for layer in layers for m in METHODS[name]],
)


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Array]]:
    return {name: dict(np.load(FOLDER / f"{name}.npz")) for name in LAYERS}


@pytest.fixture(scope="module")
def nets(provider: str) -> dict[tuple[str, str], Network]:
    return {
        (name, exporter): onnxviz.load(FOLDER / f"{name}{suffix}.onnx", provider=provider)
        for name in LAYERS
        for exporter, suffix in EXPORTERS.items()
    }


def largest_difference(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_everything_stored_is_used(references):
    for name, stored in references.items():
        wanted = {f"{layer}/{kind}" for layer in LAYERS[name] for kind in (*METHODS[name], "activation")}
        assert set(stored) == wanted | {"x"}


@networks
@stored_layers
def test_activations(name: str, layer: str, exporter: str, nets, references):
    found = nets[name, exporter].activations(references[name]["x"], LAYERS[name][layer])
    assert largest_difference(found, references[name][f"{layer}/activation"]) < TOLERANCE


@networks
@stored_projections
def test_projections(name: str, layer: str, method: str, exporter: str, nets, references):
    x, expected = references[name]["x"], references[name][f"{layer}/{method}"]
    found = nets[name, exporter].project(x, LAYERS[name][layer], CHANNEL, "max", method)
    for image, wanted in zip(found, expected, strict=True):
        assert largest_difference(image, wanted) < TOLERANCE


@networks
@stored_projections
def test_projections_of_units(name: str, layer: str, method: str, exporter: str, nets, references):
    x, expected = references[name]["x"], references[name][f"{layer}/{method}"]
    maps = references[name][f"{layer}/activation"][:, CHANNEL]
    places = [np.unravel_index(m.argmax(), m.shape) if m.ndim else () for m in maps]
    units = np.array([[n, CHANNEL, *(*place, 0, 0)[:2]] for n, place in enumerate(places)])
    found = nets[name, exporter].project_units(x, LAYERS[name][layer], units, method)
    for pixels, box, wanted in zip(found.pixels, found.boxes, expected, strict=True):
        assert largest_difference(paste(pixels, box, wanted.shape[1:]), wanted) < TOLERANCE


@networks
@stored_projections
def test_windows_equal_whole_maps(name: str, layer: str, method: str, exporter: str, nets, references):
    net, alias = nets[name, exporter], LAYERS[name][layer]
    units = corner_units(net, alias, len(references[name]["x"]))
    assert window_error(net, references[name]["x"], alias, units, method) < CLOSE
