"""A scan of images that a test has made, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxviz.forward.part import Part, Scan
from onnxviz.forward.scan import Scanner, check_images, check_options
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
from onnxviz.model.layers import Layer
from onnxviz.network import Network

__all__ = ["scan"]

Progress = Callable[[int, int], None]


def scan(
    network: Network,
    source: Source,
    layers: Sequence[Layer],
    preprocess: Preprocess,
    *,
    top: int = 9,
    rank: str = "max",
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    skip: Callable[[str, str], None] | None = None,
) -> Scan:
    """Find each channel's top images.

    Args:
        top: how many to keep.
        rank: one of `RANKS`.
        limit: read only the first so many samples.
        batch_size: images a run; see `workload` for the default.
        progress: called with (images done, images in all).
        skip: called with (name, reason) of each image that could not be read.

    Raises:
        NoImagesError: not one image could be read.
        UsageError: a number out of range, an unknown ranking.
    """
    check_options(top=top, rank=rank, limit=limit, batch_size=batch_size)
    total = min(len(source.samples), limit or len(source.samples))
    scanner = Scanner(network, source, layers, preprocess, rank=rank, total=total, batch_size=batch_size)
    done = 0

    def advanced(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    part = scanner.scan(Part.empty(layers, top), [(0, total)], advanced, skip=skip)
    check_images(part, source)
    return part.scan(layers)
