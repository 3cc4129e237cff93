"""Saved scans of a network that is not there: what its layers found are numbers of the test's choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxviz.forward.part import BatchResult, Part, Skip, Tally
from onnxviz.images.fingerprint import Fingerprint
from onnxviz.images.preprocess import Preprocess
from onnxviz.model.layers import Layer
from onnxviz.scans.job import Job
from onnxviz.scans.saved import Origin, SavedScan

Array = NDArray[Any]

RECIPE = Preprocess(12, 12, 3, "NCHW", "rgb", (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), "--preprocess raw")
ORIGIN = Origin("/models/net.onnx", "/data/photos")


def layer(name: str, channels: int, size: tuple[int, ...] = ()) -> Layer:
    order = tuple(range(2 + len(size)))
    return Layer(name, "Conv", f"{name}:0", name, (name,), channels, size, order, (3, 3), (1, 1), (0, 0))


MAPS, VECTOR = layer("conv1", 2, (3, 4)), layer("fc1", 3)
LAYERS = (MAPS, VECTOR)


def job(images: int, layers: Sequence[Layer] = LAYERS, **changes: Any) -> Job:
    content = Fingerprint("c" * 64, "t" * 64)
    return replace(
        Job(
            model="net.onnx",
            digest="d" * 64,
            image="x",
            size=(12, 12),
            feeds=(),
            provider="cpu",
            layers=tuple(layers),
            preprocess=RECIPE,
            top=4,
            rank="max",
            images=images,
            of=images,
            data=content,
            data_set=f"photos ({images} images)",
        ),
        **changes,
    )


def activations(rng: np.random.Generator, images: int) -> Array:
    """(N, 14): two maps of 12 units. Few values, so that many are equal."""
    return rng.integers(-4, 12, (images, 27)).astype(np.float32)


def counted(
    of: Job, values: Array, start: int, stop: int, *, batch: int = 8, broken: Sequence[int] = ()
) -> Part:
    """What a scan knows of images start to stop, whose units (N, 27) are those of the `LAYERS`, one after the other."""
    tally = Tally(of.layers, of.rank, Part.empty(of.layers, of.top))
    for first in range(start, stop, batch):
        last = min(first + batch, stop)
        images = np.array([index for index in range(first, last) if index not in broken], np.int64)
        skipped: list[Skip] = [
            (index, f"{index}.png", "cut short") for index in range(first, last) if index in broken
        ]
        rows = values[images]
        maps = rows[:, :24].reshape(len(rows), 2, 12)
        outputs = {
            "conv1:0:max": maps.max(2),
            "conv1:0:argmax": maps.argmax(2),
            "conv1:0:sum": maps.sum(2),
            "fc1:0:vector": rows[:, 24:],
        }
        tally.add(BatchResult((first, last), outputs if len(rows) else None, images, tuple(skipped)))
    return tally.part()


def saved(
    of: Job,
    values: Array,
    start: int = 0,
    stop: int | None = None,
    *,
    range_: tuple[int, int] | None = None,
    shard: tuple[int, int] | None = None,
    origin: Origin = ORIGIN,
    broken: Sequence[int] = (),
    versions: tuple[str, ...] = ("onnxviz 0, numpy 0",),
) -> SavedScan:
    """A scan whose images from start to stop are done; by default they are those that it is for."""
    stop = of.images if stop is None else stop
    part = counted(of, values, start, stop, broken=broken)
    return SavedScan(of, origin, range_ or (start, stop), part, versions, shard)
