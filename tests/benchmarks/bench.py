"""What all benchmarks share: how much to measure, a folder to work in, and the networks, opened on both sides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tests.benchmarks import networks, photos
from tests.benchmarks.networks import Net
from tests.benchmarks.ours import Ours

__all__ = ["ROOT", "Bench", "Pair"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pair:
    """A network on both sides. ``aliases`` are onnxviz's names of the measured layers."""

    net: Net
    ours: Ours
    aliases: Mapping[str, str]


@dataclass
class Bench:
    """How to measure.

    Args:
        folder: for models and pictures; what is there already is used.
        rounds: how often each side is measured, after once that does not count.
        quick: a fraction of the work: enough to see that it runs, not to be quoted.
        cut: give Captum each network only as far as the layer (`peers.Captum`).
        provider: ``cpu`` or ``cuda``, of both sides.
    """

    folder: Path
    rounds: int = 5
    quick: bool = False
    cut: bool = False
    provider: str = "cpu"
    _pair: tuple[str, Pair] | None = field(default=None, repr=False)

    def pair(self, name: str) -> Pair:
        """A network of `networks.NETWORKS`; one is kept."""
        if self._pair is None or self._pair[0] != name:
            self._pair = None
            net = networks.make(name)
            ours = Ours(self.model(name, net), self.provider)
            self._pair = name, Pair(net, ours, net.aliases())
        return self._pair[1]

    def model(self, name: str, net: Net | None = None) -> Path:
        """The ONNX file of a network."""
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            net = net or networks.make(name)
            networks.export(net.module, net.size, path)
        return path

    def inputs(self, count: int, size: int) -> NDArray[Any]:
        """Pictures as the networks take them."""
        return photos.inputs(count, size)

    def photos(self, count: int) -> Path:
        """A folder of so many JPEG files of 500×375."""
        return photos.photos(self.folder / f"photos-{count}", count)

    def run(self, *arguments: object) -> str:
        """What a Python process of its own prints: ``run("-m", "onnxviz", "--help")``."""
        paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
        return done.stdout
