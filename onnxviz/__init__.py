"""onnxviz: what every channel of a convolutional network responds to, from its ONNX file alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxviz.analysis import analyze, draw, merge, scan
    from onnxviz.atlas import Atlas
    from onnxviz.errors import OnnxvizError
    from onnxviz.network import Network, load
    from onnxviz.reverse.project import Projections

__all__ = [
    "Atlas",
    "Network",
    "OnnxvizError",
    "Projections",
    "analyze",
    "draw",
    "load",
    "merge",
    "scan",
]

_HOMES = {
    "Atlas": "onnxviz.atlas",
    "Network": "onnxviz.network",
    "OnnxvizError": "onnxviz.errors",
    "Projections": "onnxviz.reverse.project",
    "analyze": "onnxviz.analysis",
    "draw": "onnxviz.analysis",
    "load": "onnxviz.network",
    "merge": "onnxviz.analysis",
    "scan": "onnxviz.analysis",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: onnx and onnxruntime would slow down ``--help``."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxviz' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
