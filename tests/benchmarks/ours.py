"""onnxviz's side: one network, its hits, its projections, its scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxviz.forward.scan import prepared
from onnxviz.images.source import Sample, Source, open_source
from onnxviz.reverse.methods import make_method
from onnxviz.reverse.project import Projections
from onnxviz.setup import open_network
from tests.scanned import scan

__all__ = ["Ours", "array_source", "decode_all"]

Array = NDArray[Any]


class Ours:
    """A network opened by onnxviz, with ImageNet's preprocessing."""

    def __init__(self, path: Path, provider: str = "cpu") -> None:
        self.path = path
        self.net, self.recipe = open_network(path, provider=provider, preprocess="imagenet")

    def source(self, folder: Path) -> Source:
        """The images of a folder, read as this network takes them."""
        return open_source(folder, None, self.recipe)

    def hits(self, x: Array, layer: str, channels: Sequence[int], top: int = 9) -> Array:
        """Rows (sample, channel, y, x): of each channel the strongest unit in each of its ``top`` images."""
        found = []
        for start in range(0, len(x), 8):
            maps = self.net.activations(x[start : start + 8], layer)[:, list(channels)]
            flat = maps.reshape(*maps.shape[:2], -1)
            found.append((flat.max(2), flat.argmax(2)))
        best, where = (np.concatenate(parts) for parts in zip(*found, strict=True))
        rows = []
        for place, channel in enumerate(channels):
            for sample in np.argsort(-best[:, place], kind="stable")[:top]:
                y, column = divmod(int(where[sample, place]), self.net.layer(layer).grid[1])
                rows.append((int(sample), channel, y, column))
        return np.array(rows)

    def project(self, x: Array, layer: str, units: Array) -> Projections:
        """Project units, the recording of the images included."""
        return self.net.project_units(x, layer, units)

    def multiply_adds(self, layer: str) -> int:
        """Of one projection: each convolution on the way, transposed, over the window that the unit sees."""
        plan = self.net.plan_units(self.net.layer(layer), make_method("deconvnet"))
        total = 0
        for move in plan.moves:
            if move.node.op == "Conv":
                positions = int(np.prod([span.size for span in move.pull.output[2:]]))
                total += positions * plan.constants[move.node.inputs[1]].size
        return total

    def forward_multiply_adds(self, layer: str) -> int:
        """Of one image, run forward as far as the layer: each convolution on the way."""
        target, shapes = self.net.layer(layer).tensor, self.net.shapes()
        above = self.net.graph.ancestors([target]) | {target}
        return sum(
            int(np.prod(shapes[node.output][2:])) * self.net.constants[node.inputs[1]].size
            for node in self.net.graph.nodes
            if node.op == "Conv" and node.output in above
        )

    def scan(self, source: Source, layers: Sequence[str] = ("all",), **options: Any) -> Any:
        """Scan a source for the top nine of every channel of the layers."""
        found = self.net.select(layers)
        return scan(self.net, source, found, self.recipe, **options)


def array_source(x: Array) -> Source:
    """A source of images that are decoded and preprocessed already."""

    def sample(index: int) -> Sample:
        return Sample(f"image {index}", None, lambda: x[index])

    return Source(f"{len(x)} arrays", [sample(i) for i in range(len(x))])


def decode_all(source: Source, recipe: Any, ahead: int = 64) -> None:
    """Decode and preprocess every image of a source, as a scan does it, on all cores."""
    for _ in prepared(source, recipe, range(len(source.samples)), ahead=ahead):
        pass
