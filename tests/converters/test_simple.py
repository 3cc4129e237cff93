"""The small MNIST net: conversion, and what its training keeps aside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxviz.converters import simple
from tests.converters import synthetic, tensorflow_forward
from tests.converters.running import largest_difference, run

MAPS = ["conv1", "conv2", "fc1", "fc2", "prob"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simple")
    path = synthetic.simple_npz(folder / "weights.npz", seed=1)
    x = np.random.default_rng(2).random((3, 1, 28, 28), np.float32)
    expected = tensorflow_forward.simple(
        x.transpose(0, 2, 3, 1), synthetic.he_weights(simple.network(), seed=1)
    )
    return run(onnx.load(simple.convert(path, folder / "simple.onnx")), x, MAPS), expected


@pytest.mark.parametrize("name", MAPS)
def test_maps_equal_tensorflows(converted, name):
    found, expected = converted
    assert largest_difference(found[name], expected[name]) < 1e-4


def test_int8_storage_computes_with_the_rounded_weights():
    weights = synthetic.he_weights(simple.network(), seed=1)
    model = simple.build(weights, dense_storage="int8")
    assert model.ByteSize() < 3.6e6
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounded = arrays["fc1_W_int8"].astype(np.float32) * arrays["fc1_W_scale"]
    flattened = rounded.reshape(64, 7, 7, 1024).transpose(1, 2, 0, 3).reshape(3136, 1024)
    assert np.abs(flattened - weights["wd1"]).max() <= arrays["fc1_W_scale"].max() / 2 * 1.001
    x = np.random.default_rng(2).random((3, 1, 28, 28), np.float32)
    expected = tensorflow_forward.simple(x.transpose(0, 2, 3, 1), weights | {"wd1": flattened})
    assert largest_difference(run(model, x, ["fc2"])["fc2"], expected["fc2"]) < 1e-4


def test_held_out_digits_are_the_last_hundred_of_each_class():
    y = np.random.default_rng(3).permutation(np.repeat(np.arange(10), 130)).astype(np.uint8)
    mask = simple.held_out(y)
    assert np.bincount(y[mask]).tolist() == [100] * 10
    assert np.flatnonzero(~mask & (y == 4)).max() < np.flatnonzero(mask & (y == 4)).min()


def test_training_learns(tmp_path, capsys):
    pytest.importorskip("torch", reason="training needs PyTorch (the extra [train])")
    rng = np.random.default_rng(5)
    y = np.tile(np.arange(10), 110).astype(np.uint8)
    prototypes = rng.integers(0, 256, (10, 4, 4)).repeat(7, axis=1).repeat(7, axis=2)
    x = np.clip(prototypes[y] + rng.normal(0, 20, (len(y), 28, 28)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    arguments = ["train", "--digits", str(tmp_path / "digits.npz"), "--out", str(tmp_path / "net.onnx")]
    assert simple.main([*arguments, "--epochs", "12"]) == 0
    assert "of 1,000 digits right" in capsys.readouterr().out
    assert simple.accuracy(onnx.load(tmp_path / "net.onnx"), x[-1000:], y[-1000:]) > 0.9
