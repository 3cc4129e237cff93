"""Projections of units, laid on the whole frame."""

from __future__ import annotations

import numpy as np

from onnxviz.network import Network
from onnxviz.reverse.methods import Method
from tests.reverse.cases import Array

CLOSE = 1e-5
"""Of the largest value: the same sums in another order, in float32."""


def paste(pixels: Array, box: Array, size: tuple[int, int]) -> Array:
    """A unit's pixels (C, h, w) on a frame (C, H, W), at its box; what lies outside the frame must be zero."""
    top, left, bottom, right = (int(v) for v in box)
    assert pixels.shape[1:] == (bottom - top, right - left)
    frame = np.zeros((len(pixels), *size), pixels.dtype)
    rest = pixels.copy()
    for y in range(max(top, 0), min(bottom, size[0])):
        for x in range(max(left, 0), min(right, size[1])):
            frame[:, y, x] = pixels[:, y - top, x - left]
            rest[:, y - top, x - left] = 0
    assert not rest.any(), "a projection reaches outside the image"
    return frame


def corner_units(network: Network, layer: str, samples: int, *, seed: int = 0) -> Array:
    """Units (M, 4) of a layer: its corners, the middle and two random ones, in channels and samples by turns."""
    found = network.layer(layer)
    height, width = found.grid
    rng = np.random.default_rng(seed)
    places = {(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1), (height // 2, width // 2)}
    places |= {(int(rng.integers(height)), int(rng.integers(width))) for _ in range(2)}
    return np.array(
        [[i % samples, rng.integers(found.channels), y, x] for i, (y, x) in enumerate(sorted(places))]
    )


def window_error(network: Network, x: Array, layer: str, units: Array, method: str | Method) -> float:
    """How far `project_units`, pasted on the frame, is from `project` of each unit, to the largest value."""
    found = network.project_units(x, layer, units, method)
    assert len(found.pixels) == len(found.boxes) == len(units)
    worst = 0.0
    for (sample, channel, *at), pixels, box in zip(units.tolist(), found.pixels, found.boxes, strict=True):
        whole = network.project(x[sample : sample + 1], layer, channel, (at[0], at[1]), method)[0]
        whole = network.image.to_nchw(whole[np.newaxis])[0]
        error = np.abs(paste(pixels, box, whole.shape[1:]) - whole).max() / max(np.abs(whole).max(), 1e-20)
        worst = max(worst, float(np.nan_to_num(error, nan=np.inf)))
    return worst
