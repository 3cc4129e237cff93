"""Reductions that run inside the graph, so that N×C numbers come out of a layer and not N×C×H×W."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ModelError
from onnxviz.model.graph import Probe
from onnxviz.model.layers import Layer

__all__ = ["layer_probes", "reduced"]

Array: TypeAlias = NDArray[Any]
Step: TypeAlias = tuple[str, tuple[Array | str, ...], Mapping[str, Any]]

_FLOAT = 1  # TensorProto.FLOAT
_SUM_TAKES_AXES, _MAX_TAKES_AXES = 13, 18
"""The opsets from which ReduceSum, and ReduceMax and ReduceMin, take their axes as an input."""
_NONZERO = 9
"""The opset that brought NonZero."""

_LARGE_MAP, _SMALLEST_BLOCK, _LARGEST_BLOCK = 512, 16, 256
"""Units of a map from which on the maximum is looked for in blocks, and units of a block."""


def layer_probes(layer: Layer, opset: int, *, blocks: bool = True) -> tuple[Probe, ...]:
    """Per image and channel: the maximum, where it is, and the sum.

    A vector comes out as it is. Names are ``<tensor>:max`` and so on. ``blocks`` looks for the maximum of a large map
    in blocks, which is faster on a CPU.
    """
    start: list[Step] = [("Cast", (), {"to": _FLOAT})]
    if layer.order != tuple(range(len(layer.order))):
        start.append(("Transpose", (), {"perm": list(layer.order)}))
    if not layer.size:
        return (Probe(f"{layer.tensor}:vector", layer.tensor, tuple(start)),)
    start.append(_reshape(0, 0, -1))
    flat = Probe(f"{layer.tensor}:flat", layer.tensor, tuple(start), shown=False)
    total = Probe(f"{layer.tensor}:sum", flat.name, (_reduce("ReduceSum", 2, opset),))
    return (flat, total, *_strongest(layer, flat.name, opset, blocks))


def _strongest(layer: Layer, flat: str, opset: int, blocks: bool) -> tuple[Probe, ...]:
    """The maximum of each map and its first place.

    onnxruntime's ArgMax is several times slower than its ReduceMax. So of a large map the maxima of blocks are
    taken first, then the first block that has the largest of them is searched alone.
    """

    def probe(name: str, source: str, *steps: Step, shown: bool = True) -> Probe:
        return Probe(f"{layer.tensor}:{name}", source, steps, shown)

    units = math.prod(layer.size)
    block = max(d for d in range(1, _LARGEST_BLOCK + 1) if units % d == 0)
    if not blocks or units < _LARGE_MAP or block < _SMALLEST_BLOCK or opset < _NONZERO:
        search: Step = ("ArgMax", (), {"axis": 2, "keepdims": 0})
        return (probe("max", flat, _reduce("ReduceMax", 2, opset)), probe("argmax", flat, search))
    # Maps have the shape (N, C, blocks, units of a block); all blocks of all maps lie one below the other in "rows".
    parts = probe("blocks", flat, _reshape(0, 0, -1, block), shown=False)
    maxima = probe("maxima", parts.name, _reduce("ReduceMax", 3, opset), shown=False)
    largest = probe("max", maxima.name, _reduce("ReduceMax", 2, opset))
    which = probe("which", maxima.name, ("ArgMax", (), {"axis": 2, "keepdims": 0}), _reshape(-1), shown=False)
    rows = probe("rows", parts.name, _reshape(-1, block), shown=False)
    # 0, 1, 2 … for the maps, whose number is not known beforehand.
    number: tuple[Step, ...] = (("Equal", (which.name,), {}), ("NonZero", (), {}), _reshape(-1))
    first: Step = ("Mul", (np.array(units // block, np.int64),), {})
    row = probe("row", which.name, *number, first, ("Add", (which.name,), {}), shown=False)
    best = probe(
        "within",
        rows.name,
        ("Gather", (row.name,), {"axis": 0}),
        ("ArgMax", (), {"axis": 1, "keepdims": 0}),
        shown=False,
    )
    place = probe(
        "argmax",
        which.name,
        ("Mul", (np.array(block, np.int64),), {}),
        ("Add", (best.name,), {}),
        _reshape(-1, layer.channels),
    )
    return (parts, maxima, largest, which, rows, row, best, place)


def _reduce(op: str, axis: int, opset: int) -> Step:
    if opset >= (_SUM_TAKES_AXES if op == "ReduceSum" else _MAX_TAKES_AXES):
        return (op, (np.array([axis], np.int64),), {"keepdims": 0})
    return (op, (), {"axes": [axis], "keepdims": 0})


def _reshape(*shape: int) -> Step:
    return ("Reshape", (np.array(shape, np.int64),), {})


def reduced(layer: Layer, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The reductions of a layer, each (N, C): ``max``, ``argmax``, ``sum``. NaN and infinity show in the sum."""
    if layer.size:
        found = {name: outputs[f"{layer.tensor}:{name}"] for name in ("max", "argmax", "sum")}
    else:
        vector = outputs[f"{layer.tensor}:vector"]
        found = {"max": vector, "argmax": np.zeros(vector.shape, np.int64), "sum": vector}
    rows = len(found["max"])
    if any(array.shape != (rows, layer.channels) for array in found.values()):
        shapes = ", ".join(str(array.shape) for array in found.values())
        raise ModelError(
            f"Layer {layer} gives {shapes} for {rows} images, and {layer.channels} channels for one: it does not treat "
            "images alike. Choose another layer."
        )
    return found
