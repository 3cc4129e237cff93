"""What projecting needs of the images that hits are in: each is run forward once for all layers, if memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.images.gallery import Gallery
from onnxviz.interrupts import held_interrupts
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.progress import Progress
from onnxviz.reverse.engine import Recording
from onnxviz.reverse.project import Projector, reads
from onnxviz.watched import KEPT_SHARE, Watched

__all__ = ["Recorder", "Wanted"]

Array: TypeAlias = NDArray[Any]

_AT_ONCE = 64 << 20
"""So many bytes of kept recordings are stacked for a batch of images."""

_MOST_IMAGES = 512


@dataclass(frozen=True)
class Wanted:
    """One map of a layer that will be drawn: of ``channel`` of an image, or of all channels (None)."""

    image: int
    channel: int | None


class Recorder:
    """Recordings and maps of images by number.

    `keep` runs all images for all layers at once and keeps switches and the maps of the hits. Where that would be too
    much, images are run when they are asked for, layer by layer.

    Args:
        share: of the network's memory, where several recorders live side by side.
        watched: what was recorded while the images were scanned.
    """

    def __init__(
        self, network: Network, gallery: Gallery, share: float = 1.0, watched: Watched | None = None
    ) -> None:
        self._network, self._watched = network, watched
        self._memory = network.memory * share
        self._gallery = gallery
        self._values: dict[tuple[str, int], Array] = {}
        self._switches: dict[tuple[str, int], Array] = {}
        self._maps: dict[tuple[str, int, int | None], Array] = {}
        self._kept: set[str] = set()

    def keep(self, layers: Sequence[tuple[Projector, Sequence[Wanted]]], progress: Progress) -> None:
        """Run the images of several layers forward, those that were not watched, if what is to be kept of them fits."""
        watched, self._watched = self._watched, None
        shared = [(p, w) for p, w in layers if p.plan.batched and p.asked != "graph" and w]
        images = sorted({one.image for _, wanted in shared for one in wanted})
        if not shared or self._bytes(shared, len(images)) > self._memory * KEPT_SHARE:
            return
        by_image: dict[int, dict[tuple[str, Wanted], Layer]] = {}
        for projector, wanted in shared:
            for one in wanted:
                by_image.setdefault(one.image, {})[projector.layer.tensor, one] = projector.layer
        missing = self._take(watched, by_image) if watched else images
        if missing:
            self._record(missing, [projector for projector, _ in shared], by_image, progress)
        self._kept = {p.layer.tensor for p, _ in shared}

    def _record(
        self,
        images: Sequence[int],
        projectors: Sequence[Projector],
        by_image: Mapping[int, Mapping[tuple[str, Wanted], Layer]],
        progress: Progress,
    ) -> None:
        """Run images forward, and keep what projectors read of them and the maps that are wanted."""
        records, pools = reads(projectors)
        tensors = dict.fromkeys((*records, *(p.layer.tensor for p in projectors)))
        step = min(p.images_at_once for p in projectors)
        step = max(1, step // len(projectors)) if records else step
        progress.start("Recording", len(images), "images")
        with held_interrupts() as check:
            for first in range(0, len(images), step):
                chunk = images[first : first + step]
                recording = self._network.record(
                    self._gallery.batch(chunk), tuple(tensors), tuple(pools.values())
                )
                for row, image in enumerate(chunk):
                    self._gallery.picture(image)
                    for name in records:
                        self._values[name, image] = recording.values[name][row].copy()
                    for name in pools:
                        self._switches[name, image] = recording.switches[name][row].copy()
                    for (_, one), layer in by_image[image].items():
                        maps = np.transpose(recording.values[layer.tensor], layer.order)[row]
                        own = maps if one.channel is None else maps[one.channel]
                        self._maps[layer.tensor, image, one.channel] = own.astype(np.float32)
                progress.advance(len(chunk))
                check()
        progress.finish()
        self._network.forget()

    def _take(
        self, watched: Watched, by_image: Mapping[int, Mapping[tuple[str, Wanted], Layer]]
    ) -> list[int]:
        """Keep what was recorded of images while they were scanned, and name those of which something is missing."""
        self._values = {key: value for key, value in watched.values.items() if key[1] in by_image}
        self._switches = {key: value for key, value in watched.switches.items() if key[1] in by_image}
        wanted = {(tensor, one.image, one.channel) for ones in by_image.values() for tensor, one in ones}
        self._maps = {key: found for key, found in watched.maps() if key in wanted}
        missing = {image for _, image, _ in wanted - self._maps.keys()}
        return sorted(missing | (by_image.keys() - watched.pictures.keys()))

    def _bytes(self, shared: Sequence[tuple[Projector, Sequence[Wanted]]], images: int) -> int:
        """What would be kept."""
        shapes = self._network.shapes()
        records, pools = reads(projector for projector, _ in shared)
        total = images * sum(4 * math.prod(shapes[name][1:]) for name in records)
        total += images * sum(math.prod(shapes[name][1:]) for name in pools)
        maps = {(p.layer.tensor, one): p.layer for p, wanted in shared for one in wanted}
        return total + sum(
            4 * math.prod(layer.size) * (layer.channels if one.channel is None else 1)
            for (_, one), layer in maps.items()
        )

    def images_at_once(self, projector: Projector) -> int:
        """For how many images to ask at once."""
        if projector.layer.tensor not in self._kept:
            return projector.images_at_once
        image = next(image for tensor, image, _ in self._maps if tensor == projector.layer.tensor)
        size = sum(self._values[name, image].nbytes for name in projector.plan.records)
        size += sum(self._switches[pool.output, image].nbytes for pool in projector.pools)
        return max(1, min(_MOST_IMAGES, _AT_ONCE // max(size, 1)))

    def recording(self, projector: Projector, images: Sequence[int]) -> Recording:
        """What a projector reads of images, and, unless that is kept apart, the layer's tensor."""
        if projector.layer.tensor not in self._kept:
            return self._network.record(self._gallery.batch(list(images)), projector.records, projector.pools)
        return Recording(
            {n: np.stack([self._values[n, i] for i in images]) for n in projector.plan.records},
            {p.output: np.stack([self._switches[p.output, i] for i in images]) for p in projector.pools},
        )

    def maps(
        self, projector: Projector, recording: Recording, images: Sequence[int], wanted: Iterable[Wanted]
    ) -> Array | None:
        """Maps of hits, (M, …) or, of all channels, (M, C, …) float32; None where the projector's graph makes them.

        Args:
            recording: of ``images`` (`recording`).
        """
        layer = projector.layer
        if layer.tensor in self._kept:
            return np.stack([self._maps[layer.tensor, one.image, one.channel] for one in wanted])
        if layer.tensor not in recording.values:
            return None
        maps = np.transpose(recording.values[layer.tensor], layer.order)
        row = {image: number for number, image in enumerate(images)}
        found = [maps[row[w.image]] if w.channel is None else maps[row[w.image], w.channel] for w in wanted]
        return np.stack(found).astype(np.float32)
