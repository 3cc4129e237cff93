"""VGG16: against TensorFlow's description in NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxviz.converters import vgg16
from onnxviz.errors import WeightsError
from tests.converters import synthetic, tensorflow_forward
from tests.converters.running import largest_difference, run

NARROW = {"filters": (3, 4, 5, 6, 7), "units": (20, 16, 11)}
MAPS = [
    "conv1_1",
    "pool1",
    "conv2_2",
    "conv3_3",
    "pool3",
    "conv4_3",
    "conv5_3",
    "pool5",
    "fc6",
    "fc8",
    "prob",
]


@pytest.fixture(scope="module")
def narrow():
    network = vgg16.network(**NARROW)
    weights = synthetic.he_weights(network, seed=1)
    x = np.random.default_rng(2).uniform(-120, 140, (2, 3, 224, 224)).astype(np.float32)
    expected = tensorflow_forward.vgg16(x.transpose(0, 2, 3, 1), weights)
    return run(network.build(weights), x, MAPS), expected


@pytest.mark.parametrize("name", MAPS)
def test_maps_equal_tensorflows(narrow, name):
    found, expected = narrow
    assert largest_difference(found[name], expected[name]) < 1e-4


def test_the_table_is_vgg16s():
    network = vgg16.network()
    shapes = network.weights()
    assert list(shapes)[:4] == ["conv1_1_W", "conv1_1_b", "conv1_2_W", "conv1_2_b"]
    assert shapes["conv5_3_W"] == (3, 3, 512, 512)
    assert shapes["fc6_W"] == (25088, 4096)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 138_357_544
    assert network.shapes()["relu3_3"] == (256, 56, 56)


def test_names_and_preprocessing():
    network = vgg16.network(**NARROW)
    model = network.build(synthetic.he_weights(network, seed=1))
    names = [node.name for node in model.graph.node]
    assert names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert names[-8:] == ["pool5", "fc6_flatten", "fc6", "relu6", "fc7", "relu7", "fc8", "prob"]
    preprocess = json.loads(
        next(entry.value for entry in model.metadata_props if entry.key == "onnxviz.preprocess")
    )
    assert preprocess["order"] == "rgb"
    assert preprocess["mean"] == [123.68, 116.779, 103.939]


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "vgg16_weights.npz"
    np.savez(path, **synthetic.he_weights(vgg16.network(**NARROW), seed=1))
    with pytest.raises(
        WeightsError, match=r"vgg16_weights\.npz: conv1_1_W has shape \(3, 3, 3, 3\), expected"
    ):
        vgg16.convert(path, tmp_path / "out.onnx")
