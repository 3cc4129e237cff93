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
_NONZERO, _BATCHED_GATHER = 9, 12
"""The opsets that brought NonZero, and GatherND with ``batch_dims``."""

_LARGE_MAP, _SMALLEST_BLOCK, _LARGEST_BLOCK = 128, 8, 64
"""Units of a map from which on the maximum is looked for in blocks, and units of a block."""


def layer_probes(layer: Layer, opset: int, *, blocks: bool = True) -> tuple[Probe, ...]:
    """Per image and channel: the maximum, where it is, and the sum (`reduced` reads them).

    A vector comes out as it is. Names are ``<tensor>:max`` and so on. ``blocks`` looks for the maximum of a large map
    in blocks, which is faster on a CPU.
    """

    def probe(name: str, source: str, *steps: Step, shown: bool = True) -> Probe:
        return Probe(f"{layer.tensor}:{name}", source, steps, shown)

    start: list[Step] = [("Cast", (), {"to": _FLOAT})]
    if layer.order != tuple(range(len(layer.order))):
        start.append(("Transpose", (), {"perm": list(layer.order)}))
    if not layer.size:
        return (probe("vector", layer.tensor, *start),)
    block = _block(layer) if blocks and opset >= _NONZERO else 0
    if not block:
        flat = probe("flat", layer.tensor, *start, _reshape(0, 0, -1), shown=False)
        return (
            flat,
            probe("sum", flat.name, _reduce("ReduceSum", (2,), opset)),
            probe("max", flat.name, _reduce("ReduceMax", (2,), opset)),
            probe("argmax", flat.name, _first(2)),
        )
    # onnxruntime's ArgMax is several times slower than its ReduceMax. So the maxima of blocks are taken first, then
    # the first block that has the largest of them is searched alone.
    parts = probe("blocks", layer.tensor, *start, _reshape(0, 0, -1, block), shown=False)
    maxima = probe("maxima", parts.name, _reduce("ReduceMax", (3,), opset), shown=False)
    which = probe("which", maxima.name, _first(2))
    return (
        parts,
        probe("sum", parts.name, _reduce("ReduceSum", (2, 3), opset)),
        maxima,
        probe("max", maxima.name, _reduce("ReduceMax", (2,), opset)),
        which,
        *_within(layer, parts.name, which.name, block, opset),
    )


def _within(layer: Layer, parts: str, which: str, block: int, opset: int) -> tuple[Probe, ...]:
    """Where the maximum is in the block that has it.

    For want of GatherND all blocks of all maps lie one below the other in "rows", and 0, 1, 2 … for the maps, whose
    number is not known beforehand, lead to the first of each.
    """
    if opset >= _BATCHED_GATHER:
        index, within = (f"{layer.tensor}:{name}" for name in ("index", "within"))
        return (
            Probe(index, which, (_reshape(0, 0, 1),), shown=False),
            Probe(within, parts, (("GatherND", (index,), {"batch_dims": 2}), _first(2))),
        )
    flat, rows, row, within = (f"{layer.tensor}:{name}" for name in ("which-flat", "rows", "row", "within"))
    count = np.array(math.prod(layer.size) // block, np.int64)
    number: tuple[Step, ...] = (("Equal", (flat,), {}), ("NonZero", (), {}), _reshape(-1))
    return (
        Probe(flat, which, (_reshape(-1),), shown=False),
        Probe(rows, parts, (_reshape(-1, block),), shown=False),
        Probe(row, flat, (*number, ("Mul", (count,), {}), ("Add", (flat,), {})), shown=False),
        Probe(within, rows, (("Gather", (row,), {"axis": 0}), _first(1), _reshape(-1, layer.channels))),
    )


def _block(layer: Layer) -> int:
    """Units of the blocks that a map is searched in, or 0 if it is better searched as it is."""
    units = math.prod(layer.size)
    block = max(d for d in range(1, _LARGEST_BLOCK + 1) if units % d == 0)
    return block if units >= _LARGE_MAP and block >= _SMALLEST_BLOCK else 0


def _first(axis: int) -> Step:
    return ("ArgMax", (), {"axis": axis, "keepdims": 0})


def _reduce(op: str, axes: tuple[int, ...], opset: int) -> Step:
    if opset >= (_SUM_TAKES_AXES if op == "ReduceSum" else _MAX_TAKES_AXES):
        return (op, (np.array(axes, np.int64),), {"keepdims": 0})
    return (op, (), {"axes": list(axes), "keepdims": 0})


def _reshape(*shape: int) -> Step:
    return ("Reshape", (np.array(shape, np.int64),), {})


def reduced(layer: Layer, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The reductions of a layer, each (N, C): ``max``, ``argmax``, ``sum``. NaN and infinity show in the sum."""
    if layer.size:
        found = {name: outputs[f"{layer.tensor}:{name}"] for name in ("max", "sum")}
        if (which := outputs.get(f"{layer.tensor}:which")) is None:
            found["argmax"] = outputs[f"{layer.tensor}:argmax"]
        else:
            found["argmax"] = which * _block(layer) + outputs[f"{layer.tensor}:within"]
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
