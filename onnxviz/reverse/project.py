"""From units of a layer to pixels, on recorded images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxviz.errors import UnitError
from onnxviz.model.inputs import ImageInput
from onnxviz.model.layers import Layer
from onnxviz.model.spans import Span
from onnxviz.reverse.engine import Plan, Recording, Units, run
from onnxviz.reverse.kernels import Array, place_each
from onnxviz.reverse.methods import Method

__all__ = ["Position", "Projections", "position_part", "project_maps", "pull_units", "seed_maps"]

Position: TypeAlias = "str | tuple[int, int] | Sequence[tuple[int, int]] | None"

_RECORDING_BYTES = 192 << 20
"""About how much the recorded values of one batch of images may take."""

_WORKING_BYTES = 24 << 20
"""About how much the largest array of one batch of units may take: larger ones fault in fresh pages each time."""


@dataclass(frozen=True)
class Projections:
    """Units pulled back to the image.

    ``pixels``: (M, C, h, w) float32, as large as the layer's receptive field, zero outside the image.
    ``boxes``: (M, 4) where they lie: top, left, bottom, right in input pixels, not clipped.
    """

    pixels: Array
    boxes: Array


def images_at_once(plan: Plan, batch: int) -> int:
    """How many images to record at once; ``batch`` is the model's own, where a plan cannot be batched."""
    if not plan.batched:
        return batch
    size = sum(4 * math.prod(plan.shapes[name][1:]) for name in plan.records)
    size += sum(16 * math.prod(plan.shapes[node.output][1:]) for node in plan.pools)
    return max(1, min(32, _RECORDING_BYTES // max(size, 1)))


def units_at_once(plan: Plan) -> int:
    """How many units to pull back at once, so that the largest step stays within bounds."""
    if not plan.batched:
        return 1
    largest = 1
    for move in plan.moves:
        cells = max(math.prod(span.size for span in move.pull.inputs[i][1:]) for i in move.wanted)
        if move.node.op == "Conv":
            weight = plan.constants[move.node.inputs[1]]
            groups = move.node.attrs["group"]
            assert isinstance(groups, int)
            cells += groups * math.prod(weight.shape[1:]) * math.prod(s.size for s in move.pull.output[2:])
        largest = max(largest, cells)
    return max(1, min(256, _WORKING_BYTES // (4 * largest)))


def seed_maps(maps: Array, layer: Layer, channel: int | None, position: Position, method: Method) -> Array:
    """The cotangent that starts a projection: the activations asked for, all others zero (Zeiler & Fergus, 2.1).

    Args:
        maps: (N, C, …) activations of the layer.
        channel: the channel, or None for all.
        position: ``"max"``, (y, x), one (y, x) an image, or None for the whole map.

    Raises:
        UnitError: no such position.
    """
    channels = list(range(layer.channels)) if channel is None else [channel]
    source = np.ones(maps.shape, np.float32) if method.unit_seed else maps.astype(np.float32)
    seed = np.zeros(maps.shape, np.float32)
    if position is None:
        seed[:, channels] = source[:, channels]
        return seed
    spatial = maps.shape[2:]
    places = [] if isinstance(position, str) else _places(position, len(maps))
    for n in range(len(maps)):
        for c in channels:
            at: tuple[int, ...]
            if isinstance(position, str):
                if position != "max":
                    raise UnitError(f"Position {position!r}: give 'max', (y, x), or None for the whole map.")
                at = (
                    tuple(int(i) for i in np.unravel_index(int(maps[n, c].argmax()), spatial))
                    if spatial
                    else ()
                )
            else:
                at = _inside(layer, places[n], (1, 1, *spatial)[-2:])
            seed[(n, c, *at)] = source[(n, c, *at)]
    return seed


def _places(position: tuple[int, int] | Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """One (y, x) for each of ``count`` images."""
    table = np.asarray(position)
    if table.shape == (2,):
        table = np.broadcast_to(table, (count, 2))
    if table.shape != (count, 2) or table.dtype.kind not in "iu":
        raise UnitError(f"Give one position (y, x), or one for each of the {count} images, not {position}.")
    return [(int(y), int(x)) for y, x in table]


def position_part(position: Position, count: int, start: int, step: int) -> Position:
    """Of positions for ``count`` images, those of the images from ``start`` on, ``step`` of them."""
    if position is None or isinstance(position, str):
        return position
    return _places(position, count)[start : start + step]


def _inside(layer: Layer, at: tuple[int, int], size: tuple[int, int]) -> tuple[int, ...]:
    """``at`` as an index into a map of the layer; a vector has the one place (0, 0), a sequence one row."""
    if any(not 0 <= v < n for v, n in zip(at, size, strict=True)):
        what = f"is {size[0]}×{size[1]} units" if layer.size else "is a vector, with the one position (0, 0)"
        raise UnitError(f"Layer {layer} {what}; there is no unit {at}.")
    return layer.index(*at)


def project_maps(
    plan: Plan, layer: Layer, seeds: Array, recording: Recording, source: str, *, rows: Array | None = None
) -> Array:
    """Pull seeds (M, C, …) over whole maps back to the input, in its own layout.

    ``rows`` (M,) says which recorded image each seed is for; by default they go one to one.
    """
    rows = np.arange(len(seeds)) if rows is None else rows
    g = np.transpose(seeds, np.argsort(layer.order))
    step = units_at_once(plan)
    parts = []
    for start in range(0, len(seeds), step):
        piece = rows[start : start + step]
        if plan.batched:
            units, values = Units(piece, np.zeros((len(piece), 0), np.int64)), recording
        else:
            units, values = Units.all_of(1), recording
        parts.append(run(plan, {layer.tensor: g[start : start + step]}, values, units, [source])[source])
    return np.concatenate(parts)


def pull_units(
    plan: Plan,
    layer: Layer,
    recording: Recording,
    units: Array,
    method: Method,
    image: ImageInput,
) -> Projections:
    """Pull units of recorded images back, each inside its own window.

    Args:
        plan: from one position of the layer (`Network.plan_units`).
        recording: of the images that the units are in, with the layer's own tensor.
        units: (M, 4) integers: row of the recording, channel, y, x (`Layer`).
        image: the input to pull back to.
    """
    maps = np.transpose(recording.values[layer.tensor], layer.order)
    depth = len(layer.size)
    places = units[:, 4 - depth :]
    index = (units[:, 0], units[:, 1], *places.T)
    seeds = np.ones(len(units), np.float32) if method.unit_seed else maps[index].astype(np.float32)
    boxes = np.array([layer.box(y, x) for _, _, y, x in units.tolist()], np.int64).reshape(-1, 4)
    back = np.argsort(layer.order)
    frame = plan.frames[image.name]
    spans = [Span(1) if axis is None else frame[axis] for axis in image.axes]
    pixels = np.zeros((len(units), image.channels, *layer.receptive_field), np.float32)
    step = units_at_once(plan)
    for start in range(0, len(units), step):
        part = units[start : start + step]
        rows = np.arange(len(part))
        if plan.batched:
            single = (1,) * depth
            g = np.zeros((len(part), layer.channels, *single), np.float32)
            g[rows, part[:, 1]] = seeds[start : start + step].reshape(-1, *single)
            at = Units(part[:, 0], part[:, 4 - depth :])
            values = recording
        else:
            g = np.zeros((1, *maps.shape[1:]), np.float32)
            g[(0, part[0, 1], *part[0, 4 - depth :])] = seeds[start]
            at, values = Units.all_of(1), recording
        answer = run(plan, {layer.tensor: np.transpose(g, back)}, values, at, [image.name])[image.name]
        answer = image.to_nchw(answer)
        origin = np.stack([at.origins(span) for span in spans], axis=1)
        offsets = np.pad(origin - boxes[start : start + step, :2], ((0, 0), (1, 0)))
        pixels[start : start + step] = place_each(answer, offsets, (len(part), *pixels.shape[1:]))
    return Projections(pixels, boxes)
