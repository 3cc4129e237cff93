"""AlexNet: against TensorFlow's description in NumPy, from files as Python 2 wrote them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from onnxviz.converters import alexnet
from onnxviz.errors import UsageError, WeightsError
from tests.converters import synthetic, tensorflow_forward
from tests.converters.running import largest_difference, run

NARROW = {"filters": (6, 8, 10, 12, 14), "units": (20, 16, 11)}
MAPS = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8", "prob"]


@pytest.fixture(scope="module", params=["valid", "same"])
def narrow(request):
    padding = request.param
    network = alexnet.network(padding, **NARROW)
    weights = synthetic.he_weights(network, seed=1)
    x = np.random.default_rng(2).uniform(-120, 140, (2, 3, 227, 227)).astype(np.float32)
    found = run(network.build(weights), x, MAPS)
    expected = tensorflow_forward.alexnet(x.transpose(0, 2, 3, 1), weights, padding == "same")
    return found, expected


@pytest.mark.parametrize("name", MAPS)
def test_maps_equal_tensorflows(narrow, name):
    found, expected = narrow
    assert largest_difference(found[name], expected[name]) < 1e-4


@pytest.mark.parametrize(("padding", "size"), [("valid", 55), ("same", 57)])
def test_conv1_padding_changes_conv1_and_not_pool5(padding, size):
    shapes = alexnet.network(padding).shapes()
    assert shapes["conv1"] == (96, size, size)
    assert shapes["pool5"] == (256, 6, 6)


def test_the_real_feature_maps_from_a_file(tmp_path, monkeypatch):
    """The real widths up to pool5, through file and converter; the fc layers' 234 MB would only cost time."""
    network = alexnet.network(units=(20, 16, 11))
    monkeypatch.setattr(alexnet, "network", lambda padding: network)
    weights = synthetic.he_weights(network, seed=3)
    path = synthetic.write_python2_npy(tmp_path / "bvlc_alexnet.npy", synthetic.paired(weights))
    model = onnx.load(alexnet.convert(path, tmp_path / "alexnet.onnx"))
    x = np.random.default_rng(4).uniform(-120, 140, (1, 3, 227, 227)).astype(np.float32)
    found = run(model, x, ["conv5", "prob"])
    expected = tensorflow_forward.alexnet(x.transpose(0, 2, 3, 1), weights, same_conv1=False)
    assert largest_difference(found["conv5"], expected["conv5"]) < 1e-4
    assert largest_difference(found["prob"], expected["prob"]) < 1e-4


def test_the_table_is_caffes():
    shapes = alexnet.network().weights()
    assert shapes["conv1_W"] == (11, 11, 3, 96)
    assert shapes["conv2_W"] == (5, 5, 48, 256)
    assert shapes["fc6_W"] == (9216, 4096)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 60_965_224


def test_names_and_preprocessing():
    network = alexnet.network(**NARROW)
    model = network.build(synthetic.he_weights(network, seed=1))
    names = [node.name for node in model.graph.node]
    assert " ".join(names) == (
        "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
        "fc6_flatten fc6 relu6 fc7 relu7 fc8 prob"
    )
    assert [node.output[0] for node in model.graph.node] == names
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["onnxviz.preprocess"]) == {
        "size": [227, 227],
        "resize": "crop",
        "order": "bgr",
        "scale": 1.0,
        "mean": [104.00699, 116.66877, 122.67892],
        "std": [1.0, 1.0, 1.0],
    }


def test_unknown_padding_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(UsageError, match="'full': expected valid"):
        alexnet.convert(tmp_path / "missing.npy", tmp_path / "out.onnx", conv1_padding="full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.pop("conv3"), r"missing conv3_W, conv3_b \(2 of 16 arrays\)"),
        (
            lambda entries: entries["conv2"].pop(),
            r"conv2 is a list of 1 \(ndarray\), expected \[weights, biases\]",
        ),
        (
            lambda entries: entries.update(
                conv1=[np.zeros((96, 3, 11, 11), np.float32), entries["conv1"][1]]
            ),
            r"conv1_W has shape \(96, 3, 11, 11\), expected \(11, 11, 3, 96\) \(height, width, in, out\)",
        ),
    ],
    ids=["missing", "no-biases", "wrong-shape"],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, change, message):
    entries = synthetic.paired(synthetic.he_weights(alexnet.network(units=(1, 1, 1)), seed=1))
    change(entries)
    path = synthetic.write_python2_npy(tmp_path / "bvlc_alexnet.npy", entries)
    with pytest.raises(WeightsError, match=message) as error:
        alexnet.convert(path, tmp_path / "out.onnx")
    assert str(path) in str(error.value)
    assert not (tmp_path / "out.onnx").exists()


def test_every_missing_array_is_listed(tmp_path):
    path = synthetic.write_python2_npy(tmp_path / "empty.npy", {})
    with pytest.raises(WeightsError) as error:
        alexnet.convert(path, tmp_path / "out.onnx")
    assert all(key in str(error.value) for key in alexnet.network().weights())


def test_values_that_are_not_finite_are_counted():
    network = alexnet.network(**NARROW)
    weights = synthetic.he_weights(network, seed=1)
    weights["conv4_b"][2:5] = np.nan, np.inf, -np.inf
    with pytest.raises(WeightsError, match=r"file\.npy: conv4_b has 3 values that are not finite"):
        network.build(weights, "file.npy")


def test_weights_of_another_float_type_are_taken():
    network = alexnet.network(**NARROW)
    weights = {key: array.astype(np.float64) for key, array in synthetic.he_weights(network, seed=1).items()}
    assert network.build(weights) == network.build(synthetic.he_weights(network, seed=1))


def test_a_file_far_too_large_is_not_read(tmp_path):
    path = tmp_path / "huge.npy"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(WeightsError, match=r"has 1,099,511,627,776 bytes, expected about 243,860,896"):
        alexnet.convert(path, tmp_path / "out.onnx")
