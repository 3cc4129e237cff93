"""The whole job in a straight line: open, check, scan, draw."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxviz import facts
from onnxviz.atlas import Atlas, LayerAtlas, channel_ranges, channels_of
from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.filters import draw_filters, first_filters
from onnxviz.forward.scan import scan
from onnxviz.forward.session import choose_provider
from onnxviz.images.gallery import Gallery
from onnxviz.images.preprocess import Preprocess, resolve_preprocess
from onnxviz.images.samples import builtin_source
from onnxviz.images.source import Source, index_labels, open_source, read_labels
from onnxviz.model.control import shuffled
from onnxviz.model.graph import ModelFile
from onnxviz.model.inputs import ImageInput, image_input
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.output import writing
from onnxviz.pictures import SEEDS, Way, draw_layer, wanted_maps
from onnxviz.places import FILTERS, IMAGES, PICTURES, slugs
from onnxviz.progress import Progress
from onnxviz.publishing import Publisher
from onnxviz.recorder import Recorder
from onnxviz.report.folder import check_folder
from onnxviz.report.render import check_theme
from onnxviz.reverse.methods import Method, make_method
from onnxviz.reverse.project import DEFAULT_MEMORY
from onnxviz.runtime import release_memory

__all__ = ["analyze", "open_network", "preprocess_for"]

METADATA_KEY = "onnxviz.preprocess"


@writing("the report")
def analyze(
    model: str | Path,
    *,
    layers: str | Sequence[str],
    images: str | Path | Source | None = None,
    top: int = 9,
    channels: str | Sequence[int] | None = None,
    method: str | Sequence[str] = "deconvnet",
    control: bool = False,
    rank: str = "max",
    seed: str = "unit",
    overlap: str = "sum",
    lrn: str | None = None,
    activation: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
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
    labels: str | Path | Sequence[str] | None = None,
    montage: bool = False,
    folder: str | Path | None = None,
    report: str | Path | None = None,
    theme: str = "auto",
    progress: Progress | None = None,
    command: str | None = None,
) -> Atlas:
    """Find what every channel of the given layers responds to.

    Args:
        model: path of the ONNX file.
        layers: names, aliases, globs, ranges or ``all``.
        images: a folder, image, archive or array file; None takes the built-in samples.
        top: images to keep for each channel.
        channels: which to show, as ``"0-15,40"`` or numbers; None is all.
        method: ``deconvnet``, ``guided`` or ``gradient``; of several, the first is shown and the others are for
            comparison. ``overlap``, ``lrn`` and ``activation`` are their policies (`reverse.methods.make_method`).
        control: also project the same units in the same network with shuffled weights, by each method.
        rank: ``max``, ``sum`` or ``first`` (`forward.scan.RANKS`).
        seed: ``unit`` or ``map`` (`pictures.SEEDS`).
        engine: what computes projections (`reverse.project.ENGINES`).
        memory: about how many bytes projecting may take, weights not counted.
        preprocess, mean, std, bgr, size: see `images.preprocess.resolve_preprocess`.
        image, feeds: the input that takes images, and values of others (`network.load`).
        labels: class names of the output units, or a file of them.
        montage: also make one PNG of all cards of each layer.
        folder: where pictures are written; by default a temporary folder that lives as long as the atlas.
        report: instead, the folder of a report, which is written while it is drawn, with the atlas itself; it opens
            at any time, and if the run is broken off it is left with what there is. ``theme`` as of `Atlas.report`.
        command: how the job was called, for the report.

    Raises:
        OnnxvizError: see `onnxviz.errors`; all that can be known beforehand is checked before an image is read.
    """
    progress = progress or Progress()
    if seed not in SEEDS:
        raise UsageError(f"Seed {seed!r} is not known. Choose one of {', '.join(SEEDS)}.")
    if report is not None and folder is not None:
        raise UsageError("Give a folder for the pictures or one for the report, not both.")
    check_theme(theme)
    folder = folder if report is None else report
    if folder is not None:
        check_folder(Path(folder))
    methods = [
        make_method(name, overlap=overlap, lrn=lrn, activation=activation)
        for name in dict.fromkeys([method] if isinstance(method, str) else method)
    ]
    if not methods:
        raise UsageError("No method is given. Name deconvnet, guided or gradient.")
    network, recipe = open_network(
        model,
        provider=provider,
        engine=engine,
        memory=memory,
        preprocess=preprocess,
        mean=mean,
        std=std,
        bgr=bgr,
        size=size,
        image=image,
        feeds=feeds,
    )
    progress.note(
        f"{network.image}; {recipe.describe()} ({recipe.origin}); runs on {network.provider.upper()}"
    )
    found = network.select([layers] if isinstance(layers, str) else layers)
    for one in methods:
        network.check(found, one)
    networks = [network]
    if control:
        networks.append(_shuffled(network, found))
    pictured = [_pictured(layer, channels, progress) for layer in found]
    if isinstance(labels, str | Path):
        labels = read_labels(Path(labels))
    names = facts.output_names(network.model, labels)
    named = _named(network, found, names, progress, given=labels is not None)
    source = _source(images, recipe, names, progress)

    progress.start("Scanning", min(len(source.samples), limit or len(source.samples)), "images")
    done = 0

    def scanned(count: int, total: int) -> None:
        nonlocal done
        progress.advance(count - done)
        done = count

    result = scan(
        network,
        source,
        found,
        recipe,
        top=top,
        rank=rank,
        limit=limit,
        batch_size=batch_size,
        progress=scanned,
    )
    progress.finish()
    release_memory()

    with ExitStack() as cleanup:
        if folder is None:
            folder = tempfile.mkdtemp(prefix="onnxviz-")
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        folder = Path(folder)
        gallery = Gallery(source, recipe, folder / PICTURES / IMAGES, f"{PICTURES}/{IMAGES}")
        bare_layers = [
            LayerAtlas(
                one.layer,
                slug,
                one.topk,
                one.overall,
                one.stats,
                one.responses,
                shown,
                named.get(one.layer.tensor),
                None,
            )
            for slug, one, shown in zip(slugs(found), result.layers, pictured, strict=True)
        ]
        ways = _ways(networks, methods, bare_layers, gallery, seed, progress)
        first = first_filters(network)
        atlas = Atlas(
            model=facts.model_data(network),
            provenance=facts.provenance(
                network,
                source,
                result,
                recipe,
                methods,
                found,
                control=control,
                rank=rank,
                seed=seed,
                limit=limit,
                command=command,
            ),
            diagram=facts.diagram(network, {one.layer.tensor: one.slug for one in bare_layers}),
            filters=draw_filters(first, recipe, folder, f"{PICTURES}/{FILTERS}") if first else None,
            layers=tuple(bare_layers),
            images=_images(gallery, bare_layers),
            labels=tuple(source.samples[index].label for index in result.layers[0].responses.image.tolist()),
            folder=folder,
        )
        publisher = Publisher(atlas, theme) if report is not None else None

        def drawn(bare: LayerAtlas) -> LayerAtlas:
            progress.start(f"Projecting {bare.layer}", bare.hits_shown * len(ways), "projections")
            begin = publisher.begin if publisher else None
            ready = draw_layer(
                bare,
                ways,
                gallery,
                recipe,
                atlas.folder,
                seed=seed,
                montage=montage,
                begin=begin,
                progress=progress.advance,
            )
            if publisher:
                publisher.done(ready)
            progress.finish()
            release_memory()
            return ready

        try:
            ready_layers = [drawn(bare) for bare in bare_layers]
            finished = publisher.finish() if publisher else atlas.with_layers(ready_layers)
        except BaseException:
            if publisher:
                _leave(publisher, folder, progress)
            raise
        # A temporary folder lives as long as the atlas; after an error it goes at once.
        weakref.finalize(finished, cleanup.pop_all().close)
    return finished


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


def _ways(
    networks: Sequence[Network],
    methods: Sequence[Method],
    layers: Sequence[LayerAtlas],
    gallery: Gallery,
    seed: str,
    progress: Progress,
) -> list[Way]:
    """Each method in each network, the second being the control; images are run forward once a network."""
    ways = []
    for net in networks:
        recorder = Recorder(net, gallery, share=1 / len(networks))
        projectors = [
            (net.projector(x.layer, method, windows=seed == "unit"), x) for x in layers for method in methods
        ]
        recorder.keep([(projector, wanted_maps(x)) for projector, x in projectors], progress)
        ways += [Way(net, recorder, method, control=net is not networks[0]) for method in methods]
    return ways


def _leave(publisher: Publisher, folder: Path, progress: Progress) -> None:
    """Make a report of what there is when a run is broken off; the reason for that matters more than a failure here."""
    progress.finish()
    with suppress(OnnxvizError, OSError):
        if publisher.stop() is not None:
            progress.note(f"The report shows what was drawn until now: {folder / 'index.html'}")


def _shuffled(network: Network, layers: Sequence[Layer]) -> Network:
    """The same network with shuffled weights."""
    return Network(
        shuffled(network.file, [layer.tensor for layer in layers]),
        provider=network.provider,
        size=network.size,
        image=network.image.name,
        engine=network.engine,
        memory=network.memory,
    )


def _pictured(layer: Layer, channels: str | Sequence[int] | None, progress: Progress) -> tuple[int, ...]:
    """The channels of a layer to show: those asked for, as far as it has them."""
    if channels is None:
        return tuple(range(layer.channels))
    asked = channel_ranges(channels)
    there = channels_of(layer, asked)
    limits = f"Layer {layer} has channels 0 to {layer.channels - 1}"
    if any(numbers.stop > layer.channels for numbers in asked):
        progress.note(f"{limits}; the higher ones asked for are left out.")
    return there


def _named(
    network: Network, layers: Sequence[Layer], names: Sequence[str] | None, progress: Progress, *, given: bool
) -> dict[str, tuple[str, ...]]:
    """Class names by tensor, for output layers: those that no layer with weights follows."""
    weighted = {layer.tensor for layer in network.layers if re.match(r"(conv|deconv|fc)\d", layer.alias)}
    outputs = [x for x in layers if not (network.graph.descendants(x.tensor) & weighted) - {x.tensor}]
    found = {x.tensor: tuple(names) for x in outputs if names and len(names) == x.channels}
    if names and given and outputs and not found:
        counts = ", ".join(f"{x} {x.channels}" for x in outputs)
        progress.note(f"The labels are {len(names)}, so they name no output unit ({counts} channels).")
    return found


def _source(
    images: str | Path | Source | None, recipe: Preprocess, names: Sequence[str] | None, progress: Progress
) -> Source:
    if isinstance(images, Source):
        return images
    if images is not None:
        return open_source(Path(images), index_labels(names) if names else None, recipe)
    source = builtin_source(recipe.channels, recipe.height, recipe.width)
    progress.note(f"No --images given: using {source.description}")
    return source


def _images(gallery: Gallery, layers: Sequence[LayerAtlas]) -> dict[int, tuple[str, str | None, str]]:
    """Name, class and thumbnail of every image that the report shows."""
    shown = {hit.image for one in layers for hit in one.overall_hits}
    for one in layers:
        for channel in one.alive:
            shown.update(hit.image for hit in one.topk.hits(channel))
    return {index: (*gallery.name(index), gallery.thumbnail_path(index)) for index in sorted(shown)}
