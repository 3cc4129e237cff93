"""The filters of a network's first convolution as pictures, as in Fig. 6 of Zeiler and Fergus (2014)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.images import render
from onnxviz.images.preprocess import Preprocess
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.report.data import FilterBank, FilterData, Sprite

__all__ = ["FirstFilters", "draw_filters", "first_filters"]

Array: TypeAlias = NDArray[Any]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "DeformConv", "LSTM", "GRU", "RNN"})
_DEAD, _DOMINATING = 0.05, 3.0
"""Shares of the median RMS: below the one a filter is called dead, above the other dominating."""


@dataclass(frozen=True)
class FirstFilters:
    """``weights`` (channels, C, h, w) of a convolution that reads the image's own C channels."""

    layer: Layer
    weights: Array


def first_filters(network: Network) -> FirstFilters | None:
    """The filters of the first convolution, or None where they are no pictures: none reads the image's channels."""
    image = network.image
    layers = {layer.tensor: layer for layer in network.layers}
    reached = network.graph.descendants(image.name)
    for node in network.graph.nodes:
        if node.op not in _WEIGHTED or node.output not in reached:
            continue
        weights = network.constants.get(node.inputs[1]) if node.op == "Conv" else None
        layer = layers.get(node.output)
        if weights is None or layer is None or weights.ndim != 4 or weights.shape[1] != image.channels:
            return None
        return FirstFilters(layer, np.asarray(weights, np.float32))
    return None


def draw_filters(found: FirstFilters, preprocess: Preprocess, out: Path, folder: str) -> FilterBank:
    """Write two sheets, all filters on one scale and each on its own, and say what is in them.

    Args:
        out: the report's folder.
        folder: where the sheets go, relative to it.
    """
    drawn = render.finite(found.weights)
    shown = [preprocess.display(weights) for weights in drawn]
    # Where a weight is not finite, its filter has no size.
    sizes = np.sqrt((found.weights.astype(np.float64) ** 2).mean((1, 2, 3)))
    sizes = np.where(np.isfinite(sizes), sizes, np.nan)
    median = float(np.median(sizes[np.isfinite(sizes)])) if np.isfinite(sizes).any() else math.nan
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    largest = float(np.abs(drawn).max(initial=0))
    (out / folder).mkdir(parents=True, exist_ok=True)
    sheets = []
    for name, scale in (("shared", largest), ("own", None)):
        tiles = [
            render.projection_rgb(one, float(np.abs(one).max(initial=0)) if scale is None else scale)
            for one in shown
        ]
        path = f"{folder}/{name}.png"
        render.save(render.grid(tiles, columns, rows=rows), out / path)
        sheets.append(Sprite(path, rows, columns, found.weights.shape[2:], True))
    return FilterBank(
        layer=found.layer.name,
        size=found.weights.shape[2:],
        median=median,
        shared=sheets[0],
        own=sheets[1],
        filters=tuple(
            FilterData(index, float(size), _state(size, median)) for index, size in enumerate(sizes)
        ),
    )


def _state(size: float, median: float) -> str | None:
    if size == 0 or size < _DEAD * median:
        return "dead"
    return "dominating" if size > _DOMINATING * median else None
