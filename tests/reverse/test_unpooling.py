"""A MaxUnpool that undoes a MaxPool: the pool's switches and its indices are both recorded."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from tests.reverse.cases import weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node, pictures
from tests.reverse.pasting import CLOSE, corner_units, window_error
from tests.reverse.witnesses import Array, Arrays, derivative_error, onnxruntime_forward


def encoder_and_decoder() -> ModelProto:
    """As in SegNet (Badrinarayanan et al., 2017)."""
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("MaxPool", "c", "p places", **window),
        node("Conv", "p v", "d", pads=[1, 1, 1, 1]),
        node("Relu", "d", "r"),
        node("MaxUnpool", "r places shape", "u", **window),
        node("Conv", "u z", "y", pads=[1, 1, 1, 1]),
    ]
    constants = {"w": weights(4, 3, 3, 3), "v": weights(4, 4, 3, 3), "z": weights(5, 4, 3, 3)}
    return network(nodes, constants | {"shape": np.array([1, 4, 13, 11])}, image=(1, 3, 13, 11))


def without_shape() -> ModelProto:
    """The map is even, so its size need not be told, and the batch is open."""
    model = encoder_and_decoder()
    del model.graph.node[4].input[2]
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, ("N", 3, 12, 10), strict=True):
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    return model


MODELS = pytest.mark.parametrize("make", [encoder_and_decoder, without_shape])


@MODELS
def test_the_gradient(make, opened: Opener):
    model = make()
    net = opened(model)

    def pull_back(x: Arrays, y: Arrays) -> dict[str, Array]:
        return net.vjp({name: v.astype(np.float32) for name, v in x.items()}, y)

    x = {"x": pictures(model, 1)}
    rng = np.random.default_rng(1)
    # Kinks cannot be kept away from here, so the step is small and the tolerance wide.
    assert derivative_error(onnxruntime_forward(model), pull_back, x, rng, step=2e-4) < 1e-3


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_windows_equal_whole_maps(method: str, opened: Opener):
    """Images of one batch have indices that begin where those of the image before end."""
    model = without_shape()
    net = opened(model)
    assert window_error(net, pictures(model, 3), "y", corner_units(net, "y", 3), method) < CLOSE
