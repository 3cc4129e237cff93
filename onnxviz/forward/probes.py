"""Reductions that run inside the graph, so that N×C numbers come out of a layer and not N×C×H×W."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.model.graph import Probe
from onnxviz.model.layers import Layer

__all__ = ["layer_probes", "reduced"]

Array: TypeAlias = NDArray[Any]

_FLOAT = 1  # TensorProto.FLOAT
_SUM_TAKES_AXES, _MAX_TAKES_AXES = 13, 18
"""The opsets from which ReduceSum, and ReduceMax and ReduceMin, take their axes as an input."""


def layer_probes(layer: Layer, opset: int) -> tuple[Probe, ...]:
    """Per image and channel: the maximum, where it is, the minimum, the sum, and how many units are above 0.

    A vector comes out as it is. Names are ``<tensor>:max`` and so on.
    """
    start: list[tuple[str, tuple[Array, ...], Mapping[str, Any]]] = [("Cast", (), {"to": _FLOAT})]
    if layer.order != tuple(range(len(layer.order))):
        start.append(("Transpose", (), {"perm": list(layer.order)}))
    if not layer.size:
        return (Probe(f"{layer.tensor}:vector", layer.tensor, tuple(start)),)
    start.append(("Reshape", (np.array([0, 0, -1], np.int64),), {}))

    def reduce(op: str, since: int) -> tuple[str, tuple[Array, ...], Mapping[str, Any]]:
        if opset >= since:
            return (op, (np.array([2], np.int64),), {"keepdims": 0})
        return (op, (), {"axes": [2], "keepdims": 0})

    total = reduce("ReduceSum", _SUM_TAKES_AXES)
    chains: dict[str, tuple[tuple[str, tuple[Array, ...], Mapping[str, Any]], ...]] = {
        "max": (reduce("ReduceMax", _MAX_TAKES_AXES),),
        "argmax": (("ArgMax", (), {"axis": 2, "keepdims": 0}),),
        "min": (reduce("ReduceMin", _MAX_TAKES_AXES),),
        "sum": (total,),
        "active": (("Greater", (np.zeros(1, np.float32),), {}), ("Cast", (), {"to": _FLOAT}), total),
    }
    return tuple(
        Probe(f"{layer.tensor}:{name}", layer.tensor, (*start, *end)) for name, end in chains.items()
    )


def reduced(layer: Layer, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The reductions of a layer, each (N, C): ``max``, ``argmax``, ``min``, ``sum``, ``active``."""
    if not layer.size:
        vector = outputs[f"{layer.tensor}:vector"]
        return {
            "max": vector,
            "argmax": np.zeros(vector.shape, np.int64),
            "min": vector,
            "sum": vector,
            "active": (vector > 0).astype(np.float32),
        }
    return {name: outputs[f"{layer.tensor}:{name}"] for name in ("max", "argmax", "min", "sum", "active")}
