"""A network opened from its file: layers, activations, projections."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ModelError, UnitError, UnsupportedOpError, UsageError
from onnxviz.forward.session import Runner, Session, choose_provider
from onnxviz.model import geometry
from onnxviz.model.graph import REAL_VALUES, Constants, Graph, ModelFile, Node, Probe, Shape
from onnxviz.model.inputs import image_input
from onnxviz.model.joining import write_model
from onnxviz.model.layers import PLUMBING, Layer, find_layer, find_layers, list_layers
from onnxviz.model.normalize import normalize
from onnxviz.model.patterns import recognise
from onnxviz.model.soundness import check_sizes
from onnxviz.model.spans import Span, Spans, whole
from onnxviz.reverse.engine import (
    Plan,
    Recording,
    Units,
    check_path,
    on_path,
    plan,
    pool_switches,
    run,
    single,
)
from onnxviz.reverse.methods import Method, make_method
from onnxviz.reverse.project import (
    DEFAULT_MEMORY,
    Position,
    Projections,
    Projector,
    check_engine,
    position_part,
    seed_maps,
)
from onnxviz.reverse.rules import STOPS
from onnxviz.reverse.whole import WholeGraph, whole_graph
from onnxviz.runtime import cores, open_session, release_memory

__all__ = ["Network", "load"]

Array: TypeAlias = NDArray[Any]

_DEFAULT_SIZE = 224
_MISJUDGED = frozenset({"Einsum", "STFT"})
"""Operators whose shapes onnx's inference gets wrong at times: Einsum's broadcasting, STFT's windows."""
_FEEDABLE = frozenset(
    {"bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"}
    | {"uint8", "uint16", "uint32", "uint64"}
)
_RUNNABLE_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


def load(
    model: str | Path,
    *,
    provider: str = "auto",
    size: tuple[int, int] | None = None,
    image: str | None = None,
    feeds: Mapping[str, Array] | None = None,
    engine: str = "auto",
    memory: int = DEFAULT_MEMORY,
) -> Network:
    """Open an ONNX model.

    Args:
        model: path of the file.
        provider: ``auto`` (CUDA where there is one), ``cuda`` or ``cpu``.
        size: (height, width) of the images, where the model leaves it open; 224×224 by default.
        image: name of the input that takes images, where there are several.
        feeds: values of other inputs, by name; they become constants.
        engine: what computes projections: ``stages`` or ``graph`` (the rules are compiled for onnxruntime), ``numpy``
            (the same rules in NumPy: slower, the reference), or ``auto``; see `reverse.project.ENGINES`.
        memory: about how many bytes projecting may take, weights not counted; batches are cut to fit.

    Raises:
        UsageError: no such file, an unknown provider, engine or input, or a size or value that the model does not take.
        ModelError: not a model, or none with an image input.
        ProviderError: CUDA was asked for and is not there.
    """
    return Network(
        ModelFile(model, feeds),
        provider=choose_provider(provider),
        size=size,
        image=image,
        engine=engine,
        memory=memory,
    )


@dataclass(frozen=True)
class _Settled:
    """A model for inputs of known shapes: what depends on these shapes alone is constant."""

    model: ModelFile
    graph: Graph
    constants: Constants
    shapes: Mapping[str, Shape]
    others: frozenset[str]

    @cached_property
    def value_sized(self) -> frozenset[str]:
        """Tensors whose shapes depend on the inputs' values."""
        # Inputs other than the image are asked for (`Network.check_layer`), and are constants once they are fed.
        return self.graph.value_sized({*self.constants, *self.others})

    def unsteady(self, node: Node) -> str | None:
        """Why a node has no shapes that a plan could count on, or None."""
        if self.value_sized.isdisjoint(node.outputs):
            return None
        return "its sizes depend on the images' values"

    def check_sizes(self, path: Iterable[Node]) -> None:
        """Make sure that shapes on a path are the same for all values of the inputs.

        Raises:
            UnsupportedOpError: naming the first node where they are not.
        """
        for node in path:
            if reason := self.unsteady(node):
                raise UnsupportedOpError(f"{node.op} {node.name!r}: {reason}. Choose an earlier layer.")


class Network:
    """A model, its layers, and what can be computed with them. Made by `load`."""

    def __init__(
        self,
        file: ModelFile,
        *,
        provider: str = "cpu",
        size: tuple[int, int] | None = None,
        image: str | None = None,
        engine: str = "auto",
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.file = file
        self.provider = provider
        self.engine = check_engine(engine)
        self.memory = memory
        self.image = image_input(file, image)
        self.size = self._resolve_size(size)
        self._settled: dict[tuple[tuple[str, Shape], ...], _Settled] = {}
        self._recorder: tuple[tuple[Any, ...], Runner] | None = None
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._projectors: dict[tuple[Any, ...], Projector] = {}
        self._other: Network | None = None

    def _resolve_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        stated = (self.image.height, self.image.width)
        if size is None:
            return stated[0] or _DEFAULT_SIZE, stated[1] or _DEFAULT_SIZE
        if any(fixed not in (None, asked) for fixed, asked in zip(stated, size, strict=True)):
            raise UsageError(
                f"{self.file.path} takes images of {stated[0] or 'any'}×{stated[1] or 'any'} only, "
                f"not {size[0]}×{size[1]}."
            )
        return size

    def resized(self, size: tuple[int, int]) -> Network:
        """The same network for images of another size."""
        if size == self.size:
            return self
        if self._other is None or self._other.size != size:
            self._other = Network(
                self.file,
                provider=self.provider,
                size=size,
                image=self.image.name,
                engine=self.engine,
                memory=self.memory,
            )
        return self._other

    # What the file says

    @cached_property
    def _here(self) -> _Settled:
        return self._settle({self.image.name: self.image.shape(self.image.batch or 1, self.size)})

    @property
    def model(self) -> ModelFile:
        """The file, for images of `size`: control flow that depends on sizes alone is inlined."""
        return self._here.model

    @property
    def graph(self) -> Graph:
        """The graph, levelled, for images of `size`."""
        return self._here.graph

    @property
    def constants(self) -> Constants:
        """Every tensor that does not depend on the inputs' values, for images of `size`."""
        return self._here.constants

    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every tensor for images of `size`, at the model's own batch or 1."""
        return self._here.shapes

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in topological order."""
        return tuple(layer for layer in self._all_layers if layer.tensor in self.live)

    @cached_property
    def _all_layers(self) -> tuple[Layer, ...]:
        """The layers, and the pieces that activations are written in, which only their own names find."""
        here, image = self._here, self.image
        seen = geometry.fields(here.graph, image.name, image.axes, here.shapes)
        return list_layers(
            here.graph, here.constants, image.name, self.size, image.order, here.shapes, seen, self.live
        )

    @cached_property
    def live(self) -> set[str]:
        """Tensors that something comes of."""
        live = self.graph.ancestors(self.graph.outputs)
        return live | {name + REAL_VALUES for name in live}

    def layer(self, name: str) -> Layer:
        """The layer that a layer's, node's or tensor's name, or an alias, names.

        Raises:
            LayerNotFoundError: none or several; the message lists the closest names.
        """
        return find_layer(self.layers, name, aside=self._aside)

    def select(self, names: Iterable[str]) -> tuple[Layer, ...]:
        """Layers by names, globs, ranges (``conv1..conv5``) and ``all``; see `layers.find_layers`."""
        return find_layers(self.layers, names, aside=self._aside)

    @cached_property
    def _aside(self) -> dict[str, Layer]:
        """Names of nodes and tensors that are not listed: what only carries a layer's values, and pieces."""
        carried = {layer.tensor.removesuffix(REAL_VALUES): layer for layer in self._all_layers}
        names = {n: x for x in self._all_layers if x.tensor not in self.live for n in (x.name, x.tensor)}
        names |= {tensor: layer for tensor, layer in carried.items() if tensor != layer.tensor}
        for node in self.graph.nodes:
            if node.op in PLUMBING and node.inputs and node.inputs[0] in carried:
                carried[node.output] = names[node.output] = names[node.name] = carried[node.inputs[0]]
        return names

    def _settle(self, fed: Mapping[str, Shape]) -> _Settled:
        """The model for inputs of the given shapes; others have their declared shapes, open sizes being 1."""
        key = tuple(fed.items())
        if key not in self._settled:
            check_sizes(self._all_inputs(fed), self.file.path, self._advice)
            model, constants = self._specialised(fed)
            inferred = model.shapes(self._all_inputs(fed))
            check_sizes(inferred, self.file.path, self._advice)
            graph = normalize(model.graph, constants, model.opset)
            graph, made = recognise(graph, constants, inferred)
            constants = constants.with_known(made)
            shapes = self._shapes_for(model, graph, constants, fed, _complete(inferred))
            check_sizes(shapes, self.file.path, self._advice)
            others = frozenset(info.name for info in graph.inputs if info.name not in fed)
            self._settled[key] = _Settled(model, graph, constants, shapes, others)
        return self._settled[key]

    @property
    def _advice(self) -> str:
        """What to do where images make the network's tensors too large."""
        if None in (self.image.height, self.image.width):
            return f"Images were {self.size[0]}×{self.size[1]}; give a smaller --size."
        return ""

    def _specialised(self, fed: Mapping[str, Shape]) -> tuple[ModelFile, Constants]:
        """The model with its size arithmetic worked out, and control flow inlined that depends on it alone."""
        model, known, inputs = self.file, dict[str, Array](), self._all_inputs(fed)
        while names := _size_arithmetic(model.graph, model.constants, inputs):
            check_sizes(model.shapes(inputs), self.file.path, self._advice)
            known.update(self._probe(model, names, fed))
            sure = known
            if model.graph.has_control_flow and self.image.batch is None:
                sure = self._whatever_the_batch(model, known, fed)
            settled = model.specialised(sure, self._lengths(model, fed))
            if settled is model:
                break
            model = settled
        return model, model.constants.with_known(known)

    def _whatever_the_batch(
        self, model: ModelFile, known: Mapping[str, Array], fed: Mapping[str, Shape]
    ) -> dict[str, Array]:
        """Those of ``known`` that are the same for one image more: only they decide about control flow."""
        more = {**fed, self.image.name: (fed[self.image.name][0] + 1, *fed[self.image.name][1:])}
        try:
            other = self._probe(model, list(known), more)
        except ModelError:
            return dict(known)  # images will go one by one
        return {name: value for name, value in known.items() if np.array_equal(value, other[name])}

    def _lengths(self, model: ModelFile, fed: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes that are known without a run, where a Scan may ask for them."""
        if not any(node.op == "Scan" for node in model.graph.nodes):
            return {}
        return _complete(model.shapes(self._all_inputs(fed)))

    def _all_inputs(self, fed: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes for all inputs: as given, else as declared, open sizes being 1."""
        declared = {
            info.name: tuple(d if isinstance(d, int) else 1 for d in info.shape)
            for info in self.file.graph.inputs
            if info.shape is not None
        }
        return {**declared, **fed}

    def _shapes_for(
        self,
        model: ModelFile,
        graph: Graph,
        constants: Constants,
        fed: Mapping[str, Shape],
        inferred: Mapping[str, Shape],
    ) -> dict[str, Shape]:
        """Shape inference answers; what it leaves open is read off a run."""
        inputs, known = self._all_inputs(fed), dict(inferred)
        reached = {name for source in inputs for name in graph.descendants(source)}
        if any(node.attrs.get("ceil_mode") or node.op in _MISJUDGED for node in graph.nodes):
            # With ceil_mode, inference counts a last window that lies in the padding; onnxruntime leaves it out.
            known = {name: shape for name, shape in known.items() if name not in reached or name in inputs}
        used = {name for node in graph.nodes for name in (*node.inputs, *node.outputs) if name}
        # What onnxruntime cannot run is no hindrance beside the path; a layer behind it has no shape, and is none.
        foreign = [node.output for node in graph.nodes if node.domain not in _RUNNABLE_DOMAINS]
        # Nor is an input of which nothing is known.
        foreign += [info.name for info in graph.inputs if info.name not in inputs]
        beyond = {name for output in foreign for name in graph.descendants(output)}
        unknown = [name for name in reached & used if name not in known and name not in beyond]
        if unknown:
            values = self._probe(model, unknown, fed)
            known.update({name: value.shape for name, value in values.items() if hasattr(value, "shape")})
        fixed = {n for node in graph.nodes for n in node.inputs if n in constants}
        # Those in between, too, before a run without a bound computes them on the way to what comes of them.
        fixed |= {n for n in constants if n not in inferred and n not in model.initializers}
        constants.fetch(fixed - known.keys())
        for name in fixed - known.keys():
            known[name] = constants[name].shape
        return known

    def _probe(self, model: ModelFile, tensors: Sequence[str], fed: Mapping[str, Shape]) -> dict[str, Array]:
        """Values of tensors for made-up inputs, to read sizes off."""
        dtypes = {info.name: info.dtype for info in model.graph.inputs}
        inputs = self._all_inputs(fed)
        feeds = {n: np.zeros(s, dtypes[n]) for n, s in inputs.items() if dtypes[n] in _FEEDABLE}
        session = Session(model, model.cut(tensors), optimise=False, trial=True)
        try:
            return session.run(feeds)
        except ModelError as error:
            if set(session.inputs) - feeds.keys():
                raise
            hints = []
            if None in (self.image.height, self.image.width):
                hints.append(f"Images were {self.size[0]}×{self.size[1]}; --size gives another size.")
            if made_up := [name for name in session.inputs if name != self.image.name]:
                hints.append(f"Zeros were given for {', '.join(made_up)}; --feed NAME=VALUE gives others.")
            if not hints:
                raise
            raise ModelError(" ".join([f"{str(error).rstrip('.')}.", *hints])) from error

    # Forward

    def feed(self, x: Array) -> Array:
        """``x`` as the image input wants it.

        Raises:
            UsageError: its shape does not fit; both shapes are given.
        """
        x, image = np.asarray(x), self.image
        found = image.to_nchw(x).shape if x.ndim == len(image.order) else ()
        stated = (None, image.channels, image.height, image.width)
        if not found or any(want not in (None, have) for want, have in zip(stated, found, strict=True)):
            raise UsageError(
                f"The network takes {image}; the array is {x.dtype} {'×'.join(map(str, x.shape))}."
            )
        if image.dtype == "uint8" and not np.array_equal(x, np.clip(np.rint(x), 0, 255)):
            raise UsageError(
                f"The network takes {image}: whole numbers from 0 to 255, and these are not. "
                "Preprocessing that scales or shifts values (--preprocess, --mean, --std) does not fit it."
            )
        return np.ascontiguousarray(x, dtype=image.dtype)

    def size_of(self, x: Array) -> tuple[int, int]:
        """(height, width) of the images in an input array."""
        height, width = self.image.to_nchw(x).shape[2:]
        return height, width

    def activations(self, x: Array, layer: str | Layer) -> Array:
        """Activations of a layer, (N, C, H, W) (or (N, C) for a vector), for the network's own input array ``x``."""
        x = self.feed(x)
        net = self.resized(self.size_of(x))
        found = net.layer(layer.tensor if isinstance(layer, Layer) else layer)
        return np.transpose(net.record(x, [found.tensor]).values[found.tensor], found.order)

    def runner(
        self,
        tensors: Sequence[str],
        *,
        probes: Sequence[Probe] = (),
        threads: int | None = None,
        filled: int | None = None,
    ) -> Runner:
        """A session for the named tensors and probes of tensors; ``threads`` and ``filled`` are as in `Runner`."""

        def cut(batch: str | None) -> bytes:
            return self.model.cut(
                tensors,
                probes=probes,
                batch=batch,
                image=self.image.name,
                provider=self.provider,
            )

        return Runner(
            self.model,
            self.image.name,
            cut,
            shape=self.image.shape(self.image.batch or 1, self.size),
            dtype=self.image.dtype,
            fixed=self.image.batch,
            provider=self.provider,
            threads=threads,
            filled=filled,
        )

    def record(self, x: Array, tensors: Sequence[str], pools: Sequence[Node] = ()) -> Recording:
        """Run images and keep the named tensors, and the switches of the given MaxPool nodes."""
        x = self.feed(x)
        wanted = tuple(dict.fromkeys(tensors))
        pooled = [name for node in pools for name in (node.inputs[0], node.output)]
        names = tuple(dict.fromkeys(n for n in (*wanted, *pooled) if n != self.image.name))
        found: dict[str, Array] = {self.image.name: x}
        if names:
            # One is kept: a layer's winners come in several batches, and a session holds all its weights.
            if self._recorder is None or self._recorder[0] != names:
                self._recorder = (names, self.runner(names))
            found |= self._recorder[1].run(x)
        values = {name: single(found[name]) for name in wanted}
        return Recording(values, _switches(pools, found))

    def forget(self) -> None:
        """Close the session that recorded, and give its memory back."""
        self._recorder = None
        release_memory()

    # Reverse

    def check(self, layers: Sequence[Layer], method: Method) -> None:
        """Make sure that every operator between the layers and the image has a rule.

        Raises:
            UnsupportedOpError: naming those that have none.
            ModelError: see `check_layer`.
        """
        for layer in layers:
            self.check_layer(layer)
            path = check_path(self.graph, self.constants, [self.image.name], [layer.tensor], method)
            if not path:
                raise UnsupportedOpError(self._no_way(layer, method))
            self._here.check_sizes(path)

    def unsteady(self, node: Node) -> str | None:
        """Why a node has no shapes that a plan could count on, or None."""
        return self._here.unsteady(node)

    def check_layer(self, layer: Layer) -> None:
        """Make sure that a layer depends on no input but the image, and has a row of its own for each image.

        Raises:
            ModelError: naming the inputs, or giving the number of rows.
        """
        others = [i for i in self.graph.inputs if i.name != self.image.name]
        needed = self.model.graph.ancestors([layer.tensor]) if others else ()
        if missing := [i for i in others if i.name in needed]:
            raise ModelError(
                f"{self.file.path}: {layer} needs besides the image {'; '.join(map(str, missing))}. "
                f"Give it a value: --feed {missing[0].name}=VALUE."
            )
        rows, images = self.shapes()[layer.tensor][layer.order[0]], self.image.batch or 1
        if rows != images:
            raise ModelError(
                f"{self.file.path}: {layer} has {rows} rows for {images} image(s), so that they cannot be told apart. "
                "Choose another layer."
            )

    def _no_way(self, layer: Layer, method: Method) -> str:
        """Why no cotangent gets from a layer to the image."""
        between = self.graph.ancestors([layer.tensor]) & self.graph.descendants(self.image.name)
        stops = [n for n in self.graph.nodes if n.output in between and method.stops(n)]
        reasons = ", ".join(f"{n.op} {n.name!r} {STOPS[n.op]}" for n in stops[:3])
        return (
            f"Layer {layer} cannot be traced back to {self.image.name}: no small change of the image changes it"
            f"{f' ({reasons})' if stops else ''}. Choose an earlier layer."
        )

    def projector(
        self, layer: Layer, method: Method, *, windows: bool = True, engine: str | None = None
    ) -> Projector:
        """What pulls a layer back: from one position for each unit, or from whole maps.

        Where the graph moves the batch axis, only whole maps will do, one image at a time.
        """
        engine, otherwise = engine or self.engine, None
        if engine == "auto":
            engine, otherwise = ("graph", "stages") if self.provider == "cuda" else ("stages", None)
        if engine == "graph" and not windows:
            engine = "stages"
        key = (layer.tensor, method, windows, engine)
        if key not in self._projectors:
            made = self.plan_units(layer, method, windows=windows)
            if not made.batched and engine == "graph":
                return self.projector(layer, method, windows=windows, engine="stages")
            # Those of one layer are kept: their graphs hold weights.
            self._projectors = {k: v for k, v in self._projectors.items() if k[0] == key[0]}

            def graph() -> WholeGraph:
                model, batch = self._whole_graph(made, layer, method, provider=self.provider)
                session = open_session(model, self.file.path, self.provider)
                steady = self.provider != "cpu"
                return WholeGraph(session, self.file.path, self.image.name, batch=batch, steady=steady)

            self._projectors[key] = Projector(
                made,
                layer,
                method,
                self.image,
                engine=engine,
                otherwise=otherwise,
                memory=self.memory,
                path=self.file.path,
                graph=graph,
            )
        return self._projectors[key]

    def export_deconv(self, layer: str | Layer, out: str | Path, method: str | Method = "deconvnet") -> Path:
        """Write a model that takes images and units of a layer, and gives these units' projections: `whole_graph`.

        Raises:
            LayerNotFoundError: no such layer.
            UnsupportedOpError: an operator on the way has no reverse rule, or none that can be written as ONNX.
            UsageError: ``out`` cannot be written.
        """
        method = make_method(method) if isinstance(method, str) else method
        found = layer if isinstance(layer, Layer) else self.layer(layer)
        self.check([found], method)
        return write_model(self._whole_graph(self.plan_units(found, method), found, method)[0], Path(out))

    def _whole_graph(
        self, plan: Plan, layer: Layer, method: Method, *, provider: str | None = None
    ) -> tuple[bytes, int | None]:
        """The graph, and how many images it takes; None if any number, even though the file says otherwise."""
        pooled = [name for node in plan.pools for name in (node.inputs[0], node.output)]
        names = list(dict.fromkeys((*plan.records, layer.tensor, *pooled)))
        x = np.zeros(self.image.shape(self.image.batch or 1, self.size), self.image.dtype)
        runner = self.runner([n for n in names if n != self.image.name])
        runner.decide()
        dtypes = {name: value.dtype for name, value in {**runner.run(x), self.image.name: x}.items()}
        opened = "N" if runner.fixed is None and self.image.batch is not None else None
        written = whole_graph(
            self.model, plan, layer, method, self.image, dtypes, batch=opened, provider=provider
        )
        return written, runner.fixed

    def plan_units(self, layer: Layer, method: Method, *, windows: bool = True) -> Plan:
        """The plan behind `projector`."""
        key = (layer.tensor, method, windows)
        if key not in self._plans:
            self._plans[key] = self._plan_units(layer, method, windows=windows)
        return self._plans[key]

    def _plan_units(self, layer: Layer, method: Method, *, windows: bool) -> Plan:
        shapes = self.shapes()
        full = whole(shapes[layer.tensor])
        spans = list(full)
        for coord, axis in enumerate(layer.order[2:]):
            spans[axis] = Span(1, 0, 1, coord)
        made = self._plan(layer, tuple(spans) if windows else full, method)
        if not made.batched and (self.image.batch or 1) > 1:
            raise ModelError(
                f"{self.file.path}: its batch is fixed at {self.image.batch} and its images are moved about, or "
                f"not treated alike, on the way to {layer}. Export it with a batch of 1, or an open one."
            )
        return made if made.batched or not windows else self._plan(layer, full, method)

    def _plan(self, layer: Layer, spans: Spans, method: Method) -> Plan:
        self._here.check_sizes(on_path(self.graph, [self.image.name], [layer.tensor], method))
        return plan(
            self.graph,
            self.constants,
            self.shapes(),
            [self.image.name],
            {layer.tensor: spans},
            method,
            batch=self.image.batch or 1,
        )

    def vjp(
        self,
        inputs: Mapping[str, Array],
        cotangents: Mapping[str, Array],
        *,
        method: str | Method = "gradient",
    ) -> dict[str, Array]:
        """Pull cotangents of any tensors back to every float graph input.

        Args:
            inputs: the network's input arrays, by name.
            cotangents: for names of layers, nodes or tensors, an array of the tensor's own shape.

        Raises:
            UsageError: an input is missing, or a cotangent's shape is not its tensor's.
            UnsupportedOpError: see `check`.
        """
        method = make_method(method) if isinstance(method, str) else method
        dtypes = {info.name: info.dtype for info in self.file.graph.inputs}
        if dtypes.keys() != inputs.keys():
            raise UsageError(
                f"The network's inputs are {', '.join(dtypes)}; given are {', '.join(inputs) or 'none'}."
            )
        feeds = {name: np.asarray(value, dtypes[name]) for name, value in inputs.items()}
        here = self._settle({name: value.shape for name, value in feeds.items()})
        sources = [i.name for i in self.file.graph.inputs if i.dtype.startswith("float")]
        targets: dict[str, Array] = {}
        for name, g in cotangents.items():
            tensor = self._tensor(here.graph, name)
            if tensor in targets:
                raise UsageError(f"{name!r} names the tensor {tensor!r}, which has a cotangent already.")
            targets[tensor] = np.asarray(g)
        shapes = self._true_shapes(here, feeds)
        for name, g in targets.items():
            if g.shape != shapes[name]:
                raise UsageError(f"The cotangent of {name!r} is {g.shape}; the tensor is {shapes[name]}.")
        spans = {name: whole(shapes[name]) for name in targets}
        made = plan(here.graph, here.constants, shapes, sources, spans, method, batch=None)
        pooled = [name for node in made.pools for name in (node.inputs[0], node.output)]
        names = list(dict.fromkeys(name for name in (*made.records, *pooled) if name not in feeds))
        found = {**feeds, **(Session(here.model, here.model.cut(names)).run(feeds) if names else {})}
        values = {name: single(found[name]) for name in made.records}
        recording = Recording(values, _switches(made.pools, found))
        return run(made, targets, recording, Units.all_of(1), sources)

    def _true_shapes(self, here: _Settled, feeds: Mapping[str, Array]) -> Mapping[str, Shape]:
        """Shapes for these very values of the inputs."""
        if not (open_ := [name for name in here.value_sized if name in here.shapes]):
            return here.shapes
        found = Session(here.model, here.model.cut(open_), optimise=False).run(feeds)
        return {**here.shapes, **{name: value.shape for name, value in found.items()}}

    def _tensor(self, graph: Graph, name: str) -> str:
        """The tensor of a layer's, node's or tensor's name."""
        if name in graph.producer or any(name == info.name for info in graph.inputs):
            return name
        for node in graph.nodes:
            if node.name == name:
                return node.output
        return self.layer(name).tensor

    def project(
        self,
        x: Array,
        layer: str | Layer,
        channel: int | None = None,
        position: Position = "max",
        method: str | Method = "deconvnet",
    ) -> Array:
        """Project a layer's activations of each image back to its pixels, over whole maps, in NumPy.

        It is the plain reference; `project_units` gives the same inside the units' windows, many times faster.

        Args:
            x: the network's own input array.
            channel: the channel, or None for all.
            position: ``"max"`` (where the channel is strongest, in each image), (y, x), one (y, x) an image, or
                None for the whole map, as it is: negative activations too.

        Returns:
            An array like ``x``, float32.

        Raises:
            LayerNotFoundError, UnitError: no such layer, channel or position.
        """
        method = make_method(method) if isinstance(method, str) else method
        x = self.feed(x)
        net = self.resized(self.size_of(x))
        found = net.layer(layer.tensor if isinstance(layer, Layer) else layer)
        if channel is not None and not 0 <= channel < found.channels:
            raise UnitError(
                f"Layer {found} has channels 0 to {found.channels - 1}; there is no channel {channel}."
            )
        projector = net.projector(found, method, windows=False, engine="numpy")
        step = projector.images_at_once
        results = [np.zeros((0, *x.shape[1:]), np.float32)]
        for start in range(0, len(x), step):
            recording = net.record(x[start : start + step], projector.records, projector.pools)
            maps = np.transpose(recording.values[found.tensor], found.order)
            part = position_part(position, len(x), start, step)
            seed = seed_maps(maps, found, channel, part, method)
            results.append(projector.maps(seed, recording))
        return np.ascontiguousarray(np.concatenate(results))

    def project_units(
        self, x: Array, layer: str | Layer, units: Array, method: str | Method = "deconvnet"
    ) -> Projections:
        """Project many units at once, each inside what it can see.

        Args:
            x: the network's own input array.
            units: (M, 4) integers: sample, channel, y, x. In a sequence y is 0, in a vector x too.

        Raises:
            LayerNotFoundError, UnitError: no such layer or unit.
        """
        method = make_method(method) if isinstance(method, str) else method
        x = self.feed(x)
        net = self.resized(self.size_of(x))
        found = net.layer(layer.tensor if isinstance(layer, Layer) else layer)
        table = np.asarray(units)
        if table.size and (table.ndim > 2 or table.shape[-1] != 4 or table.dtype.kind not in "iu"):
            given = f"{table.dtype} {table.shape}"
            raise UnitError(f"Units are rows of four whole numbers (sample, channel, y, x), not {given}.")
        units = table.astype(np.int64).reshape(-1, 4)
        limits = (len(x), found.channels, *found.grid)
        wrong = np.flatnonzero(((units < 0) | (units >= np.array(limits))).any(1))
        if len(wrong):
            raise UnitError(
                f"Unit {tuple(units[wrong[0]].tolist())} (sample, channel, y, x) is outside layer {found}, "
                f"whose limits are {limits}."
            )
        projector = net.projector(found, method)
        step = projector.images_at_once
        pixels = np.empty((len(units), self.image.channels, *found.receptive_field), np.float32)
        boxes = np.array([found.box(y, x) for _, _, y, x in units.tolist()], np.int64).reshape(-1, 4)
        samples = np.unique(units[:, 0])
        for start in range(0, len(samples), step):
            chunk = samples[start : start + step]
            recording = net.record(x[chunk], projector.records, projector.pools)
            rows = np.flatnonzero(np.isin(units[:, 0], chunk))
            rows = rows[np.argsort(units[rows, 0], kind="stable")]
            local = units[rows]
            local[:, 0] = np.searchsorted(chunk, local[:, 0])
            for part, (answer, _) in projector.units(recording, local):
                pixels[rows[part]] = answer
        return Projections(pixels, boxes)


def _switches(pools: Sequence[Node], values: Mapping[str, Array]) -> dict[str, Array]:
    """Switches of MaxPool nodes from their recorded inputs and outputs; images are shared out among threads."""
    if not pools:
        return {}
    with ThreadPoolExecutor(cores(), "onnxviz-switches") as threads:

        def of(node: Node) -> list[Future[Array]]:
            x, y = values[node.inputs[0]], values[node.output]
            return [threads.submit(pool_switches, node, x[n : n + 1], y[n : n + 1]) for n in range(len(x))]

        waiting = {node.output: of(node) for node in pools}
        return {name: np.concatenate([f.result() for f in rows]) for name, rows in waiting.items()}


def _complete(shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, Shape]:
    """The shapes of which every size is known."""
    return {n: tuple(d for d in s if d is not None) for n, s in shapes.items() if None not in s}


def _size_arithmetic(graph: Graph, constants: Constants, inputs: Container[str]) -> list[str]:
    """What is computed from the sizes of ``inputs`` alone and used in something that is not."""
    names = graph.shape_only(constants)
    for info in graph.inputs:
        if info.name not in inputs:
            names -= graph.descendants(info.name)
    users = (node for node in graph.nodes if any(name not in names for name in node.outputs if name))
    return list(dict.fromkeys(n for node in users for n in (*node.inputs, *node.captures) if n in names))
