"""The way to a layer and back as one graph: from images and units to projections.

It is what runs on CUDA, where recorded values so never leave the device, and what `onnxviz export-deconv` writes for
any other runtime. The rules are the ones that NumPy runs, traced (`onnxviz.reverse.traced`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ModelError, UnsupportedOpError
from onnxviz.model.graph import ModelFile, Shape
from onnxviz.model.inputs import ImageInput
from onnxviz.model.joining import OLDEST, joined
from onnxviz.model.layers import Layer
from onnxviz.model.spans import Span
from onnxviz.model.writer import GraphWriter
from onnxviz.reverse.engine import Plan, pool_switches
from onnxviz.reverse.methods import Method
from onnxviz.reverse.program import IMAGES, UNITS, TracedWalk, coordinate_limits
from onnxviz.reverse.traced import OpenSize, Traced, Tracer, Untraceable
from onnxviz.runtime import filled_up, out_of_memory, run_session

__all__ = ["OUTPUTS", "UNITS_INPUT", "WholeGraph", "whole_graph"]

Array: TypeAlias = NDArray[Any]

UNITS_INPUT = "units"
_SIZES = 8
"""Into how many sizes runs that are filled up fall by their units."""

OUTPUTS = ("pixels", "boxes", "activations", "maps")
"""Of the graph: projections (M, C, h, w), where they lie (M, 4), the units' activations (M,), and the maps that the
units are in (M, …)."""


def whole_graph(
    model: ModelFile,
    plan: Plan,
    layer: Layer,
    method: Method,
    image: ImageInput,
    dtypes: Mapping[str, np.dtype[Any]],
    *,
    batch: str | None = None,
    provider: str | None = None,
) -> bytes:
    """Write it as a model, serialised.

    Its inputs are the network's images and ``units`` (M, 4) int64: sample, channel, y, x; its outputs `OUTPUTS`.

    Args:
        plan: from one position of the layer.
        dtypes: of the tensors that the plan records, the layer, and the pools' inputs and outputs.
        batch, provider: of the way to the layer (`ModelFile.cut`).

    Raises:
        UnsupportedOpError: a move has no ONNX form, or the graph moves the batch axis.
    """
    if not plan.batched:
        raise UnsupportedOpError(
            f"Layer {layer}: on its way images are moved off the first axis, so that they cannot go back together in "
            "one graph. Choose an earlier layer."
        )
    writer = GraphWriter(max(model.opset, OLDEST), prefix="onnxviz/")
    tracer = Tracer(writer)
    xp = tracer.namespace
    recorded: dict[tuple[str, str], Traced] = {}

    def tensor(name: str) -> Traced:
        if ("value", name) not in recorded:
            shape: Any = (IMAGES, *plan.shapes[name][1:])
            value = tracer.input(name, shape, dtypes[name])
            if dtypes[name] == np.float16:
                value = tracer.lift(value, np.dtype(np.float32))
            recorded["value", name] = value
        return recorded["value", name]

    pools = {node.output: node for node in plan.pools}

    def read(kind: str, name: str) -> Traced:
        if kind == "value":
            return tensor(name)
        if (kind, name) not in recorded:
            node, y = pools[name], tensor(name)
            if node.attrs.get("ceil_mode"):
                # Shape inference counts a last window that lies in the padding, which runtimes leave out.
                y = y[:, :, *(slice(0, int(n)) for n in y.shape[2:])]
            recorded[kind, name] = pool_switches(node, tensor(node.inputs[0]), y)  # type: ignore[arg-type, assignment]
        return recorded[kind, name]

    units = tracer.input(UNITS_INPUT, (UNITS, 4), np.dtype(np.int64))
    depth = len(layer.size)
    maps = xp.permute_dims(tensor(layer.tensor), layer.order)
    columns = [units[:, c : c + 1] for c in (0, 1, *range(4 - depth, 4))]
    flat: Shape = tuple(int(n) for n in maps.shape[1:])
    activation = tracer.node("GatherND", (UNITS,), maps.dtype, maps, xp.concat(columns, axis=1))
    activation = tracer.lift(activation, np.dtype(np.float32))
    found_maps = tracer.node("GatherND", (UNITS, *flat[1:]), maps.dtype, maps, xp.concat(columns[:2], axis=1))
    one_hot = xp.astype(units[:, 1:2] == np.arange(layer.channels)[None], np.float32)
    seeds = one_hot if method.unit_seed else one_hot * xp.reshape(activation, (UNITS, 1))
    seeds = xp.reshape(seeds, (UNITS, layer.channels, *[1] * depth))
    seeds = xp.permute_dims(seeds, tuple(int(a) for a in np.argsort(layer.order)))
    walk = TracedWalk(
        plan,
        tracer,
        coordinate_limits(plan, [layer.tensor]),
        units[:, 4 - depth :] if depth else None,
        rows=units[:, 0],
        recorded=read,
    )
    cotangents: dict[str, Any] = {layer.tensor: seeds}
    for move in plan.moves:
        try:
            walk.pull(move, cotangents, {image.name})
        except (Untraceable, TypeError) as error:
            raise UnsupportedOpError(
                f"The reverse of {move.node.op} {move.node.name!r} ({move.rule.name}) cannot be written as ONNX "
                f"({error}). Choose an earlier layer."
            ) from error
    answer = cotangents[image.name] if image.name in cotangents else walk.zeros(image.name)
    pixels = _in_boxes(walk, answer, layer, image)
    outputs = {
        "pixels": pixels,
        "boxes": _boxes(tracer, units, layer),
        "activations": activation,
        "maps": tracer.lift(found_maps, np.dtype(np.float32)),
    }
    names = [
        writer.named(x.name, name, x.dtype, [d.name if isinstance(d, OpenSize) else d for d in x.shape])
        for name, x in outputs.items()
    ]
    read_from_file = [name for kind, name in recorded if kind == "value"]
    return joined(model, writer, read_from_file, names, image=image.name, batch=batch, provider=provider)


class WholeGraph:
    """A session of `whole_graph`, whose runs are all of one size where that matters.

    A file that fixes its batch is given as many images. On CUDA a convolution that meets a new size looks for kernels
    anew, which takes longer than the run.

    Args:
        path: of the model, for messages.
        batch: images that the model takes; None for any number.
        steady: fill up runs, so that their sizes seldom change.
    """

    def __init__(
        self, session: Any, path: Path, image: str, *, batch: int | None = None, steady: bool = False
    ) -> None:
        self._session, self._path, self._image = session, path, image
        self.batch, self._steady = batch, steady

    def run(self, x: Array, units: Array, *, images_at_once: int, units_at_once: int) -> tuple[Array, Array]:
        """Projections (M, C, h, w), and the maps (M, …) that the units are in.

        Args:
            x: images as the network takes them.
            units: (M, 4): row of ``x``, channel, y, x.
            images_at_once, units_at_once: that any run takes at most.

        Raises:
            ModelError: onnxruntime failed.
        """
        count, images = len(units), self.batch or (images_at_once if self._steady else len(x))
        if self._steady:
            step = max(1, units_at_once // _SIZES)
            units = filled_up(units, min(-(-count // step) * step, units_at_once))
        feeds = {self._image: filled_up(x, images), UNITS_INPUT: units}
        try:
            pixels, maps = run_session(self._session, ("pixels", "maps"), feeds, self._path)
        except ModelError as error:
            if out_of_memory(error):
                raise ModelError(f"{error} Give projecting less --memory.") from error
            raise
        return pixels[:count], maps[:count]


def _in_boxes(walk: TracedWalk, answer: Any, layer: Layer, image: ImageInput) -> Any:
    """The image's cotangent (N, C, H, W) over the units' receptive fields."""
    xp = walk.xp
    frame = walk.plan.frames[image.name]
    found = xp.expand_dims(xp.permute_dims(answer, image.order), image.missing)
    here = [Span(1) if axis is None else frame[axis] for axis in image.axes]
    depth = len(layer.size)
    there = []
    for k in (0, 1):
        size, stride = layer.receptive_field[k], (layer.stride or (0, 0))[k]
        coord = k + depth - 2  # of a sequence, whose units are at (0, x), the one coordinate is x
        moves = stride != 0 and coord >= 0
        there.append(Span(size, layer.offset[k], stride if moves else 0, coord if moves else None))
    lead = (Span(1), Span(image.channels))
    return walk.moved(found, (*lead, *here), (*lead, *there))


def _boxes(tracer: Tracer, units: Traced, layer: Layer) -> Any:
    """(M, 4) as `Layer.box`."""
    stride = np.array(layer.stride or (0, 0), np.int64)
    first = units[:, 2:4] * stride[None] + np.array(layer.offset, np.int64)[None]
    last = first + np.array(layer.receptive_field, np.int64)[None]
    return tracer.namespace.concat([first, last], axis=1)
