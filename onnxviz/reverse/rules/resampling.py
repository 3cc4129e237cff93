"""Operators that resample a map: resizing, grids and regions of interest."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from onnxviz.model.graph import Node, Shape
from onnxviz.model.pulls import resized_axes
from onnxviz.reverse.kernels import Array, Taps, add_at, cubic, place, reflect, taps, unfold
from onnxviz.reverse.rules.registry import Cotangents, Step, constant_inputs, register

# Resize: separable, so a matrix for each axis


_TIE = 1e-6
"""onnxruntime counts coordinates as close as this to the middle of two positions as there."""

_LARGEST_MATRIX = 1 << 28
"""Elements, 2 GiB: axes of 16,384 positions, resized to as many. A hostile file can ask for any size."""


def _parameter_inputs(node: Node) -> dict[str, int]:
    """Which of a Resize's parameters the coordinates depend on beyond both sizes, and in which inputs they are."""
    if node.op == "Upsample" or len(node.inputs) < 3:
        return {"scales": 1}
    inputs = {"roi": 1} if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" else {}
    if len(node.inputs) < 4 or not node.inputs[3]:
        inputs["scales"] = 2
    elif node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        inputs["sizes"] = 3
    return inputs


def _parameters_needed(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    return [node.inputs[i] for name, i in _parameter_inputs(node).items() if name not in node.attrs]


@register("Resize", "Upsample", record=_parameters_needed)
def resize(step: Step, g: Array) -> Cotangents:
    """The transpose of each resampled axis's matrix. ONNX Resize-19, Upsample-9."""
    xp = g.__array_namespace__()
    source, target = step.full_shape(0), step.full_shapes[step.node.output]
    given = {name: _parameter(step, name, i) for name, i in _parameter_inputs(step.node).items()}
    resampled = resized_axes(step.node, source, target)
    roi = given.get("roi", (0.0,) * len(source) + (1.0,) * len(source))
    for axis, number in resampled.items():
        scale = target[axis] / source[axis]
        if "scales" in given:
            scale = given["scales"][number]
        elif "sizes" in given:
            ratios = [given["sizes"][i] / source[a] for a, i in resampled.items()]
            scale = min(ratios) if step.attr("keep_aspect_ratio_policy") == "not_larger" else max(ratios)
        part = (roi[number], roi[len(roi) // 2 + number])
        matrix = _resize_matrix(step, source[axis], target[axis], scale, part).astype(g.dtype)
        g = xp.moveaxis(xp.tensordot(g, xp.asarray(matrix), axes=([axis], [0])), -1, axis)
    return (g,)


def _parameter(step: Step, name: str, index: int) -> tuple[float, ...]:
    """A parameter of a Resize, constant or computed."""
    value = step.node.attrs[name] if name in step.node.attrs else step.value(index).reshape(-1)
    return tuple(float(v) for v in value)  # type: ignore[union-attr]


def _resize_matrix(step: Step, size: int, out: int, scale: float, roi: tuple[float, float]) -> Array:
    """(out, size) what each position of the resized axis takes from each of the original.

    Raises:
        MemoryError: it would be larger than `_LARGEST_MATRIX`.
    """
    if out * size > _LARGEST_MATRIX:
        raise MemoryError(f"resizing an axis from {size:,} to {out:,} takes {8 * out * size / 1e9:.1f} GB")
    attrs, mode = step.node.attrs, step.attr("mode")
    # Which position is nearest can hang on a rounding: then it is that of onnxruntime's float32.
    kind = np.float32 if mode == "nearest" else np.float64
    y, ratio = np.arange(out, dtype=kind), np.asarray(scale, kind)
    x, inside = _originals(str(step.attr("coordinate_transformation_mode")), size, y, ratio, roi)
    if mode == "nearest":
        cells = _nearest(x, str(step.attr("nearest_mode")), shrinks=scale < 1)[:, None]
        shares = np.ones(cells.shape)
    else:
        # With antialias the kernel is as wide as the positions that fall on one output.
        stretch = min(scale, 1.0) if attrs.get("antialias") else 1.0
        radius = (2 if mode == "cubic" else 1) / stretch
        cells = np.floor(x)[:, None] + np.arange(math.floor(-radius), math.ceil(radius) + 1)
        away = (cells - x[:, None]) * stretch
        shares = np.maximum(1 - np.abs(away), 0)
        if mode == "cubic":
            shares = cubic(away, step.number("cubic_coeff_a"))
        if attrs.get("exclude_outside"):
            shares = shares * ((cells >= 0) & (cells < size))
        if attrs.get("exclude_outside") or attrs.get("antialias"):
            shares = shares / shares.sum(1, keepdims=True)
    matrix = np.zeros((out, size))
    rows = np.broadcast_to(np.arange(out)[:, None], cells.shape)
    np.add.at(matrix, (rows, np.clip(cells, 0, size - 1).astype(np.intp)), shares)
    return matrix * inside[:, None]


def _originals(mode: str, size: int, y: Array, scale: Array, roi: tuple[float, float]) -> tuple[Array, Array]:
    """Where each resized position ``y`` lies on the original axis, and whether it lies inside (where that counts)."""
    out = len(y)
    inside = np.ones(out, bool)
    if mode == "align_corners":
        x = y * (size - 1) / (out - 1) if out > 1 else y * 0
    elif mode == "asymmetric":
        x = y / scale
    elif mode == "tf_crop_and_resize":
        extent = (roi[1] - roi[0]) * (size - 1)
        x = roi[0] * (size - 1) + (y * extent / (out - 1) if out > 1 else y + extent / 2)
        inside = (x >= 0) & (x <= size - 1)
    elif mode == "pytorch_half_pixel" and out == 1:
        x = y
    else:
        offset = size / 2 * (1 - out / (scale * size)) if mode == "half_pixel_symmetric" else 0
        x = offset + (y + 0.5) / scale - 0.5
    return x, inside


def _nearest(x: Array, mode: str, *, shrinks: bool) -> Array:
    """Whole coordinates. "simple" is what Upsample and the first Resize did."""
    if mode == "simple":
        return np.ceil(x) if shrinks else np.floor(x)
    x = x.astype(np.float64)
    if mode == "round_prefer_floor":
        return np.ceil(x - 0.5 - _TIE)
    if mode == "round_prefer_ceil":
        return np.floor(x + 0.5 + _TIE)
    return np.floor(x) if mode == "floor" else np.ceil(x)


# Grids


def _grid_points(step: Step, grid: Array) -> tuple[Taps, list[Array]]:
    """What a GridSample reads, and for each axis of the map the derivative of its coordinate by the grid's."""
    sizes = step.full_shape(0)[2:]
    align, mode, padding = (
        bool(step.attr("align_corners")),
        str(step.attr("mode")),
        str(step.attr("padding_mode")),
    )
    bounds = [(0.0, n - 1.0) if align else (-0.5, n - 0.5) for n in sizes]
    at, rates = [], []
    for axis, size in enumerate(sizes):
        u = grid[..., len(sizes) - 1 - axis].reshape(len(grid), -1)
        rate = (size - 1) / 2 if align else size / 2
        x = (u + 1) * rate if align else (u + 1) * rate - 0.5
        x = np.rint(x) if mode == "nearest" else x
        slope = np.full_like(x, rate)
        low, high = bounds[axis]
        if padding == "border" and mode != "cubic":  # there each cell that is read is clipped, not the point
            outside = (x < low) | (x > high)
            x, slope = np.where(outside, np.clip(x, 0, size - 1), x), slope * ~outside
        elif padding == "reflection":
            x, turned = reflect(x, low, high)
            slope = slope * turned
        at.append(x)
        rates.append(slope)
    return taps(at, sizes, mode, padding, bounds), rates


def _grid_needs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    return node.inputs if 1 in wanted else node.inputs[1:]


@register("GridSample", slots=(0, 1), record=_grid_needs)
def grid_sample(step: Step, g: Array) -> Cotangents:
    """To the positions that each point was read from; to the grid by the slope there. ONNX GridSample-22."""
    shape, grid = step.full_shape(0), step.value(1)
    size = math.prod(shape[2:])
    points, rates = _grid_points(step, grid.astype(g.dtype))
    to_x, to_grid = [], []
    for n, part in enumerate(g.reshape(*g.shape[:2], -1)):
        read = points.row(n)
        if 0 in step.wanted:
            to_x.append(add_at(part.T[:, None] * read.weight[..., None], read.index, size))
        if 1 in step.wanted:
            felt = np.einsum("cpk,cp->pk", step.value(0)[n].reshape(shape[1], -1)[:, read.index], part)
            slopes = [(felt * slope).sum(1) * rate[n] for slope, rate in zip(read.slopes, rates, strict=True)]
            to_grid.append(np.stack(slopes[::-1], axis=-1))
    return tuple(
        np.stack(parts).reshape(step.shape(i)) if i in step.wanted else None
        for i, parts in enumerate((to_x, to_grid))
    )


@register("AffineGrid")
def affine_grid(step: Step, g: Array) -> Cotangents:
    """Each transform gets its points' cotangents times the points. ONNX AffineGrid-20."""
    xp = g.__array_namespace__()
    sizes = g.shape[1:-1]
    axes = []
    for axis, n in enumerate(sizes):
        place_ = xp.arange(n, dtype=g.dtype)
        along = 2 * place_ / max(n - 1, 1) - 1 if step.attr("align_corners") else (2 * place_ + 1) / n - 1
        axes.append(xp.broadcast_to(xp.reshape(along, (-1, *(1 for _ in sizes[axis + 1 :]))), sizes))
    points = xp.reshape(xp.stack([*axes[::-1], xp.ones(sizes, dtype=g.dtype)], axis=-1), (-1, len(sizes) + 1))
    flat = xp.reshape(g, (g.shape[0], -1, len(sizes)))
    return (xp.matmul(xp.matrix_transpose(flat), points),)


# Blocks


@register("Col2Im", restriction=constant_inputs(block_shape=2))
def col2im(step: Step, g: Array) -> Cotangents:
    """Each block gets what lies where it was added. ONNX Col2Im-18."""
    block, strides, dilations, pads = (step.ints(n) for n in ("block_shape", "strides", "dilations", "pads"))
    sizes = [
        n + begin + end
        for n, begin, end in zip(g.shape[2:], pads[: len(block)], pads[len(block) :], strict=True)
    ]
    wide = place(g, [0, 0, *pads[: len(block)]], [*g.shape[:2], *sizes])
    return (unfold(wide, block, strides, dilations).reshape(step.shape(0)),)


def _between(step: Step, x: Array, shape: Shape, perm: tuple[int, ...], out: Shape) -> Array:
    xp = x.__array_namespace__()
    moved: Array = xp.reshape(xp.permute_dims(xp.reshape(x, shape), perm), out)
    return moved


@register("DepthToSpace")
def depth_to_space(step: Step, g: Array) -> Cotangents:
    """Blocks of positions back to channels. ONNX DepthToSpace-13."""
    n, channels, height, width = step.shape(0)
    block = int(step.number("blocksize"))
    perm = (0, 3, 5, 1, 2, 4) if step.attr("mode") == "DCR" else (0, 1, 3, 5, 2, 4)
    split = (n, channels // block**2, height, block, width, block)
    return (_between(step, g, split, perm, step.shape(0)),)


@register("SpaceToDepth")
def space_to_depth(step: Step, g: Array) -> Cotangents:
    """Channels back to blocks of positions. ONNX SpaceToDepth-13."""
    n, _, height, width = g.shape
    block, channels = int(step.number("blocksize")), step.shape(0)[1]
    if step.attr("mode") == "DCR":
        split, perm = (n, block, block, channels, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, perm = (n, channels, block, block, height, width), (0, 1, 4, 2, 5, 3)
    return (_between(step, g, split, perm, step.shape(0)),)


@register("CenterCropPad")
def center_crop_pad(step: Step, g: Array) -> Cotangents:
    """g itself: the geometry says where it lies. ONNX CenterCropPad-18."""
    return (g,)


# Regions of interest


@register(
    "RoiAlign", record=lambda node, wanted: node.inputs if node.attrs["mode"] == "max" else node.inputs[1:]
)
def roi_align(step: Step, g: Array) -> Cotangents:
    """To the positions that each bin was averaged from, or to the greatest of what it took. ONNX RoiAlign-22."""
    shape = step.full_shape(0)
    size, highest = math.prod(shape[2:]), step.attr("mode") == "max"
    answer = np.zeros((shape[0], shape[1], size), g.dtype)
    for part, roi, image in zip(g, step.value(1), step.value(2).tolist(), strict=True):
        index, weight = _roi_taps(step, roi.astype(g.dtype), shape[2:], part.shape[1:])
        flat = part.reshape(len(part), -1).T[:, None]
        values = flat * weight[..., None] / max(index.shape[1] // 4, 1)
        if highest:
            seen = step.value(0)[image].reshape(shape[1], -1).T[index] * weight[..., None]
            chosen = np.arange(index.shape[1])[:, None] == seen.argmax(1)[:, None]
            values = flat * weight[..., None] * chosen
        answer[image] += add_at(values, index, size)
    return (answer.reshape(shape),)


def _roi_taps(step: Step, roi: Array, sizes: Shape, bins: Shape) -> tuple[Array, Array]:
    """(bins, K) flat positions that each bin of a region is read from, four a sample, and their weights."""
    half = step.attr("coordinate_transformation_mode") == "half_pixel"
    ratio = int(step.number("sampling_ratio"))
    at = []
    for axis, count in enumerate(bins):
        start, end = roi[[1 - axis, 3 - axis]] * step.number("spatial_scale") - (0.5 if half else 0)
        extent = end - start if half else max(end - start, 1)
        samples = ratio if ratio > 0 else math.ceil(extent / count)
        at.append(
            start + (np.arange(count * samples) + 0.5).reshape(count, samples) * extent / (count * samples)
        )
    y, x = np.broadcast_arrays(at[0][:, None, :, None], at[1][None, :, None, :])
    places = [v.reshape(1, -1).astype(roi.dtype) for v in (y, x)]
    inside = np.ones(places[0].shape[1], bool)
    for v, size in zip(places, sizes, strict=True):
        inside &= (v[0] >= -1) & (v[0] <= size)
    clipped = [np.clip(v, 0, size - 1) for v, size in zip(places, sizes, strict=True)]
    read = taps(clipped, sizes, "linear", "border").row(0)
    shape = (math.prod(bins), -1)
    return read.index.reshape(shape), (read.weight * inside[:, None]).reshape(shape)
