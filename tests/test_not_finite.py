"""NaN and infinity in weights and activations: counted, told, drawn as grey, never ranked, and no warning."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli
from onnxviz.images import render
from tests.model.nets import build, conv_weights, node, small, write

X = np.random.default_rng(0).normal(size=(6, 3, 12, 12)).astype(np.float32)


def poisoned(name: str, place: tuple[int, ...], value: float):
    model = small()
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[place] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(
    ("name", "place", "layer", "channels"),
    [
        ("w1", (2, 1), "conv1", {2}),
        ("w1", (2, 1), "relu1", {2}),
        ("b2", (3,), "conv2", {3}),
        ("w4", (1, 0), "fc2", {1}),
    ],
    ids=["first convolution", "behind it", "bias", "last layer"],
)
def test_a_weight(tmp_path, value, name, place, layer, channels):
    np.save(tmp_path / "x.npy", X)
    model = write(tmp_path / "m.onnx", poisoned(name, place, value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atlas = onnxviz.analyze(
            model, layers=[layer], images=tmp_path / "x.npy", provider="cpu", report=tmp_path / "report"
        )
    one = atlas.layers[0]
    spoilt = set(np.flatnonzero(one.stats.not_finite).tolist())
    if (name, layer) != ("w4", "fc2") and not (layer == "relu1" and value == -np.inf):
        assert spoilt == channels
    assert spoilt <= channels
    for channel in range(one.layer.channels):
        hits = one.topk.hits(channel)
        assert all(np.isfinite(hit.score) for hit in hits)
        assert bool(hits) == (one.stats.images[channel] > 0)
    count = 9 if name == "w1" else 1
    notes = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))["provenance"]["notes"]
    assert f"{count} weights are NaN or infinity ({count} in {name})." in notes
    assert onnxviz.Atlas.load(tmp_path / "report").provenance.notes == atlas.provenance.notes


def test_activations(tmp_path):
    """The logarithm of what is negative in some images."""
    nodes = [node("Conv", "x w", "c", "conv1"), node("Log", "c", "y", "log")]
    weights = {"w": np.ones((1, 3, 12, 12), np.float32)}
    x = np.abs(X)
    x[[1, 4]] *= -1
    np.save(tmp_path / "x.npy", x)
    model = write(tmp_path / "m.onnx", build(nodes, weights))
    options = ["-l", "log", "--images", str(tmp_path / "x.npy"), "--out", str(tmp_path / "report")]
    result = CliRunner().invoke(cli.app, ["analyze", str(model), *options, "--provider", "cpu"])
    assert result.exit_code == 0, result.output
    assert "log (log1): 1 channels, 0 dead, 1 with NaN or infinity in some images" in result.output
    one = onnxviz.Atlas.load(tmp_path / "report").layers[0]
    assert one.stats.not_finite.tolist() == [2]
    assert sorted(hit.image for hit in one.topk.hits(0)) == [0, 2, 3, 5]


def test_a_bound_that_is_open_is_no_weight_that_is_lost(tmp_path):
    nodes = [node("Conv", "x w", "c", "conv1"), node("Clip", "c zero most", "y", "clip")]
    weights = {
        "w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3),
        "zero": np.float32(0),
        "most": np.float32(np.inf),
    }
    model = write(tmp_path / "m.onnx", build(nodes, weights))
    atlas = onnxviz.analyze(model, layers=["clip"], limit=3, provider="cpu")
    assert not any("infinity" in note for note in atlas.provenance.notes)


def test_drawing():
    p = np.array([[[np.nan], [np.inf]], [[-np.inf], [0.5]], [[0], [-0.25]]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = render.projection_rgb(p)[..., 0]
        assert render.projection_limit(p) == 0.5
        heat = render.heatmap(p[..., 0])
    assert found.tolist() == [[128, 255], [1, 255], [128, 64]]
    assert heat[0, 0] == heat[2, 0] == 0
    assert heat[0, 1] == heat[1, 1] == heat.max() > 0


def test_drawn_together_each_has_a_largest_value_of_its_own():
    finite = np.array([[[0.5], [-1]], [[0], [2]]], np.float32)
    several = np.stack([finite, np.where(finite == 0, np.inf, 8 * finite), np.full_like(finite, np.nan)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for drawn, one in zip(render.projection_rgb(several), several, strict=True):
            np.testing.assert_array_equal(drawn, render.projection_rgb(one))
        for heat, one in zip(render.heatmap(several[..., 0]), several[..., 0], strict=True):
            np.testing.assert_array_equal(heat, render.heatmap(one))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_nothing_but_that(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = render.projection_rgb(np.full((3, 3, 3), value, np.float32))
    assert drawn.shape == (3, 3, 3)
