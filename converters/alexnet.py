"""AlexNet from ``bvlc_alexnet.npy``: Caffe's reference network, its weights ported to TensorFlow.

The file holds a pickled dict, name → [weights, biases], written by Python 2; convolutions are HWIO.
Architecture: Krizhevsky, Sutskever and Hinton (2012), as Caffe's bvlc_alexnet: norm before pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import onnx
from numpy.typing import NDArray

from onnxviz.errors import UsageError

from .builder import (
    Conv,
    Dense,
    ImageInput,
    Layer,
    LocalResponseNorm,
    MaxPool,
    Network,
    Relu,
    Softmax,
    write,
)
from .weights import read_pickled_pairs

__all__ = ["build", "convert", "network"]

INPUT = ImageInput(
    size=(227, 227), order="bgr", mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0)
)  # mean: Caffe's ilsvrc_2012_mean.npy, over all positions


def network(
    conv1_padding: str = "valid",
    filters: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256),
    units: tuple[int, int, int] = (4096, 4096, 1000),
) -> Network:
    """Return AlexNet; ``filters`` and ``units`` make it narrower or wider.

    Caffe does not pad conv1 (55×55 outputs); a well-known TensorFlow port does, with "same" (57×57). Both
    reach pool5 with 6×6. Raises `UsageError` for any other padding.
    """
    if conv1_padding not in ("valid", "same"):
        raise UsageError(f"conv1 padding {conv1_padding!r}: expected valid (as Caffe) or same")
    padding = cast(Literal["valid", "same"], conv1_padding)
    layers: tuple[Layer, ...] = (
        Conv("conv1", filters[0], 11, stride=4, padding=padding),
        Relu("relu1"),
        _norm("norm1"),
        MaxPool("pool1", 3, 2),
        Conv("conv2", filters[1], 5, group=2),
        Relu("relu2"),
        _norm("norm2"),
        MaxPool("pool2", 3, 2),
        Conv("conv3", filters[2], 3),
        Relu("relu3"),
        Conv("conv4", filters[3], 3, group=2),
        Relu("relu4"),
        Conv("conv5", filters[4], 3, group=2),
        Relu("relu5"),
        MaxPool("pool5", 3, 2),
        Dense("fc6", units[0]),
        Relu("relu6"),
        Dense("fc7", units[1]),
        Relu("relu7"),
        Dense("fc8", units[2]),
        Softmax("prob"),
    )
    return Network("alexnet", INPUT, layers, description=f"AlexNet (bvlc_alexnet.npy), conv1 {conv1_padding}")


def build(weights: Mapping[str, NDArray[Any]], conv1_padding: str = "valid") -> onnx.ModelProto:
    """Return AlexNet as a checked model. ``weights``: conv1_W (HWIO), conv1_b … fc6_W (in, out) … fc8_b.

    Raises `WeightsError` for arrays that do not fit, `UsageError` for an unknown padding.
    """
    return network(conv1_padding).build(weights)


def convert(weights: Path, out: Path, conv1_padding: str = "valid") -> Path:
    """Write the model ``out`` from a ``bvlc_alexnet.npy``. Nothing in that file is run.

    Raises `UsageError` for paths that are not there, `WeightsError` for a file that does not fit.
    """
    net = network(conv1_padding)
    return write(net.build(read_pickled_pairs(weights, net.weights()), str(weights)), out)


def _norm(name: str) -> LocalResponseNorm:
    # TensorFlow's radius 2 and alpha 2e-5 are a size of 2·2 + 1 and an alpha of 5 · 2e-5 in ONNX.
    return LocalResponseNorm(name, size=5, alpha=1e-4, beta=0.75, bias=1.0)
