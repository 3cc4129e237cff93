"""VGG16 from ``vgg16_weights.npz``: conv1_1_W, conv1_1_b … fc8_b, convolutions HWIO, fc (in, out).

Architecture: Simonyan and Zisserman (2014), configuration D.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from .builder import Conv, Dense, ImageInput, Layer, MaxPool, Network, Relu, Softmax, write
from .weights import read_npz

__all__ = ["build", "convert", "network"]

INPUT = ImageInput(size=(224, 224), order="rgb", mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0))

_DEPTHS = (2, 2, 3, 3, 3)


def network(
    filters: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512),
    units: tuple[int, int, int] = (4096, 4096, 1000),
) -> Network:
    """Return VGG16; ``filters`` (per block) and ``units`` make it narrower or wider."""
    layers: list[Layer] = []
    for block, (depth, width) in enumerate(zip(_DEPTHS, filters, strict=True), start=1):
        for index in range(1, depth + 1):
            layers += [Conv(f"conv{block}_{index}", width, 3), Relu(f"relu{block}_{index}")]
        layers.append(MaxPool(f"pool{block}", 2, 2))
    layers += [
        Dense("fc6", units[0]),
        Relu("relu6"),
        Dense("fc7", units[1]),
        Relu("relu7"),
        Dense("fc8", units[2]),
        Softmax("prob"),
    ]
    return Network("vgg16", INPUT, tuple(layers), description="VGG16 (vgg16_weights.npz)")


def build(weights: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """Return VGG16 as a checked model. Raises `WeightsError` for arrays that do not fit."""
    return network().build(weights)


def convert(weights: Path, out: Path) -> Path:
    """Write the model ``out`` from a ``vgg16_weights.npz``.

    Raises `UsageError` for paths that are not there, `WeightsError` for a file that does not fit.
    """
    net = network()
    return write(net.build(read_npz(weights, net.weights()), str(weights)), out)
