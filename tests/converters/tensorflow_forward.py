"""The networks as TensorFlow describes them, in plain NumPy on N×H×W×C arrays: a witness for the converters.

Nothing here is shared with the converters: padding, normalisation and flattening follow TensorFlow's
documentation of tf.nn.conv2d, tf.nn.max_pool, tf.nn.local_response_normalization and tf.reshape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float32]


def conv(
    x: Array, kernels: Array, biases: Array, stride: int = 1, same: bool = True, groups: int = 1
) -> Array:
    """tf.nn.conv2d, the channels split into groups and concatenated again. kernels: HWIO."""
    parts = [
        _conv(part, kernel, stride, same)
        for part, kernel in zip(np.split(x, groups, axis=3), np.split(kernels, groups, axis=3), strict=True)
    ]
    return np.concatenate(parts, axis=3) + biases


def _conv(x: Array, kernels: Array, stride: int, same: bool) -> Array:
    size = kernels.shape[0]
    if same:
        pads = []
        for length in x.shape[1:3]:
            along = max(size - stride, 0) if length % stride == 0 else max(size - length % stride, 0)
            pads.append((along // 2, along - along // 2))
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
    windows = sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]  # N, H, W, C, kh, kw
    return np.tensordot(windows, kernels, axes=([4, 5, 3], [0, 1, 2])).astype(np.float32)


def pool(x: Array, size: int, stride: int) -> Array:
    """tf.nn.max_pool, VALID."""
    return sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride].max(axis=(4, 5))


def normalize(x: Array, radius: int = 2, alpha: float = 2e-5, beta: float = 0.75, bias: float = 1.0) -> Array:
    """tf.nn.local_response_normalization."""
    total = np.zeros_like(x)
    for channel in range(x.shape[3]):
        total[..., channel] = (x[..., max(channel - radius, 0) : channel + radius + 1] ** 2).sum(axis=3)
    return x / (bias + np.float32(alpha) * total) ** np.float32(beta)


def dense(x: Array, matrix: Array, biases: Array) -> Array:
    """tf.matmul on tf.reshape(x, [N, -1])."""
    return x.reshape(len(x), -1) @ matrix + biases


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def alexnet(x: Array, w: Mapping[str, Array], same_conv1: bool) -> dict[str, Array]:
    """Feature maps of AlexNet by name, N×H×W×C."""
    maps: dict[str, Array] = {}
    maps["conv1"] = conv(x, w["conv1_W"], w["conv1_b"], stride=4, same=same_conv1)
    maps["pool1"] = pool(normalize(relu(maps["conv1"])), 3, 2)
    maps["conv2"] = conv(maps["pool1"], w["conv2_W"], w["conv2_b"], groups=2)
    maps["pool2"] = pool(normalize(relu(maps["conv2"])), 3, 2)
    maps["conv3"] = conv(maps["pool2"], w["conv3_W"], w["conv3_b"])
    maps["conv4"] = conv(relu(maps["conv3"]), w["conv4_W"], w["conv4_b"], groups=2)
    maps["conv5"] = conv(relu(maps["conv4"]), w["conv5_W"], w["conv5_b"], groups=2)
    maps["pool5"] = pool(relu(maps["conv5"]), 3, 2)
    return maps | _head(maps["pool5"], w)


def vgg16(x: Array, w: Mapping[str, Array]) -> dict[str, Array]:
    """Feature maps of VGG16 by name, N×H×W×C."""
    maps: dict[str, Array] = {}
    for block, depth in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for index in range(1, depth + 1):
            name = f"conv{block}_{index}"
            maps[name] = conv(x, w[f"{name}_W"], w[f"{name}_b"])
            x = relu(maps[name])
        x = maps[f"pool{block}"] = pool(x, 2, 2)
    return maps | _head(x, w)


def simple(x: Array, w: Mapping[str, Array]) -> dict[str, Array]:
    """Feature maps of the small MNIST net by name, N×H×W×C."""
    maps = {"conv1": conv(x, w["wc1"], w["bc1"])}
    maps["conv2"] = conv(pool(relu(maps["conv1"]), 2, 2), w["wc2"], w["bc2"])
    maps["fc1"] = dense(pool(relu(maps["conv2"]), 2, 2), w["wd1"], w["bd1"])
    maps["fc2"] = dense(relu(maps["fc1"]), w["wout"], w["bout"])
    return maps | {"prob": softmax(maps["fc2"])}


def _head(x: Array, w: Mapping[str, Array]) -> dict[str, Array]:
    maps = {"fc6": dense(x, w["fc6_W"], w["fc6_b"])}
    maps["fc7"] = dense(relu(maps["fc6"]), w["fc7_W"], w["fc7_b"])
    maps["fc8"] = dense(relu(maps["fc7"]), w["fc8_W"], w["fc8_b"])
    return maps | {"prob": softmax(maps["fc8"])}
