"""What drawing needs of images, recorded while they are scanned: those of a small data set are run only once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.forward.part import ranking
from onnxviz.forward.probes import reduced
from onnxviz.forward.scan import workload
from onnxviz.images.preprocess import Preprocess
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.reverse.engine import pool_switches, single
from onnxviz.reverse.project import Projector, reads

__all__ = ["KEPT_SHARE", "Watched"]

Array: TypeAlias = NDArray[Any]

KEPT_SHARE, _RUNNING_SHARE = 0.3, 0.3
"""How much of the memory for projecting may be what is kept of images, and what runs give beside it."""

_PRODUCTS = frozenset(
    {"Attention", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "MatMulInteger", "QLinearMatMul", "RNN"}
)
"""Their last bits may change with the number of images that are run at once."""


class Watched:
    """Switches, recorded values and pictures of all images that are scanned, and the maps of the best of them.

    A `forward.scan.Watch`. It may be called by several threads. A map that is missing in the end, of images that an
    earlier run has scanned, is recorded afterwards.

    Args:
        projectors: of the layers, by all methods that will draw them.
        top: how many images each channel keeps; ``rank`` is the order, one of `forward.scan.RANKS`.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        layers: Sequence[Layer],
        projectors: Sequence[Projector],
        *,
        top: int,
        rank: str,
    ) -> None:
        self._preprocess, self._layers, self._rank = preprocess, layers, rank
        self._records, self._pools = reads(projectors)
        pooled = (name for node in self._pools.values() for name in (node.inputs[0], node.output))
        needed = (*self._records, *pooled, *(layer.tensor for layer in layers))
        self._input = projectors[0].image.name
        self.tensors = tuple(name for name in dict.fromkeys(needed) if name != self._input)
        self.values: dict[tuple[str, int], Array] = {}
        self.switches: dict[tuple[str, int], Array] = {}
        self.pictures: dict[int, NDArray[np.uint8]] = {}
        self._best = {layer.tensor: _Best(layer.channels, top) for layer in layers}
        self._overall = {layer.tensor: _Best(1, top) for layer in layers}
        self._lock = Lock()

    @classmethod
    def of(
        cls,
        network: Network,
        preprocess: Preprocess,
        layers: Sequence[Layer],
        projectors: Sequence[Projector],
        *,
        images: int,
        shown: int,
        top: int,
        rank: str,
        memory: float,
        batch: int | None = None,
    ) -> Watched | None:
        """To be asked before a scan: None where it is better to run the images of the hits again.

        Args:
            images: to be scanned.
            shown: how many channels will be drawn.
            memory: bytes for all that projecting takes.
            batch: images a run, if not by `workload`.
        """
        if images > shown * top or any(not p.plan.batched or p.asked == "graph" for p in projectors):
            return None
        above = network.graph.ancestors(layer.tensor for layer in layers)
        if any(node.op in _PRODUCTS and not above.isdisjoint(node.outputs) for node in network.graph.nodes):
            return None
        watched = cls(preprocess, layers, projectors, top=top, rank=rank)
        load = workload(network, layers, images)
        running = (batch or load.batch) * load.workers
        shapes = network.shapes()
        floats = {name: math.prod(shapes[name][1:]) for name in (*watched.tensors, watched._input)}
        each = 4 * sum(floats[name] for name in watched._records) + 3 * math.prod(network.size)
        each += sum(math.prod(shapes[name][1:]) for name in watched._pools)
        maps = sum(2 * 4 * top * floats[layer.tensor] for layer in layers)
        if (
            images * each + maps > memory * KEPT_SHARE
            or 4 * running * sum(floats.values()) > memory * _RUNNING_SHARE
        ):
            return None
        return watched

    def __call__(
        self, images: Sequence[int], arrays: Sequence[Array], x: Array, found: Mapping[str, Array]
    ) -> None:
        """Take what is needed of a run: of ``images``, read as ``arrays`` and fed as ``x``, what was ``found``."""
        values = {name: single(x if name == self._input else found[name]) for name in self._records}
        switches = {
            name: pool_switches(node, *(x if n == self._input else found[n] for n in (node.inputs[0], name)))
            for name, node in self._pools.items()
        }
        for row, image in enumerate(images):
            self.pictures[image] = self._preprocess.picture(arrays[row])
            self.values |= {(name, image): value[row].copy() for name, value in values.items()}
            self.switches |= {(name, image): value[row].copy() for name, value in switches.items()}
        for layer in self._layers:
            maps = np.transpose(single(found[layer.tensor]), layer.order)
            score = ranking(reduced(layer, found), self._rank)
            together = np.where(score > 0, score, 0).sum(axis=1, dtype=np.float64)
            with self._lock:
                for row, image in enumerate(images):
                    self._best[layer.tensor].offer(image, score[row], maps[row])
                    self._overall[layer.tensor].offer(image, together[row : row + 1], maps[row : row + 1])

    def maps(self) -> Iterator[tuple[tuple[str, int, int | None], Array]]:
        """All maps that are there, by tensor, image and channel; of all channels together for the channel None."""
        for layer in self._layers:
            for channel, image, found in self._best[layer.tensor].maps():
                yield (layer.tensor, image, channel), found
            for _, image, found in self._overall[layer.tensor].maps():
                yield (layer.tensor, image, None), found


class _Best:
    """The maps of the best images of each of some channels, until now; of equal ones those that come first, as in
    `forward.topk.TopK`, in whatever order they are offered.

    Where there is none, the score is −∞ and the image −1.
    """

    def __init__(self, channels: int, k: int) -> None:
        self._score, self._image = np.full((channels, k), -np.inf), np.full((channels, k), -1)
        # Of the worst of each channel: score, image, and which it is.
        self._least, self._last = np.full(channels, -np.inf), np.full(channels, -1)
        self._worst = np.zeros(channels, np.intp)
        self._kept: Array | None = None

    def offer(self, image: int, score: Array, maps: Array) -> None:
        """Take the maps (C, …) in whose channels an image's ``score`` (C,) is among the best; NaN never is."""
        (better,) = np.nonzero((score > self._least) | ((score == self._least) & (image < self._last)))
        if not len(better):
            return
        if self._kept is None:
            self._kept = np.zeros((*self._score.shape, *maps.shape[1:]), np.float32)
        place = self._worst[better]
        self._kept[better, place] = maps[better]
        self._score[better, place] = score[better]
        self._image[better, place] = image
        scores = self._score[better]
        least = scores.min(axis=1, keepdims=True)
        images = np.where(scores == least, self._image[better], -2)
        self._least[better], self._last[better] = least[:, 0], images.max(axis=1)
        self._worst[better] = images.argmax(axis=1)

    def maps(self) -> Iterator[tuple[int, int, Array]]:
        """Channel, image and map."""
        for channel, place in np.argwhere(self._image >= 0).tolist():
            assert self._kept is not None
            yield channel, int(self._image[channel, place]), self._kept[channel, place]
