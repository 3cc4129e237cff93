"""A process of its own whose peak of memory is of interest: ``python -m tests.benchmarks.child scan …``.

It imports onnxviz and no framework, and prints JSON: ``peak`` and, where there is one, ``before``, in bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import onnxviz

__all__ = ["project", "scan"]


def scan(model: str, folder: str, count: str) -> dict[str, int]:
    """Scan the first images of a folder for all convolutions."""
    from tests.benchmarks.ours import Ours

    ours = Ours(Path(model))
    ours.scan(ours.source(Path(folder)), limit=int(count))
    return {"peak": _memory("VmHWM")}


def project(model: str, layer: str, images: str, units: str) -> dict[str, int]:
    """Project random units of a layer, of random images; ``before``: the model open and the images there."""
    net = onnxviz.load(model, provider="cpu")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((int(images), 3, *net.size), np.float32)
    found = net.layer(layer)
    limits = (len(x), found.channels, *found.grid)
    chosen = rng.integers(0, limits, (int(units), 4))
    before = _memory("VmRSS")
    net.project_units(x, found, chosen)
    return {"before": before, "peak": _memory("VmHWM")}


def _memory(name: str) -> int:
    """A figure of this process, in bytes, as Linux gives it.

    It is not ``ru_maxrss``, which counts what the parent had before the child began.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    work = {"scan": scan, "project": project}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
