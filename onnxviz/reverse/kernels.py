"""The few array operations that rules need beyond the array API, in NumPy.

Other kinds of arrays bring theirs along (`onnxviz.reverse.traced_kernels`): the kind of the first argument decides.

Arrays are (N, C, spatial…). Kernels work through the rows in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Taps",
    "add_at",
    "conv",
    "conv_transpose",
    "conv_weight",
    "cubic",
    "dilate",
    "einsum",
    "place",
    "place_each",
    "put",
    "reflect",
    "scatter",
    "spread",
    "switches",
    "take",
    "taps",
    "unfold",
    "unpool",
]

Array: TypeAlias = NDArray[Any]

_BLOCK_BYTES = 2 << 20
_SWITCHED = 1 << 16
"""Positions that `switches` compares at once."""

_SMALL_MAP = 48
"""Maps of fewer positions are multiplied for a whole block of rows at once."""


def _extent(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    return [
        (n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]


def _cells(
    kernel: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[Any, ...]]:
    """For each kernel cell, row by row, the index of the positions it meets as the kernel steps along."""
    return [
        (
            ...,
            *(
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, n, s, d in zip(offset, sizes, strides, dilations, strict=True)
            ),
        )
        for offset in np.ndindex(*kernel)
    ]


def _blocks(rows: int, cells_a_row: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (4 * max(cells_a_row, 1)))
    return (slice(start, start + step) for start in range(0, rows, step))


@singledispatch
def conv_transpose(
    g: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int
) -> Array:
    """Full transposed convolution: every input position that any output position in ``g`` has seen.

    Args:
        g: (N, Cout, h…) cotangent of a Conv's output.
        weight: (Cout, Cin/groups, k…) as in ONNX Conv.

    Returns:
        (N, Cin, (h−1)·stride + (k−1)·dilation + 1, …), starting ``pads`` before the first input position.
    """
    n, cout, *sizes = g.shape
    cin, kernel = weight.shape[1], weight.shape[2:]
    positions = math.prod(sizes)
    columns = g.reshape(n, groups, cout // groups, positions)
    matrix = np.ascontiguousarray(weight.reshape(groups, cout // groups, -1).swapaxes(1, 2))
    if math.prod(kernel) == 1 and all(stride == 1 for stride in strides):
        return _products(matrix, columns).reshape(n, groups * cin, *sizes)
    full = np.zeros((n, groups, cin, *_extent(sizes, kernel, strides, dilations)), np.result_type(g, weight))
    cells = _cells(kernel, sizes, strides, dilations)
    for rows in _blocks(n, groups * matrix.shape[1] * positions):
        product = _products(matrix, columns[rows]).reshape(-1, groups, cin, len(cells), *sizes)
        part = full[rows]
        for number, cell in enumerate(cells):
            part[cell] += product[:, :, :, number]
    return full.reshape(n, groups * cin, *full.shape[3:])


@singledispatch
def unfold(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """The windows that a kernel sees as it steps over ``x``: (N, C, cells, h…), a view where it can be one."""
    n, c = x.shape[:2]
    spatial = tuple(range(2, x.ndim))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = sliding_window_view(x, reach, axis=spatial)
    windows = windows[
        :, :, *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations)
    ]
    depth = len(spatial)
    cells_first = np.moveaxis(windows, range(2 + depth, 2 + 2 * depth), range(2, 2 + depth))
    return cells_first.reshape(n, c, math.prod(kernel), *cells_first.shape[2 + depth :])


def _columns(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], groups: int
) -> Iterator[tuple[slice, Array]]:
    """Blocks of rows, and their windows as (rows, groups, C/groups · cells, positions)."""
    n, c, *sizes = x.shape
    counts = [
        (m - (k - 1) * d - 1) // s + 1 for m, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    for rows in _blocks(n, c * math.prod(kernel) * math.prod(counts)):
        seen = unfold(x[rows], kernel, strides, dilations)
        yield rows, seen.reshape(len(seen), groups, c // groups * math.prod(kernel), -1)


@singledispatch
def conv(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Array:
    """Convolution without padding, as in ONNX Conv.

    Args:
        x: (N, Cin, h…).
        weight: (Cout, Cin/groups, k…).

    Returns:
        (N, Cout, (h − (k−1)·dilation − 1) // stride + 1, …).
    """
    kernel = weight.shape[2:]
    matrix = np.ascontiguousarray(weight.reshape(groups, len(weight) // groups, -1))
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    parts = [
        _products(matrix, columns).reshape(len(columns), len(weight), *sizes)
        for _, columns in _columns(x, kernel, strides, dilations, groups)
    ]
    return np.concatenate(parts)


@singledispatch
def conv_weight(
    x: Array,
    g: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Array:
    """Cotangent of the weights of `conv`: for each cell, the sum of ``g`` times what the cell met.

    Args:
        x: (N, Cin, h…) what was convolved.
        g: (N, Cout, …) cotangent of the result.

    Returns:
        (Cout, Cin/groups, k…).
    """
    n, cout = g.shape[:2]
    grouped = g.reshape(n, groups, cout // groups, -1)
    total = np.zeros((groups, cout // groups, x.shape[1] // groups * math.prod(kernel)), g.dtype)
    for rows, columns in _columns(x, kernel, strides, dilations, groups):
        total += np.matmul(grouped[rows], columns.swapaxes(-1, -2)).sum(0)
    return total.reshape(cout, -1, *kernel)


@dataclass(frozen=True)
class Taps:
    """Where each of P points between the positions of a map is read, and with what weights.

    ``index`` (N, P, K) into the flattened map, ``weight`` alike, and for each spatial axis in ``slopes`` the
    derivative of the weights by the points' coordinate on it. N is 1 where all rows have the same points.
    """

    index: Array
    weight: Array
    slopes: tuple[Array, ...]

    def row(self, n: int) -> Taps:
        """Those of one row: (P, K)."""
        n = n if len(self.index) > 1 else 0
        return Taps(self.index[n], self.weight[n], tuple(slope[n] for slope in self.slopes))


def taps(
    at: Sequence[Array],
    sizes: Sequence[int],
    mode: str,
    padding: str,
    bounds: Sequence[tuple[float, float]] = (),
) -> Taps:
    """What points of a map are interpolated from.

    Args:
        at: for each axis, (N, P) coordinates in positions of the map.
        sizes: of the map.
        mode: ``nearest`` (coordinates are whole already), ``linear`` or ``cubic`` (a = −0.75).
        padding: outside the map, ``zeros``, ``border`` (the nearest position) or ``reflection`` at ``bounds``.
    """
    index: Array = np.zeros((*at[0].shape, 1), np.intp)
    weight: Array = np.ones((*at[0].shape, 1), at[0].dtype)
    slopes: list[Array] = []
    first, last = {"nearest": (0, 0), "linear": (0, 1), "cubic": (-1, 2)}[mode]
    for axis, (x, size) in enumerate(zip(at, sizes, strict=True)):
        cell = np.floor(x)[..., None] + np.arange(first, last + 1, dtype=x.dtype)
        away = cell - x[..., None]
        if mode == "nearest":
            share, slope = np.ones_like(away), np.zeros_like(away)
        elif mode == "linear":
            share, slope = 1 - np.abs(away), np.where(away > 0, 1, -1).astype(x.dtype)
        else:
            share, slope = cubic(away, -0.75), -cubic_slope(away, -0.75)
        if padding == "zeros":
            inside = (cell >= 0) & (cell < size)
            share, slope = share * inside, slope * inside
        elif padding == "reflection":
            cell = reflect(cell, *bounds[axis])[0]
        place = np.clip(cell, 0, size - 1).astype(np.intp)
        index = (index[..., :, None] * size + place[..., None, :]).reshape(*x.shape, -1)
        slopes = [(s[..., :, None] * share[..., None, :]).reshape(*x.shape, -1) for s in slopes]
        slopes.append((weight[..., :, None] * slope[..., None, :]).reshape(*x.shape, -1))
        weight = (weight[..., :, None] * share[..., None, :]).reshape(*x.shape, -1)
    return Taps(index, weight, tuple(slopes))


@singledispatch
def cubic(x: Array, a: float) -> Array:
    """Keys's cubic convolution kernel at the distances ``x``."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0)).astype(x.dtype)


def cubic_slope(x: Array, a: float) -> Array:
    """The derivative of `cubic`."""
    y = np.abs(x)
    near = (3 * (a + 2) * y - 2 * (a + 3)) * y
    far = (3 * a * y - 10 * a) * y + 8 * a
    return (np.sign(x) * np.where(y <= 1, near, np.where(y < 2, far, 0))).astype(x.dtype)


def reflect(x: Array, low: float, high: float) -> tuple[Array, Array]:
    """Coordinates, reflected at two bounds until they lie between, and their derivative: 1 or −1."""
    if high <= low:
        return np.full_like(x, low), np.zeros_like(x)
    turn = (x - low) % (2 * (high - low))
    back = turn > high - low
    found = np.where(back, 2 * (high - low) - turn, turn) + low
    return found.astype(x.dtype), np.where(back, -1, 1).astype(x.dtype)


@singledispatch
def add_at(values: Array, index: Array, size: int) -> Array:
    """Add up ``values`` (P, C), or (P, K, C), where ``index`` (P,), or (P, K), says: (C, size)."""
    full = np.zeros((size, values.shape[-1]), values.dtype)
    np.add.at(full, index.ravel(), values.reshape(-1, values.shape[-1]))
    return full.T


def _products(matrix: Array, columns: Array) -> Array:
    """(G, K, C) times (N, G, C, P): (N, G, K, P). Small maps are joined, so that one product serves them all."""
    n, groups, depth, positions = columns.shape
    if positions >= _SMALL_MAP or n == 1:
        wide: Array = np.matmul(matrix, columns)
        return wide
    joined = np.ascontiguousarray(columns.transpose(1, 2, 0, 3)).reshape(groups, depth, n * positions)
    product = np.matmul(matrix, joined).reshape(groups, -1, n, positions)
    return np.ascontiguousarray(product.transpose(2, 0, 1, 3))


@singledispatch
def switches(
    x: Array,
    y: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begins: Sequence[int],
) -> Array:
    """Where in its window each pooled value came from: the first position, row by row, that holds it.

    Args:
        x: (N, C, h…) what was pooled.
        y: (N, C, …) the MaxPool's output.
        begins: the padding before the first position of each axis.

    Returns:
        Like ``y``, unsigned integers: the number of the kernel cell. One byte for up to 256 cells.
    """
    count = math.prod(kernel)
    if x.dtype.kind != "f":  # 8 bits; beside them there is no value that equals none
        x, y = x.astype(np.float32), y.astype(np.float32)
    found: Array = np.empty(y.shape, np.uint8 if count <= 256 else np.uint32)
    marked = np.uint8 if count < 256 else np.uint32
    met = _Met.of(x.shape[2:], y.shape[2:], kernel, strides, dilations, begins)
    rows = min(x.shape[1], max(1, _SWITCHED // math.prod(met.pitch)))
    phases = {phase: np.full((rows, *met.pitch), np.nan, x.dtype) for phase in met.places}
    pooled, marks = np.zeros((rows, *met.pitch), y.dtype), np.zeros((rows, *met.pitch), marked)
    same = np.empty(marks.size, bool)
    flags, here, best = same.view(np.uint8), pooled.reshape(-1), marks.reshape(-1)
    mark = flags if marked is np.uint8 else np.empty(marks.size, marked)
    inner = tuple(slice(n) for n in y.shape[2:])
    for row, start in itertools.product(range(len(x)), range(0, x.shape[1], rows)):
        part = x[row, start : start + rows]
        channels = slice(start, start + len(part))
        for phase, (to, of) in met.places.items():
            phases[phase][: len(part), *to] = part[:, *of]
        pooled[: len(part), *inner] = y[row, channels]
        marks[:] = 0
        size = len(part) * math.prod(met.pitch)
        # The first cell has the highest mark.
        for number, (phase, step) in enumerate(met.cells):
            some = slice(size - step)
            np.equal(phases[phase].reshape(-1)[step:size], here[some], out=same[some])
            np.multiply(flags[some], marked(count - number), out=mark[some])
            np.maximum(best[some], mark[some], out=best[some])
        np.greater(best, 0, out=same)  # what is NaN equals nothing, and has cell 0
        np.multiply(np.subtract(marked(count), best, out=best), flags, out=best)
        found[row, channels] = marks[: len(part), *inner]
    return found


@dataclass(frozen=True)
class _Met:
    """Where the windows of a pool meet the cells of its kernel.

    The positions that agree modulo the strides, a phase, are put apart into maps of one ``pitch``, and so is what was
    pooled: then all windows meet one cell at the same distance in memory.

    Args:
        pitch: the sizes of such a map.
        places: for each phase, the part of its map that is filled, and from what.
        cells: for each cell its phase, and that distance.
    """

    pitch: tuple[int, ...]
    places: Mapping[tuple[int, ...], tuple[tuple[slice, ...], tuple[slice, ...]]]
    cells: Sequence[tuple[tuple[int, ...], int]]

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        counts: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        begins: Sequence[int],
    ) -> _Met:
        """For maps of ``sizes`` with ``counts`` windows."""
        # Of the axes: the first and the last step that any window takes, in strides from its own place.
        lows = [-begin // stride for begin, stride in zip(begins, strides, strict=True)]
        highs = [
            ((k - 1) * d - b) // s for k, d, b, s in zip(kernel, dilations, begins, strides, strict=True)
        ]
        pitch = tuple(n + high - low for n, high, low in zip(counts, highs, lows, strict=True))
        cells = []
        for cell in np.ndindex(*kernel):
            first = [o * d - b for o, d, b in zip(cell, dilations, begins, strict=True)]
            step = 0
            for at, stride, low, size in zip(first, strides, lows, pitch, strict=True):
                step = step * size + at // stride - low
            cells.append((tuple(at % stride for at, stride in zip(first, strides, strict=True)), step))
        places = {}
        for phase in dict.fromkeys(phase for phase, _ in cells):
            to, of = [], []
            for p, n, s, low, size in zip(phase, sizes, strides, lows, pitch, strict=True):
                begin = max(-low, 0)
                end = max(begin, min(size, (n - 1 - p) // s - low + 1))
                start = (begin + low) * s + p
                to.append(slice(begin, end))
                of.append(slice(start, start + (end - begin) * s, s))
            places[phase] = (tuple(to), tuple(of))
        return cls(pitch, places, cells)


@singledispatch
def unpool(
    g: Array, switch: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """Put each value back at its switch; where windows overlap on one place, the values add up.

    Args:
        g: (N, C, h…) cotangent of a MaxPool's output.
        switch: (N, C, h…) kernel cells (`switches`).

    Returns:
        (N, C, (h−1)·stride + (k−1)·dilation + 1, …), starting ``pads`` before the first input position.
    """
    n, c, *sizes = g.shape
    extent = _extent(sizes, kernel, strides, dilations)
    # Every value has one destination, the start of its window plus its cell's offset: cheaper to add there than
    # to go over all cells.
    start, offset = np.arange(c, dtype=np.intp).reshape(-1, *(1 for _ in sizes)), np.zeros(1, np.intp)
    for cells, dilation, length in zip(kernel, dilations, extent, strict=True):
        start, offset = start * length, offset * length
        offset = (offset[:, None] + np.arange(cells) * dilation).ravel()
    pitch = 1
    for axis in reversed(range(len(sizes))):
        steps = np.arange(sizes[axis], dtype=np.intp) * strides[axis] * pitch
        start = start + steps.reshape(-1, *(1 for _ in sizes[axis + 1 :]))
        pitch *= extent[axis]
    full = np.zeros((n, c * math.prod(extent)), g.dtype)
    for row in range(n):
        at = offset.take(switch[row])
        at += start
        np.add.at(full[row], at.reshape(-1), g[row].reshape(-1))
    return full.reshape(n, c, *extent)


@singledispatch
def spread(g: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Add each value to every cell of its window: the adjoint of a sum over windows. Shapes as `unpool`."""
    n, c, *sizes = g.shape
    full = np.zeros((n, c, *_extent(sizes, kernel, strides, dilations)), g.dtype)
    for cell in _cells(kernel, sizes, strides, dilations):
        full[cell] += g
    return full


@singledispatch
def dilate(g: Array, steps: Sequence[int]) -> Array:
    """Spread the elements of every axis ``steps`` apart, zeros between; a negative step also reverses."""
    if any(step < 0 for step in steps):
        g = g[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
    steps = [abs(step) for step in steps]
    if all(step == 1 for step in steps):
        return g
    full = np.zeros([(n - 1) * step + 1 for n, step in zip(g.shape, steps, strict=True)], g.dtype)
    full[tuple(slice(None, None, step) for step in steps)] = g
    return full


@singledispatch
def place(g: Array, offsets: Sequence[int], sizes: Sequence[int]) -> Array:
    """``g`` inside a frame of ``sizes``, ``offsets`` from its corner: cropped and padded with zeros as needed."""
    inner, outer = [], []
    for n, offset, size in zip(g.shape, offsets, sizes, strict=True):
        low, high = max(offset, 0), max(min(offset + n, size), 0)
        high = max(high, low)
        outer.append(slice(low, high))
        inner.append(slice(low - offset, high - offset))
    part = g[tuple(inner)]
    if part.shape == tuple(sizes):
        return part
    full = np.zeros(sizes, g.dtype)
    full[tuple(outer)] = part
    return full


def place_each(g: Array, offsets: Array, sizes: Sequence[int]) -> Array:
    """`place` for each row of ``g`` on its own: ``offsets`` is (N, axes after the first)."""
    full = np.zeros(sizes, g.dtype)
    for row, offset in enumerate(offsets.tolist()):
        inner, outer = [], []
        for n, start, size in zip(g.shape[1:], offset, sizes[1:], strict=True):
            low, high = max(start, 0), min(start + n, size)
            high = max(high, low)
            outer.append(slice(low, high))
            inner.append(slice(low - start, high - start))
        full[row][tuple(outer)] = g[row][tuple(inner)]
    return full


def take(
    values: Array, rows: Array, axes: Sequence[int], starts: Sequence[Array], sizes: Sequence[int]
) -> Array:
    """Windows of ``values``, zero where they leave it.

    Args:
        values: (N, …).
        rows: (M,) which row of ``values`` each window is of.
        axes: the axes that are windowed; the others come whole.
        starts: for each of ``axes``, (M,) where each window begins.
        sizes: for each of ``axes``, the window's size.

    Returns:
        (M, …), with ``sizes`` along ``axes``.
    """
    if not axes:
        same = len(rows) == len(values) and bool((rows == np.arange(len(rows))).all())
        return values if same else values[rows]
    shape = [len(rows), *values.shape[1:]]
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    full = np.zeros(shape, values.dtype)
    # One by one: windows are few and large, and padding what they are of would take longer.
    for number, (row, *begins) in enumerate(zip(rows.tolist(), *(s.tolist() for s in starts), strict=True)):
        inner, outer = ([slice(None)] * (values.ndim - 1) for _ in range(2))
        for axis, begin, size in zip(axes, begins, sizes, strict=True):
            low = max(begin, 0)
            high = max(min(begin + size, values.shape[axis]), low)
            inner[axis - 1], outer[axis - 1] = slice(low, high), slice(low - begin, high - begin)
        full[number][tuple(outer)] = values[row][tuple(inner)]
    return full


@singledispatch
def put(g: Array, index: Array, axis: int, size: int) -> Array:
    """Add slice k of ``g`` along ``axis`` to slice ``index[k]`` of ``size`` that begin as zeros.

    The adjoint of taking slices along an axis. ``index``: (K,) from 0 to ``size`` − 1.
    """
    full = np.zeros((*g.shape[:axis], size, *g.shape[axis + 1 :]), g.dtype)
    lead: tuple[Any, ...] = (slice(None),) * axis
    chosen, first = np.unique(index, return_index=True)
    if len(chosen) < len(index):
        order = np.argsort(index, kind="stable")
        first = np.searchsorted(index[order], chosen)
        full[(*lead, chosen)] = np.add.reduceat(np.take(g, order, axis), first, axis)
    else:
        full[(*lead, chosen)] = np.take(g, first, axis)
    return full


@singledispatch
def scatter(into: Array, places: Array, values: Array, reduction: str) -> Array:
    """ONNX ScatterElements-18 on flat arrays: a copy of ``into`` (P,) with ``values`` (K,) put at ``places`` (K,).

    ``reduction``: ``add``, ``mul``, ``max`` or ``min``, or ``none``: the last value at a place stays.
    """
    full = into.copy()
    if reduction == "none":
        full[places] = values
    else:
        _REDUCTIONS[reduction].at(full, places, values)
    return full


_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@singledispatch
def einsum(*operands_and_labels: Any) -> Array:
    """NumPy's, in its form without a string: operand, labels, …, labels of the result."""
    product: Array = np.einsum(*operands_and_labels, optimize=True)
    return product
