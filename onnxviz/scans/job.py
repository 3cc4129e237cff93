"""What a scan's result follows from, and how a saved one is told from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.forward.scan import MOST_HITS, RANKS
from onnxviz.images.fingerprint import Fingerprint
from onnxviz.images.preprocess import RESIZE, Preprocess
from onnxviz.images.source import Source
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.typed import typed

__all__ = ["Job", "fed"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Job:
    """All that a scan's result follows from, but for what rounds differently: versions and, at times, batches.

    ``digest`` is the model's (`ModelFile.digest`), ``feeds`` have those of the values of other inputs. ``images`` of
    the data set are scanned, and ``of`` are there. ``model`` and ``data_set`` are names for people.
    """

    model: str
    digest: str
    image: str
    size: tuple[int, int]
    feeds: tuple[tuple[str, str], ...]
    provider: str
    layers: tuple[Layer, ...]
    preprocess: Preprocess
    top: int
    rank: str
    images: int
    of: int
    data: Fingerprint
    data_set: str

    @classmethod
    def of_scan(
        cls,
        network: Network,
        source: Source,
        layers: Sequence[Layer],
        preprocess: Preprocess,
        feeds: Mapping[str, Array] | None,
        *,
        top: int,
        rank: str,
        limit: int | None,
    ) -> Job:
        """The job of scanning a source; reads the model's file and asks for the files of all images."""
        there = len(source.samples)
        return cls(
            model=network.file.path.name,
            digest=network.file.digest,
            image=network.image.name,
            size=network.size,
            feeds=fed(feeds or {}),
            provider=network.provider,
            layers=tuple(layers),
            preprocess=preprocess,
            top=top,
            rank=rank,
            images=min(there, limit or there),
            of=there,
            data=source.fingerprint(),
            data_set=source.description,
        )

    def differences(self, now: Job, *, in_place: bool) -> tuple[str, ...]:
        """In what another job, of ``now``, is not this one; none if its scan can go on from this one's.

        Args:
            in_place: the images lie where they lay, so that the times of their files count, too.
        """
        return tuple(self._differences(now, in_place))

    def _differences(self, now: Job, in_place: bool) -> Iterator[str]:
        if self.digest != now.digest:
            yield f"the model was another ({self.model}, SHA-256 {self.digest[:12]}…; now {now.digest[:12]}…)"
        if self.data.content != now.data.content:
            yield f"the images or their labels were others ({self.data_set}; now {now.data_set})"
        elif in_place and self.data.times != now.data.times:
            yield "image files have changed since"
        if self.images != now.images and self.of == now.of:
            yield f"{self.images:,} images were to be scanned (now {now.images:,})"
        if [x.tensor for x in self.layers] != [x.tensor for x in now.layers]:
            yield f"the layers were {_named(self.layers)} (now {_named(now.layers)})"
        elif self.layers != now.layers:
            yield "the layers' sizes were others"
        recipes = [replace(job.preprocess, origin="") for job in (self, now)]
        if recipes[0] != recipes[1]:
            texts = [recipe.describe() for recipe in recipes]
            yield f"the preprocessing was {texts[0]}" + (f" (now {texts[1]})" if texts[0] != texts[1] else "")
        for name, word in _PLAIN.items():
            before, value = getattr(self, name), getattr(now, name)
            if before != value:
                yield f"{word} was {_shown(before)} (now {_shown(value)})"
        if self.feeds != now.feeds:
            yield "values fed to other inputs were others"

    def facts(self) -> dict[str, Any]:
        """The job in terms of JSON."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Any) -> Job:
        """The job that `facts` describes.

        Raises:
            ValueError: something in it is missing, of another type, or beyond reason.
        """
        found: Job = typed(cls, facts, "job")
        if not found._possible():
            raise ValueError("no scan is of such a job")
        return found

    def _possible(self) -> bool:
        recipe = self.preprocess
        return (
            0 <= self.images <= self.of
            and 1 <= self.top <= MOST_HITS
            and self.rank in RANKS
            and all(1 <= side < 1 << 31 for side in (*self.size, recipe.height, recipe.width))
            and recipe.resize in RESIZE
            and 1 <= len(recipe.mean) == len(recipe.std) == recipe.channels
            and len(self.layers) > 0
            and all(1 <= number < 1 << 31 for x in self.layers for number in (x.channels, *x.size))
            and sum(x.channels for x in self.layers) < 1 << 31
        )


def fed(values: Mapping[str, Array]) -> tuple[tuple[str, str], ...]:
    """Names of inputs, and digests of the values that they are given."""
    return tuple((name, _digest(value)) for name, value in sorted(values.items()))


_PLAIN = {
    "image": "the image input",
    "size": "the size of images",
    "provider": "the provider",
    "top": "--top",
    "rank": "--rank",
}


def _named(layers: Sequence[Layer]) -> str:
    if len(layers) <= 4:
        return ", ".join(map(str, layers))
    return f"{len(layers)} layers from {layers[0]} to {layers[-1]}"


def _shown(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _digest(value: Array) -> str:
    value = np.asarray(value, order="C")
    return hashlib.sha256(f"{value.dtype.str}{value.shape}".encode() + value.tobytes()).hexdigest()
