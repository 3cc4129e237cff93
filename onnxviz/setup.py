"""What the user names, opened: the model, its layers, the images and how they are prepared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

from numpy.typing import NDArray

from onnxviz import facts
from onnxviz.errors import ModelError, UsageError
from onnxviz.forward.scan import Scanner, Watch, check_options
from onnxviz.forward.session import choose_provider
from onnxviz.images.preprocess import Preprocess, resolve_preprocess
from onnxviz.images.samples import builtin_source
from onnxviz.images.source import Source, index_labels, open_source, read_labels
from onnxviz.model.graph import ModelFile
from onnxviz.model.inputs import ImageInput, image_input
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.progress import OPENING, Progress
from onnxviz.reverse.project import DEFAULT_MEMORY
from onnxviz.scans.job import Job
from onnxviz.scans.saved import Origin, SavedScan

__all__ = ["Opening", "Setup", "open_network", "open_saved", "open_setup", "preprocess_for"]

METADATA_KEY = "onnxviz.preprocess"


@dataclass(frozen=True)
class Setup:
    """A model and images, opened for a scan.

    ``names`` are class names of output units; ``origin`` says where everything is, and is None where it could not be
    opened again: a source that a program made.
    """

    network: Network
    preprocess: Preprocess
    layers: tuple[Layer, ...]
    source: Source
    names: tuple[str, ...] | None
    origin: Origin | None
    top: int
    rank: str
    limit: int | None

    @property
    def total(self) -> int:
        """How many images are to be scanned."""
        return min(len(self.source.samples), self.limit or len(self.source.samples))

    def scanner(self, batch: int, share: int | None = None, watch: Watch | None = None) -> Scanner:
        """What scans the images, so many a run, with all cores or a share of them; ``watch`` sees every run."""
        return Scanner(
            self.network,
            self.source,
            self.layers,
            self.preprocess,
            rank=self.rank,
            total=self.total,
            batch_size=batch,
            share=share,
            watch=watch,
        )

    @cached_property
    def job(self) -> Job:
        """What the scan's result follows from; reads the model's file and asks for the files of all images."""
        return Job.of_scan(
            self.network,
            self.source,
            self.layers,
            self.preprocess,
            self.origin.feeds if self.origin else {},
            top=self.top,
            rank=self.rank,
            limit=self.limit,
        )


class Opening(TypedDict, total=False):
    """How a model is opened: what `open_network` takes beside the file."""

    provider: str
    engine: str
    memory: int
    preprocess: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    bgr: bool | None
    size: tuple[int, int] | None
    image: str | None
    feeds: Mapping[str, NDArray[Any]] | None


def open_setup(
    model: str | Path,
    *,
    layers: str | Sequence[str],
    images: str | Path | Source | None = None,
    top: int = 9,
    rank: str = "max",
    limit: int | None = None,
    labels: str | Path | Sequence[str] | None = None,
    progress: Progress,
    check: Callable[[Network, Sequence[Layer]], None] | None = None,
    **opening: Unpack[Opening],
) -> Setup:
    """Open a model and images; arguments as of `analysis.analyze`.

    Args:
        check: refuses layers that the rest of the job cannot do, before the images are looked at.
        opening: how the model is opened (`open_network`).
    """
    check_options(top=top, rank=rank, limit=limit)
    progress.start(OPENING, 0, "")
    network, recipe = open_network(model, **opening)
    progress.note(
        f"{network.image}; {recipe.describe()} ({recipe.origin}); runs on {network.provider.upper()}"
    )
    found = network.select([layers] if isinstance(layers, str) else layers)
    for layer in found:
        network.check_layer(layer)
    if check:
        check(network, found)
    if isinstance(labels, str | Path):
        labels = read_labels(Path(labels))
    names = facts.output_names(network.model, labels)
    source = _source(images, recipe, names, progress)
    progress.finish()
    origin = None
    if not isinstance(images, Source):
        origin = Origin(
            _absolute(model),
            None if images is None else _absolute(images),
            None if labels is None else tuple(labels),
            dict(opening.get("feeds") or {}),
        )
    return Setup(network, recipe, tuple(found), source, names, origin, top, rank, limit)


def open_saved(
    saved: SavedScan,
    *,
    model: str | Path | None = None,
    images: str | Path | None = None,
    provider: str | None = None,
    engine: str = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: Progress,
) -> Setup:
    """Open the model and the images of a saved scan once more.

    Args:
        model, images: where they are now; None for where they were.
        provider: where to run the network; None for where it ran.

    Raises:
        UsageError: they are not there, or not those that the scan was of; says in what they differ.
    """
    job, origin = saved.job, saved.origin
    with _moved("--model", model is None):
        file = ModelFile(model or origin.model, origin.feeds)
    if file.digest != job.digest:
        raise UsageError(f"{file.path} is not the model that was scanned ({job.model}); its content differs.")
    network = Network(
        file,
        provider=choose_provider(provider or job.provider),
        size=job.size,
        image=job.image,
        engine=engine,
        memory=memory,
    )
    if images is None and "***" in (origin.images or ""):
        raise UsageError(
            f"The images were at {origin.images}, whose secrets are not kept with a scan. Name the URL with --images."
        )
    there = {layer.tensor: layer for layer in network.layers}
    if lost := [layer for layer in job.layers if there.get(layer.tensor) != layer]:
        raise ModelError(f"{file.path}: {lost[0]} is no longer what the scan was of. Scan it again.")
    names = facts.output_names(network.model, origin.labels)
    progress.note(f"{network.image}; {job.preprocess.describe()}; runs on {network.provider.upper()}")
    with _moved("--images", images is None):
        source = _source(images or origin.images, job.preprocess, names, progress)
    setup = Setup(
        network,
        job.preprocess,
        job.layers,
        source,
        names,
        replace(origin, model=_absolute(file.path), images=_absolute(images) if images else origin.images),
        job.top,
        job.rank,
        job.images if job.images < job.of else None,
    )
    found = setup.job.data
    if found.content != job.data.content:
        raise UsageError(
            f"{images or origin.images} ({source.description}) are not the images that were scanned "
            f"({job.data_set}). Name the folder that holds them with --images."
        )
    if images is None and found.times != job.data.times:
        progress.note(
            f"{origin.images}: files were changed or copied since the scan. If images are others now, scan them again."
        )
    return setup


@contextmanager
def _moved(option: str, hint: bool) -> Iterator[None]:
    """Say with what is not there any more which option names where it is now."""
    try:
        yield
    except UsageError as error:
        if not hint:
            raise
        raise UsageError(f"{error} {option} says where it is now.") from error


def open_network(
    model: str | Path,
    *,
    provider: str = "auto",
    engine: str = "auto",
    memory: int = DEFAULT_MEMORY,
    preprocess: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    size: tuple[int, int] | None = None,
    image: str | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[Network, Preprocess]:
    """Open a model and find the preprocessing in force; the network takes images of its size."""
    file = ModelFile(model, feeds)
    taken = image_input(file, image)
    recipe = preprocess_for(file, taken, preset=preprocess, mean=mean, std=std, bgr=bgr, size=size)
    size = (recipe.height, recipe.width)
    network = Network(
        file, provider=choose_provider(provider), size=size, image=taken.name, engine=engine, memory=memory
    )
    return network, recipe


def preprocess_for(
    file: ModelFile,
    image: ImageInput,
    *,
    preset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    size: tuple[int, int] | None = None,
) -> Preprocess:
    """The preprocessing in force for an input of a model."""
    return resolve_preprocess(
        channels=image.channels,
        height=image.height,
        width=image.width,
        layout=image.layout,
        dtype=image.dtype,
        metadata=file.metadata.get(METADATA_KEY),
        sidecar=file.path.with_suffix(".onnxviz.json"),
        preset=preset,
        mean=mean,
        std=std,
        bgr=bgr,
        size=size,
    )


def _source(
    images: str | Path | Source | None, recipe: Preprocess, names: Sequence[str] | None, progress: Progress
) -> Source:
    if isinstance(images, Source):
        return images
    if images is not None:
        return open_source(images, index_labels(names) if names else None, recipe)
    source = builtin_source(recipe.channels, recipe.height, recipe.width)
    progress.note(f"No --images given: using {source.description}")
    return source


def _absolute(place: str | Path) -> str:
    """A path that holds in other folders, too; a URL as it is."""
    return str(place) if "://" in str(place) else os.path.abspath(place)  # noqa: PTH100 (links stay as they are)
