"""From what a scan found to an atlas with pictures, and to its report while it is drawn."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from onnxviz import facts
from onnxviz.atlas import Atlas, LayerAtlas, channel_ranges, channels_of
from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.filters import draw_filters, first_filters
from onnxviz.forward.part import Scan
from onnxviz.images.gallery import Gallery
from onnxviz.model.control import shuffled
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.pictures import SEEDS, Way, draw_layer, wanted_maps
from onnxviz.places import FILTERS, IMAGES, PICTURES, slugs
from onnxviz.progress import Progress
from onnxviz.publishing import Publisher
from onnxviz.recorder import Recorder
from onnxviz.reverse.methods import Method, make_method
from onnxviz.runtime import release_memory
from onnxviz.scans.saved import versions
from onnxviz.setup import Setup
from onnxviz.watched import Watched

__all__ = ["Drawing", "Style"]


@dataclass(frozen=True)
class Style:
    """How units are projected and shown: what does not matter to the scan.

    ``methods``: the first is shown, the others are for comparison; all of them on shuffled weights, too, with
    ``control``. ``seed`` is one of `pictures.SEEDS`. ``montage``: also one PNG of all cards of each layer.
    """

    methods: tuple[Method, ...]
    control: bool
    seed: str
    montage: bool

    @classmethod
    def of(
        cls,
        method: str | Sequence[str] = "deconvnet",
        *,
        overlap: str = "sum",
        lrn: str | None = None,
        activation: str | None = None,
        control: bool = False,
        seed: str = "unit",
        montage: bool = False,
    ) -> Style:
        """A style from names.

        Raises:
            UsageError: a name is not known, or there is no method.
        """
        if seed not in SEEDS:
            raise UsageError(f"Seed {seed!r} is not known. Choose one of {', '.join(SEEDS)}.")
        methods = tuple(
            make_method(name, overlap=overlap, lrn=lrn, activation=activation)
            for name in dict.fromkeys([method] if isinstance(method, str) else method)
        )
        if not methods:
            raise UsageError("No method is given. Name deconvnet, guided or gradient.")
        return cls(methods, control, seed, montage)

    def check(self, network: Network, layers: Sequence[Layer]) -> None:
        """Make sure that the layers can be projected by all methods (`Network.check`)."""
        for method in self.methods:
            network.check(layers, method)


@dataclass(frozen=True)
class Drawing:
    """All that is decided before a scan about what its pictures will show.

    ``pictured`` are the channels to show of each layer, ``named`` the class names of output layers, by tensor.
    ``networks``: the second is the control.
    """

    setup: Setup
    style: Style
    networks: tuple[Network, ...]
    pictured: tuple[tuple[int, ...], ...]
    named: Mapping[str, tuple[str, ...]]
    progress: Progress

    @classmethod
    def plan(
        cls,
        setup: Setup,
        style: Style,
        channels: str | Sequence[int] | None,
        progress: Progress,
        *,
        labelled: bool,
    ) -> Drawing:
        """What is to be drawn; ``labelled``: class names were given, so that it is said if they fit no layer.

        Raises:
            UnitError: a layer has none of the channels.
        """
        networks = [setup.network]
        if style.control:
            networks.append(_shuffled(setup.network, setup.layers))
        pictured = tuple(_pictured(layer, channels, progress) for layer in setup.layers)
        named = _named(setup.network, setup.layers, setup.names, progress, given=labelled)
        return cls(setup, style, tuple(networks), pictured, named, progress)

    def watched(self, batch: int | None = None) -> Watched | None:
        """Records during the scan what drawing needs, where that pays; ``batch`` are the images a run, if given."""
        setup = self.setup
        return Watched.of(
            setup.network,
            setup.preprocess,
            setup.layers,
            [
                setup.network.projector(layer, method, windows=self.style.seed == "unit")
                for layer in setup.layers
                for method in self.style.methods
            ],
            images=setup.total,
            shown=sum(map(len, self.pictured)),
            top=setup.top,
            rank=setup.rank,
            memory=setup.network.memory / len(self.networks),
            batch=batch,
        )

    def draw(
        self,
        scan: Scan,
        folder: Path | None,
        *,
        watched: Watched | None = None,
        published: bool,
        theme: str = "auto",
        command: str | None = None,
    ) -> Atlas:
        """Project and draw what a scan found, into a folder or a temporary one that lives as long as the atlas.

        Args:
            watched: what was recorded during the scan.
            published: the folder is that of a report, which is written while it is drawn, with the atlas itself; if the
                run is broken off it is left with what there is.
            theme: of the report, as of `Atlas.report`.
            command: how the job was called, for the report.
        """
        with ExitStack() as cleanup:
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="onnxviz-"))
                cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            source, recipe = self.setup.source, self.setup.preprocess
            known = watched.pictures if watched else None
            gallery = Gallery(source, recipe, folder / PICTURES / IMAGES, f"{PICTURES}/{IMAGES}", known)
            atlas = self._planned(scan, folder, gallery, command)
            ways = self._ways(atlas.layers, gallery, watched)
            publisher = Publisher(atlas, theme, self._digest()) if published else None
            try:
                ready = [self._layer(bare, ways, gallery, folder, publisher) for bare in atlas.layers]
                finished = publisher.finish() if publisher else atlas.with_layers(ready)
            except BaseException:
                if publisher:
                    _leave(publisher, folder, self.progress)
                raise
            # A temporary folder lives as long as the atlas; after an error it goes at once.
            weakref.finalize(finished, cleanup.pop_all().close)
        return finished

    def _planned(self, scan: Scan, folder: Path, gallery: Gallery, command: str | None) -> Atlas:
        """The atlas as it will be, with no layer drawn."""
        setup, style = self.setup, self.style
        layers = tuple(
            LayerAtlas(
                one.layer,
                slug,
                one.topk,
                one.overall,
                one.stats,
                one.responses,
                shown,
                self.named.get(one.layer.tensor),
                None,
            )
            for slug, one, shown in zip(slugs(setup.layers), scan.layers, self.pictured, strict=True)
        )
        first = first_filters(setup.network)
        return Atlas(
            model=facts.model_data(setup.network),
            provenance=facts.provenance(
                setup.network,
                setup.source,
                scan,
                setup.preprocess,
                style.methods,
                setup.layers,
                control=style.control,
                rank=setup.rank,
                seed=style.seed,
                limit=setup.limit,
                command=command,
            ),
            diagram=facts.diagram(setup.network, {one.layer.tensor: one.slug for one in layers}),
            filters=draw_filters(first, setup.preprocess, folder, f"{PICTURES}/{FILTERS}") if first else None,
            layers=layers,
            images=_images(gallery, layers),
            labels=tuple(setup.source.samples[n].label for n in scan.layers[0].responses.image.tolist()),
            folder=folder,
        )

    def _digest(self) -> str | None:
        """Of all that pictures follow from; None for images that a program made, which nobody knows again."""
        if self.setup.origin is None:
            return None
        style, network = self.style, self.setup.network
        facts = {
            "job": self.setup.job.facts(),
            "style": (
                [(m.name, m.policies) for m in style.methods],
                style.control,
                style.seed,
                style.montage,
            ),
            "channels": self.pictured,
            "engine": (network.provider, network.engine, network.memory),
            "versions": versions(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _layer(
        self,
        bare: LayerAtlas,
        ways: Sequence[Way],
        gallery: Gallery,
        folder: Path,
        publisher: Publisher | None,
    ) -> LayerAtlas:
        """A layer with all its pictures."""
        progress = self.progress
        progress.start(f"Projecting {bare.layer}", bare.hits_shown * len(ways), "projections")
        ready = draw_layer(
            bare,
            ways,
            gallery,
            self.setup.preprocess,
            folder,
            seed=self.style.seed,
            montage=self.style.montage,
            begin=publisher.begin if publisher else None,
            before=publisher.drawn_before if publisher else None,
            progress=progress.advance,
            resumed=progress.resumed,
        )
        if publisher:
            publisher.done(ready)
        progress.finish()
        release_memory()
        return ready

    def _ways(self, layers: Sequence[LayerAtlas], gallery: Gallery, watched: Watched | None) -> list[Way]:
        """Each method in each network; images are run forward once a network."""
        ways = []
        style, networks = self.style, self.networks
        for net in networks:
            seen = watched if net is networks[0] else None
            recorder = Recorder(net, gallery, 1 / len(networks), seen)
            projectors = [
                (net.projector(x.layer, method, windows=style.seed == "unit"), x)
                for x in layers
                for method in style.methods
            ]
            recorder.keep([(projector, wanted_maps(x)) for projector, x in projectors], self.progress)
            ways += [Way(net, recorder, method, control=net is not networks[0]) for method in style.methods]
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


def _images(gallery: Gallery, layers: Sequence[LayerAtlas]) -> dict[int, tuple[str, str | None, str]]:
    """Name, class and thumbnail of every image that the report shows."""
    shown = {hit.image for one in layers for hit in one.overall_hits}
    for one in layers:
        for channel in one.alive:
            shown.update(hit.image for hit in one.topk.hits(channel))
    return {index: (*gallery.name(index), gallery.thumbnail_path(index)) for index in sorted(shown)}
