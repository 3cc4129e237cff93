"""Timing of things side by side, and what a row of the table is."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

__all__ = ["Goal", "Row", "alternately", "cores", "machine", "matrix_products", "ms", "timed"]

_PACKAGES = ("onnxviz", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow", "torch", "captum", "matplotlib")
_SIDE = 2048


@dataclass(frozen=True)
class Goal:
    """What the measure should come to: ``at_least`` the bound, or at most."""

    bound: float
    unit: str = "×"
    at_least: bool = True

    def met(self, value: float) -> bool:
        """Whether it does."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}".strip()


@dataclass(frozen=True)
class Row:
    """One measure.

    Args:
        values: of each round, mostly the ratio of what was measured one after the other.
        goal: of their median; None where a row is only there to explain another.
    """

    what: str
    ours: str
    peer: str
    values: tuple[float, ...]
    goal: Goal | None = None

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)


def alternately(*sides: Callable[[], float], rounds: int) -> list[tuple[float, ...]]:
    """What each side gives, A B A B …, after one run of each that does not count."""
    for side in sides:
        side()
    found = []
    for _ in range(rounds):
        gc.collect()
        found.append(tuple(side() for side in sides))
    return found


def timed(work: Callable[[], object], items: float = 1) -> Callable[[], float]:
    """A side: seconds that the work takes, for each of so many items."""

    def side() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / items

    return side


def ms(seconds: float) -> str:
    """Seconds as text, in milliseconds, three figures."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"


def cores() -> int:
    """How many cores this process may use; both sides use them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def matrix_products(seed: int = 0) -> tuple[Callable[[], float], Callable[[], float]]:
    """Sides: seconds a multiply-add of a large float32 matrix product, in NumPy and in onnxruntime, on all cores."""
    a, b = np.random.default_rng(seed).standard_normal((2, _SIDE, _SIDE), np.float32)
    out = np.empty_like(a)
    shape = [_SIDE, _SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"a": a, "b": b}
    products = float(_SIDE) ** 3
    return timed(lambda: np.matmul(a, b, out=out), products), timed(
        lambda: session.run(None, feeds), products
    )


def machine() -> list[str]:
    """What the measures were taken on: processor, cores, system, versions, date."""
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except ImportError:
            continue
    return [
        f"{names[0] if names else platform.processor() or platform.machine()}, {cores()} cores, {platform.system()}",
        *_gpu(),
        f"Python {platform.python_version()}, {', '.join(found)}",
        date.today().isoformat(),
    ]


def _gpu() -> list[str]:
    """The first GPU, if there is one; only ``--provider cuda`` uses it."""
    if not torch.cuda.is_available():
        return []
    return [f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"]


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
