"""The few array operations that rules need beyond the array API, in NumPy.

Arrays are (N, C, spatial…). Kernels work through the rows in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["Array", "conv_transpose", "dilate", "place", "place_each", "spread", "switches", "take", "unpool"]

Array: TypeAlias = NDArray[Any]

_BLOCK_BYTES = 2 << 20
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


def _products(matrix: Array, columns: Array) -> Array:
    """(G, K, C) times (N, G, C, P): (N, G, K, P). Small maps are joined, so that one product serves them all."""
    n, groups, depth, positions = columns.shape
    if positions >= _SMALL_MAP or n == 1:
        wide: Array = np.matmul(matrix, columns)
        return wide
    joined = np.ascontiguousarray(columns.transpose(1, 2, 0, 3)).reshape(groups, depth, n * positions)
    product = np.matmul(matrix, joined).reshape(groups, -1, n, positions)
    return np.ascontiguousarray(product.transpose(2, 0, 1, 3))


def switches(
    indices: Array,
    source: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begins: Sequence[int],
    *,
    column_major: bool = False,
) -> Array:
    """Where in its window each pooled value came from, from the ``Indices`` of an ONNX MaxPool.

    Args:
        indices: (N, C, h…) int64, flat over the whole input tensor, padding not counted.
        source: spatial sizes of the pool's input.
        column_major: ``storage_order`` 1.

    Returns:
        (N, C, h…) unsigned integers: the number of the kernel cell, row by row. One byte for up to 256 cells.
    """
    n, c, *sizes = indices.shape
    pitch = _pitches(source, column_major)
    # Subtracting where each window starts leaves its cells' own offsets, few enough to look up.
    start: Array = (np.arange(n * c) * math.prod(source)).reshape(n, c, *(1 for _ in sizes))
    offset: Array = np.zeros((1,) * len(kernel), np.int64)
    for axis, size in enumerate(sizes):
        ones = (1,) * (len(sizes) - axis - 1)
        start = start + ((np.arange(size) * strides[axis] - begins[axis]) * pitch[axis]).reshape(-1, *ones)
        offset = offset + (np.arange(kernel[axis]) * dilations[axis] * pitch[axis]).reshape(-1, *ones)
    cells = np.zeros(int(offset.max()) + 1, np.uint8 if math.prod(kernel) <= 256 else np.uint32)
    cells[offset.ravel()] = np.arange(math.prod(kernel))
    found: Array = cells[indices - start]
    return found


def _pitches(source: Sequence[int], column_major: bool) -> list[int]:
    """How far apart, in a flat plane, neighbours on each axis lie."""
    pitch = [1]
    for extent in source[:-1] if column_major else source[:0:-1]:
        pitch.append(pitch[-1] * extent)
    return pitch if column_major else pitch[::-1]


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
        np.add.at(full[row], (offset[switch[row]] + start).ravel(), g[row].ravel())
    return full.reshape(n, c, *extent)


def spread(g: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Add each value to every cell of its window: the adjoint of a sum over windows. Shapes as `unpool`."""
    n, c, *sizes = g.shape
    full = np.zeros((n, c, *_extent(sizes, kernel, strides, dilations)), g.dtype)
    for cell in _cells(kernel, sizes, strides, dilations):
        full[cell] += g
    return full


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
    before = [max(0, -int(s.min())) for s in starts]
    after = [
        max(0, int(s.max()) + size - values.shape[axis])
        for axis, s, size in zip(axes, starts, sizes, strict=True)
    ]
    if any(itertools.chain(before, after)):
        widths = [(0, 0)] * values.ndim
        for axis, low, high in zip(axes, before, after, strict=True):
            widths[axis] = (low, high)
        values = np.pad(values, widths)
    windows = sliding_window_view(values, tuple(sizes), axis=tuple(axes))
    index: list[Any] = [slice(None)] * values.ndim
    index[0] = rows
    for axis, start, low in zip(axes, starts, before, strict=True):
        index[axis] = start + low
    picked = windows[tuple(index)]
    # Advanced indices put the M windows first; the window axes stand last, in the order of `axes`.
    return np.moveaxis(picked, range(picked.ndim - len(axes), picked.ndim), axes)
