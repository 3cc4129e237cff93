"""The kernels of `onnxviz.reverse.kernels` for traced arrays: the same operations, written as ONNX nodes."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from onnxviz.reverse import kernels
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.traced import Traced, Untraceable

__all__ = ["one_hot_moved", "windows_of"]


TRACED: Any = Traced
"""For `functools.singledispatch`, to whose types a traced array is no array."""


@dataclass(frozen=True)
class Convolved:
    """Remembers a convolution, so that what is cut off its result is not computed.

    ``begins`` and ``ends``: what the node pads with, or, of a ConvTranspose, cuts off.
    """

    op: str
    g: Traced
    weight: str
    channels: int
    extent: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    attrs: dict[str, Any]

    def write(self) -> Traced:
        """The node."""
        sign = 1 if self.op == "Conv" else -1
        pads = [sign * p for p in (*self.begins, *self.ends)]
        made = self.g.tracer.node(
            self.op,
            (self.g.shape[0], self.channels, *self.extent),
            self.g.dtype,
            self.g,
            self.weight,
            pads=pads,
            **self.attrs,
        )
        made.origin = self
        return made

    def cut(self, offsets: Sequence[int], sizes: Sequence[int]) -> Traced | None:
        """The part of the result that lies in a frame (`kernels.place`), if the node can give just that."""
        begins = tuple(b + o for b, o in zip(self.begins, offsets, strict=True))
        ends = tuple(
            e + size - o - n for e, size, o, n in zip(self.ends, sizes, offsets, self.extent, strict=True)
        )
        if any(o > 0 or o + n < size for o, n, size in zip(offsets, self.extent, sizes, strict=True)):
            return None
        if self.op == "Conv" and any(p < 0 for p in (*begins, *ends)):
            return None
        return replace(self, begins=begins, ends=ends, extent=tuple(sizes)).write()


@kernels.conv_transpose.register(TRACED)
def _(g: Any, weight: Any, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Any:
    """Of one position: a product. Of stride 1: a convolution with the kernels turned round. Else ONNX's ConvTranspose,
    or, where there are many groups (which onnxruntime takes one by one) or the kernel is one cell, zeros between the
    positions."""
    if not isinstance(weight, np.ndarray):
        raise Untraceable("weights that are computed at run time")
    kernel = weight.shape[2:]
    if all(n == 1 for n in g.shape[2:]) and groups in (1, len(weight)):
        return kernels.dilate(_from_one_place(g, weight, groups), [1, 1, *dilations])
    if any(s != 1 for s in strides):
        if math.prod(kernel) == 1:
            g = kernels.conv_transpose(g, weight, [1] * len(kernel), dilations, groups)
            return kernels.dilate(g, [1, 1, *strides])
        if groups > 4:
            g = kernels.dilate(g, [1, 1, *strides])
            strides = [1] * len(kernel)
    sizes = [int(n) for n in g.shape[2:]]
    extent = tuple(
        (n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    )
    attrs: dict[str, Any] = {"dilations": list(dilations), "group": groups, "kernel_shape": list(kernel)}
    if any(s != 1 for s in strides):
        nothing = (0,) * len(kernel)
        name = g.tracer.writer.constant(np.ascontiguousarray(weight))
        attrs["strides"] = list(strides)
        return Convolved(
            "ConvTranspose", g, name, weight.shape[1] * groups, extent, nothing, nothing, attrs
        ).write()
    reach = tuple((k - 1) * d for k, d in zip(kernel, dilations, strict=True))
    name = g.tracer.writer.constant(_turned(weight, groups))
    return Convolved("Conv", g, name, weight.shape[1] * groups, extent, reach, reach, attrs).write()


def _from_one_place(g: Any, weight: Array, groups: int) -> Any:
    """Kernels (M, Cin, k…), each times what its channel has at the one position of ``g`` (M, Cout, 1…), added up.

    A unit begins so. There are no groups, or each channel is one.
    """
    tracer, rows, (cout, cin, *kernel) = g.tracer, g.shape[0], weight.shape
    if groups == 1:
        flat = tracer.constant(np.ascontiguousarray(weight.reshape(cout, -1)))
        product = tracer.node(
            "MatMul", (rows, flat.shape[1]), g.dtype, tracer.reshaped(g, (rows, cout)), flat
        )
        return tracer.reshaped(product, (rows, cin, *kernel))
    own = np.ascontiguousarray(weight[None] if cin > 1 else weight.reshape(1, cout, *kernel))
    apart = tracer.reshaped(g, (rows, cout, 1, *g.shape[2:])) if cin > 1 else g
    each = tracer.node("Mul", (rows, *own.shape[1:]), g.dtype, apart, tracer.constant(own))
    return tracer.reshaped(each, (rows, cout * cin, *kernel))


def _turned(weight: Array, groups: int) -> Array:
    """(Cout, Cin/groups, k…) as the weights (Cin, Cout/groups, k…) of the convolution that goes back."""
    cout, cin, *kernel = weight.shape
    apart = weight.reshape(groups, cout // groups, cin, *kernel).swapaxes(1, 2)
    turned = np.flip(apart, tuple(range(3, apart.ndim)))
    return np.ascontiguousarray(turned.reshape(groups * cin, cout // groups, *kernel))


@kernels.conv.register(TRACED)
def _(x: Any, weight: Any, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Any:
    if not isinstance(weight, np.ndarray):
        raise Untraceable("weights that are computed at run time")
    kernel = weight.shape[2:]
    sizes = tuple(
        (int(n) - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    )
    return x.tracer.node(
        "Conv",
        (x.shape[0], len(weight), *sizes),
        x.dtype,
        x,
        x.tracer.constant(np.ascontiguousarray(weight)),
        strides=list(strides),
        dilations=list(dilations),
        group=groups,
        kernel_shape=list(kernel),
    )


@kernels.place.register(TRACED)
def _(g: Any, offsets: Sequence[int], sizes: Sequence[Any]) -> Any:
    moved = [axis for axis, offset in enumerate(offsets) if offset or g.shape[axis] != sizes[axis]]
    if not moved:
        return g
    if isinstance(g.origin, Convolved) and min(moved) >= 2:
        cut = g.origin.cut(offsets[2:], sizes[2:])
        if cut is not None:
            return cut
    starts, ends, before, after = [], [], [0] * g.ndim, [0] * g.ndim
    for axis in moved:
        n, size, offset = int(g.shape[axis]), int(sizes[axis]), int(offsets[axis])
        low, high = max(-offset, 0), min(n, size - offset)
        if high <= low:
            return g.tracer.filled(tuple(sizes), 0, g.dtype)
        starts.append(low)
        ends.append(high)
        before[axis], after[axis] = max(offset, 0), max(size - offset - n, 0)
    key = [slice(None)] * g.ndim
    for axis, low, high in zip(moved, starts, ends, strict=True):
        key[axis] = slice(low, high)
    part = g[tuple(key)]
    if not any(before) and not any(after):
        return part
    return g.tracer.node("Pad", tuple(sizes), g.dtype, part, g.tracer.ints(*before, *after))


@kernels.dilate.register(TRACED)
def _(g: Any, steps: Sequence[int]) -> Any:
    if any(step < 0 for step in steps):
        g = g[tuple(slice(None, None, -1 if step < 0 else None) for step in steps)]
    steps = [abs(step) for step in steps]
    if all(step == 1 for step in steps):
        return g
    # (…, n, …) → (…, n, 1, …), padded to (…, n, step, …), is (…, n·step, …).
    apart, pads, joined, cut = list[Any](), list[int](), list[Any](), list[slice]()
    for n, step in zip(g.shape, steps, strict=True):
        apart.append(n)
        pads.append(0)
        joined.append(n)
        cut.append(slice(None))
        if step > 1:
            apart.append(1)
            pads.append(step - 1)
            joined[-1] = int(n) * step
            cut[-1] = slice(0, (int(n) - 1) * step + 1)
    tracer = g.tracer
    wide = tracer.reshaped(g, tuple(apart))
    shape = tuple(n + p if p else n for n, p in zip(apart, pads, strict=True))
    filled = tracer.node("Pad", shape, g.dtype, wide, tracer.ints(*[0] * len(pads), *pads))
    return tracer.reshaped(filled, tuple(joined))[tuple(cut)]


@kernels.spread.register(TRACED)
def _(g: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    channels = int(g.shape[1])
    ones = np.ones((channels, 1, *kernel), g.dtype)
    wide = kernels.dilate(g, [1, 1, *strides])
    return kernels.conv_transpose(wide, ones, [1] * len(kernel), dilations, channels)


@kernels.unpool.register(TRACED)
def _(g: Any, switch: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    """Positions of the result that agree modulo the strides (a phase) get what is theirs, then join."""
    xp, tracer = g.tracer.namespace, g.tracer
    sizes = [int(n) for n in g.shape[2:]]
    blocks = [n + (k - 1) * d // s for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)]
    cells = tracer.lift(switch, np.dtype(np.int32))
    zero = np.zeros((), g.dtype)
    phases: dict[tuple[int, ...], Any] = {}
    for number, cell in enumerate(np.ndindex(*kernel)):
        reach = [c * d for c, d in zip(cell, dilations, strict=True)]
        phase = tuple(r % s for r, s in zip(reach, strides, strict=True))
        part = xp.where(cells == np.int32(number), g, zero)
        offsets = [0, 0, *(r // s for r, s in zip(reach, strides, strict=True))]
        part = kernels.place(part, offsets, [*g.shape[:2], *blocks])
        phases[phase] = phases[phase] + part if phase in phases else part
    none = tracer.filled((*g.shape[:2], *blocks), 0, g.dtype)
    every = [phases.get(phase, none) for phase in np.ndindex(*strides)]
    joined = every[0]
    if len(every) > 1:
        depth = len(sizes)
        stacked = xp.stack(every, axis=2)
        stacked = xp.reshape(stacked, (*g.shape[:2], *strides, *blocks))
        order = [0, 1, *itertools.chain(*((2 + depth + i, 2 + i) for i in range(depth)))]
        wide = [b * s for b, s in zip(blocks, strides, strict=True)]
        joined = xp.reshape(xp.permute_dims(stacked, order), (*g.shape[:2], *wide))
    extent = [
        (n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return kernels.place(joined, [0] * g.ndim, [*g.shape[:2], *extent])


@kernels.switches.register(TRACED)
def _(
    x: Any,
    y: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begins: Sequence[int],
) -> Any:
    xp, tracer = x.tracer.namespace, x.tracer
    counts = [int(n) for n in y.shape[2:]]
    ends = [
        max(0, (c - 1) * s + (k - 1) * d + 1 - int(n) - b)
        for c, s, k, d, n, b in zip(counts, strides, kernel, dilations, x.shape[2:], begins, strict=True)
    ]
    pads = tracer.ints(0, 0, *begins, 0, 0, *ends)
    shape = (*x.shape[:2], *(int(n) + b + e for n, b, e in zip(x.shape[2:], begins, ends, strict=True)))
    # NaN equals nothing, so that no value is found outside the map.
    padded = tracer.node("Pad", shape, x.dtype, x, pads, tracer.constant(np.array(np.nan, x.dtype)))
    found = np.zeros((1,) * y.ndim, np.int32)
    for number, cell in reversed(list(enumerate(np.ndindex(*kernel)))):
        places = tuple(
            slice(o * d, o * d + (c - 1) * s + 1, s)
            for o, d, c, s in zip(cell, dilations, counts, strides, strict=True)
        )
        found = xp.where(padded[:, :, *places] == y, np.int32(number), found)
    return found


@kernels.put.register(TRACED)
def _(g: Any, index: Any, axis: int, size: int) -> Any:
    if not isinstance(index, np.ndarray):
        raise Untraceable("places that are computed at run time")
    xp = g.tracer.namespace
    if len(np.unique(index)) == len(index):
        last = np.full(size, len(index))
        last[index] = np.arange(len(index))
        if len(index) < size:
            nothing = g.tracer.filled((*g.shape[:axis], 1, *g.shape[axis + 1 :]), 0, g.dtype)
            g = xp.concat([g, nothing], axis=axis)
        return xp.take(g, last, axis=axis)
    places = np.zeros((len(index), size), g.dtype)
    places[np.arange(len(index)), index] = 1
    return xp.moveaxis(xp.matmul(xp.moveaxis(g, axis, -1), places), -1, axis)


@kernels.einsum.register(TRACED)
def _(*operands_and_labels: Any) -> Any:
    first = operands_and_labels[0]
    *pairs, result = operands_and_labels
    operands, labels = pairs[::2], pairs[1::2]
    letters = string.ascii_letters
    sizes = {k: n for x, ks in zip(operands, labels, strict=True) for k, n in zip(ks, x.shape, strict=True)}
    terms = ",".join("".join(letters[k] for k in ks) for ks in labels)
    return first.tracer.node(
        "Einsum",
        tuple(sizes[k] for k in result),
        first.dtype,
        *(first.tracer.lift(x, first.dtype) for x in operands),
        equation=f"{terms}->{''.join(letters[k] for k in result)}",
    )


def _refuse(*arguments: Any, **options: Any) -> NoReturn:
    raise Untraceable("a kernel that only NumPy has")


for _kernel in (kernels.conv_weight, kernels.unfold, kernels.add_at, kernels.scatter, kernels.cubic):
    _kernel.register(TRACED, _refuse)


def one_hot_moved(g: Traced, axis: int, offset: Traced, size: int) -> Traced:
    """``g`` along an axis in a frame of ``size``, each row ``offset`` (M,) from its beginning; zero elsewhere.

    A product with matrices of zeros and ones: exact, and quick on any provider.
    """
    xp, n = g.tracer.namespace, int(g.shape[axis])
    before = axis == g.ndim - 2
    apart = np.arange(size)[:, None] - np.arange(n)
    apart = apart if before else apart.T
    lines = xp.reshape(offset, (offset.shape[0], *[1] * (g.ndim - 1)))
    places = xp.astype(lines == apart.reshape(*[1] * (g.ndim - 2), *apart.shape), g.dtype)
    if before:
        return xp.matmul(places, g)  # type: ignore[no-any-return]
    return xp.moveaxis(xp.matmul(xp.moveaxis(g, axis, -1), places), -1, axis)  # type: ignore[no-any-return]


def windows_of(
    values: Traced, rows: Traced | None, axes: Sequence[int], starts: Sequence[Traced], sizes: Sequence[int]
) -> Traced:
    """`kernels.take` for traced arrays; ``rows`` None: ``values`` have one row, which serves every window."""
    xp, tracer = values.tracer.namespace, values.tracer
    if not axes:
        return values if rows is None else xp.take(values, rows, axis=0)
    others = [a for a in range(1, values.ndim) if a not in axes]
    lines = starts[0].shape[0]
    moved = xp.permute_dims(values, (0, *axes, *others))
    index, inside = [], None
    depth = len(axes)
    for number, (axis, start, size) in enumerate(zip(axes, starts, sizes, strict=True)):
        line = [1] * depth
        line[number] = size
        at = xp.reshape(start, (lines, *[1] * depth)) + np.arange(size).reshape(line)
        n = int(values.shape[axis])
        within = (at >= 0) & (at < n)
        inside = within if inside is None else inside & within
        index.append(xp.minimum(xp.maximum(at, np.int64(0)), np.int64(n - 1)))
    full = (lines, *sizes)
    first = starts[0] * 0 if rows is None else rows
    index.insert(0, xp.reshape(first, (lines, *[1] * depth)))
    spread = xp.stack([xp.broadcast_to(part, full) for part in index], axis=depth + 1)
    if values.dtype == np.int32:
        moved = xp.astype(moved, np.int64)  # onnxruntime gathers these on CUDA, too
    picked = tracer.node("GatherND", (*full, *(values.shape[a] for a in others)), moved.dtype, moved, spread)
    picked = xp.astype(picked, values.dtype)
    mask = xp.reshape(inside, (*full, *[1] * len(others)))
    picked = xp.where(mask, picked, np.zeros((), values.dtype))
    order = [0, *axes, *others]
    return xp.permute_dims(picked, [order.index(a) for a in range(values.ndim)])  # type: ignore[no-any-return]
