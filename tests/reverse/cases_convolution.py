"""Cases for convolutions, pools, resampling and quantised operators; see `cases`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.reverse.cases import (
    Array,
    C,
    Case,
    H,
    N,
    Operand,
    W,
    X,
    away_from,
    case,
    ints,
    normal,
    spaced,
    weights,
)

SMALL = (N, C, 4, 3)


def _computed(name: str, x: Operand, w: Operand, *more: Operand, linear: bool = True, **attrs: Any) -> Case:
    return case("Conv", f"computed-{name}", x, w, *more, linear=linear, **attrs)


COMPUTED = [
    _computed("weights", weights(*SMALL), (5, C, 3, 2), pads=[1, 0, 1, 1]),
    _computed("weights-stride", weights(N, C, H, W), (5, C, 2, 3), strides=[2, 3], kernel_shape=[2, 3]),
    _computed("weights-same-lower", weights(*X), (5, C, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    _computed("weights-groups-dilation", weights(*X), (4, C // 2, 2, 3), group=2, dilations=[3, 2]),
    _computed("weights-pads-wider", weights(*SMALL), (5, C, 2, 2), pads=[3, 2, 4, 3]),
    _computed("bias", weights(*SMALL), weights(5, C, 3, 2), (5,)),
    _computed("all", SMALL, (4, C // 2, 3, 2), (4,), linear=False, group=2, pads=[1, 0, 0, 1]),
    _computed("1d", weights(N, C, W), (5, C, 4), strides=[2], pads=[1, 2]),
    _computed("3d", weights(N, 3, 5, H, 4), (2, 3, 2, 3, 1), strides=[1, 2, 3], pads=[0, 1, 2, 1, 0, 1]),
]


def _transposed(name: str, x: Operand, w: Operand, *more: Operand, **attrs: Any) -> Case:
    return case("ConvTranspose", name, x, w, *more, **attrs)


def _to_small(name: str, *w: int, **attrs: Any) -> Case:
    return _transposed(name, SMALL, weights(*w), **attrs)


TRANSPOSED = [
    _to_small("plain", C, 5, 3, 2),
    _transposed("bias", SMALL, weights(C, 5, 3, 2), weights(5)),
    _to_small("stride", C, 5, 3, 4, strides=[2, 3]),
    _to_small("stride-above-kernel", C, 5, 1, 2, strides=[2, 4]),
    _to_small("stride-one-axis", C, 5, 3, 4, strides=[1, 2], pads=[1, 0, 0, 1]),
    _to_small("pads", C, 5, 3, 3, pads=[1, 2, 0, 1]),
    _to_small("pads-stride", C, 5, 4, 4, strides=[2, 2], pads=[1, 1, 1, 1]),
    _to_small("pads-wider-than-kernel", C, 5, 2, 2, strides=[3, 4], pads=[3, 2, 4, 3]),
    _to_small("dilation", C, 5, 3, 2, dilations=[2, 3]),
    _to_small("dilation-stride-pads", C, 5, 3, 2, dilations=[2, 3], strides=[2, 1], pads=[1, 2, 2, 0]),
    _to_small("groups", C, 2, 3, 2, group=3, strides=[2, 1]),
    _to_small("depthwise", C, 1, 4, 4, group=C, strides=[2, 2], pads=[1, 1, 1, 1]),
    _to_small("output-padding", C, 5, 3, 3, strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2]),
    _to_small("output-shape", C, 5, 3, 4, strides=[2, 3], output_shape=[8, 9]),
    _to_small("output-shape-upper", C, 5, 3, 4, strides=[2, 3], output_shape=[8, 9], auto_pad="SAME_UPPER"),
    _to_small("output-shape-stride-1", C, 5, 3, 4, output_shape=[5, 5]),
    _to_small(
        "output-shape-output-padding", C, 5, 3, 4, strides=[2, 3], output_shape=[7, 8], output_padding=[1, 2]
    ),
    _to_small("same-upper", C, 5, 3, 4, strides=[2, 3], auto_pad="SAME_UPPER"),
    _to_small("same-lower", C, 5, 3, 4, strides=[2, 3], auto_pad="SAME_LOWER"),
    _to_small("same-lower-stride-above-kernel", C, 5, 2, 1, strides=[4, 3], auto_pad="SAME_LOWER"),
    _to_small("same-upper-stride-1", C, 5, 4, 2, auto_pad="SAME_UPPER"),
    _to_small("auto-valid", C, 5, 3, 2, strides=[2, 1], auto_pad="VALID"),
    _to_small("opset8", C, 5, 3, 2, opset=8, strides=[2, 2]),
    _to_small("opset22", C, 5, 3, 2, opset=22, strides=[2, 1]),
    _transposed("1d", (N, C, 5), weights(C, 4, 3), strides=[2], pads=[1, 0], output_padding=[1]),
    _transposed("3d", (N, 4, 2, 4, 3), weights(4, 3, 2, 3, 1), strides=[1, 2, 3], pads=[0, 1, 0, 1, 0, 0]),
    _transposed("computed-weights", weights(*SMALL), (C, 5, 3, 2), strides=[2, 1], pads=[1, 0, 0, 1]),
    _transposed("computed-weights-groups", weights(*SMALL), (C, 2, 3, 2), group=3, dilations=[1, 2]),
    _transposed("computed-all", SMALL, (C, 2, 3, 2), (4,), linear=False, group=2, strides=[1, 3]),
]


def _off_whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Between whole numbers, where linear interpolation has its kinks."""
    return rng.integers(-2, 2, shape) + rng.uniform(0.2, 0.8, shape)


def _deformed(name: str, x: Operand, w: Operand, offset: Operand, *more: Operand, **attrs: Any) -> Case:
    """``offset`` is drawn off whole numbers if it is computed."""
    operands = (x, w, offset, *more)
    draws = tuple(_off_whole if i == 2 else normal for i, o in enumerate(operands) if isinstance(o, tuple))
    return case("DeformConv", name, *operands, opset=22, linear=len(draws) == 1, draws=draws, **attrs)


def _offsets(*shape: int) -> Array:
    return _off_whole(np.random.default_rng(shape), shape).astype(np.float32)


FLAT = (N, C, 5, 6)
"""For deformed convolutions with 3×2 kernels: 3×5 positions."""

DEFORMED = [
    _deformed("x", FLAT, weights(4, C, 3, 2), _offsets(N, 12, 3, 5)),
    _deformed("x-one-image", (1, C, 5, 6), weights(4, C, 3, 2), _offsets(1, 12, 3, 5)),
    _deformed("offset", FLAT, weights(4, C, 3, 2), (N, 12, 3, 5)),
    _deformed("mask", FLAT, weights(4, C, 3, 2), (N, 12, 3, 5), "", (N, 6, 3, 5)),
    _deformed("bias", FLAT, weights(4, C, 3, 2), (N, 12, 3, 5), (4,)),
    _deformed(
        "all-groups",
        FLAT,
        (4, C // 2, 3, 2),
        (N, 36, 3, 4),
        (4,),
        (N, 18, 3, 4),
        group=2,
        offset_group=3,
        strides=[2, 2],
        pads=[1, 0, 1, 2],
    ),
    _deformed("dilation", FLAT, weights(4, C, 2, 2), (N, 8, 4, 5), dilations=[2, 1], pads=[1, 0, 0, 0]),
]


def _lp_pool(name: str, kernel: list[int], *, x: tuple[int, ...] = X, **attrs: Any) -> Case:
    draw = away_from(0, by=0.2)
    return case("LpPool", name, x, linear=False, draws=draw, kernel_shape=kernel, **attrs)


def _global(op: str, name: str, x: tuple[int, ...], draw: Any, **attrs: Any) -> Case:
    return case(op, name, x, linear=False, draws=draw, **attrs)


POOLS = [
    _lp_pool("plain", [2, 3], strides=[2, 3]),
    _lp_pool("p1", [2, 3], p=1, pads=[1, 0, 1, 2]),
    _lp_pool("p3-overlap", [3, 3], p=3, strides=[2, 2], pads=[1, 1, 0, 1]),
    _lp_pool("same-upper", [2, 4], strides=[2, 3], auto_pad="SAME_UPPER"),
    _lp_pool("same-lower", [2, 4], strides=[2, 3], auto_pad="SAME_LOWER"),
    _lp_pool("ceil", [3, 2], opset=18, strides=[3, 2], ceil_mode=1),
    _lp_pool("dilation", [2, 3], opset=18, dilations=[3, 2], strides=[1, 2]),
    _lp_pool("1d", [3], x=(N, C, W), strides=[2], pads=[1, 0]),
    _lp_pool("3d", [2, 3, 2], x=(N, 3, 5, H, 4), strides=[2, 2, 1], pads=[1, 0, 1, 0, 1, 0]),
    _lp_pool("opset8", [3, 2], opset=8, strides=[2, 1]),
    *(
        _global("GlobalLpPool", f"p{p}-{len(x)}d", x, away_from(0, by=0.2), p=p)
        for p, x in ((1, X), (2, X), (3, X), (2, (N, C, W)), (3, (N, 3, 5, H, 4)))
    ),
    *(_global("GlobalMaxPool", f"{len(x)}d", x, spaced) for x in (X, (N, C, W), (N, 3, 5, H, 4))),
]


def _unpool(name: str, x: tuple[int, ...], indices: Array, *more: Operand, **attrs: Any) -> Case:
    return case("MaxUnpool", name, x, indices, *more, **attrs)


def _places(shape: tuple[int, ...], size: int, *, repeat: bool = False) -> Array:
    """Flat indices into planes of ``size`` elements, as a MaxPool gives them."""
    rng = np.random.default_rng(shape)
    count = int(np.prod(shape[2:]))
    planes = [rng.choice(size, count, replace=repeat) + k * size for k in range(shape[0] * shape[1])]
    return np.reshape(planes, shape).astype(np.int64)


REGIONS = np.array(
    [[0, 0, 5, 4], [1.3, 2.2, 7.9, 6.1], [-3, -2, 2.5, 3], [6, 4, 14, 11], [3.2, 3.1, 3.4, 3.3]], np.float32
)
WHICH = ints(1, 0, 1, 1, 0)


def _regions(op: str, name: str, *, opset: int = 16, draws: Any = normal, **attrs: Any) -> Case:
    return case(
        op, name, X, REGIONS, WHICH, opset=opset, draws=draws, output_height=3, output_width=2, **attrs
    )


def _bins(name: str, regions: Array, **attrs: Any) -> Case:
    numbered = np.concatenate([WHICH[: len(regions), None].astype(np.float32), regions], axis=1)
    return case("MaxRoiPool", name, X, numbered, linear=False, draws=spaced, pooled_shape=[3, 2], **attrs)


UNPOOLS = [
    _unpool("plain", SMALL, _places(SMALL, 48), kernel_shape=[2, 2], strides=[2, 2]),
    _unpool("repeated", SMALL, _places(SMALL, 25, repeat=True), kernel_shape=[2, 3]),
    _unpool("pads", SMALL, _places(SMALL, 42), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 0]),
    _unpool("output-shape", SMALL, _places(SMALL, 63), ints(N, C, 9, 7), kernel_shape=[2, 2], strides=[2, 2]),
    _unpool("1d", (N, C, 4), _places((N, C, 4), 8), kernel_shape=[2], strides=[2]),
    _unpool("3d", (N, 3, 2, 4, 3), _places((N, 3, 2, 4, 3), 192), kernel_shape=[2] * 3, strides=[2] * 3),
    _unpool("opset9", SMALL, _places(SMALL, 48), opset=9, kernel_shape=[2, 2], strides=[2, 2]),
    _bins("plain", REGIONS),
    _bins("scale", REGIONS, spatial_scale=0.6),
    _regions("RoiAlign", "opset10", opset=10, sampling_ratio=2),
    _regions("RoiAlign", "half-pixel", sampling_ratio=3),
    _regions("RoiAlign", "adaptive", sampling_ratio=0, spatial_scale=0.7),
    _regions(
        "RoiAlign", "output-half-pixel", coordinate_transformation_mode="output_half_pixel", sampling_ratio=0
    ),
    replace(_regions("RoiAlign", "max", mode="max", sampling_ratio=2, draws=spaced), linear=False),
]


def _resize(
    name: str, *sizes: float, x: tuple[int, ...] = X, opset: int = 19, roi: Operand = "", **attrs: Any
) -> Case:
    """To ``sizes``, if they are whole numbers, or by them as scales. From opset 18 on they are of the last axes."""
    parameters: tuple[Operand, ...] = (roi, np.array(sizes, np.float32))
    if all(isinstance(n, int) for n in sizes):
        parameters = (roi, "", np.array(sizes, np.int64))
    if opset < 11:
        parameters = parameters[1:]
    elif opset < 13:
        parameters = tuple(np.zeros(0, np.float32) if isinstance(p, str) else p for p in parameters)
    elif opset >= 18:
        attrs = {"axes": list(range(len(x) - len(sizes), len(x))), **attrs}
    return case("Resize", name, x, *parameters, opset=opset, **attrs)


ONE = (1, C, H, W)
"""One image: where all four sizes are stated."""

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
ROI = np.array([0.1, -0.2, 0.8, 1.1], np.float32)

RESIZES = [
    *(
        _resize(
            f"{mode}-{coordinates}-{name}",
            *sizes,
            mode=mode,
            coordinate_transformation_mode=coordinates,
            roi=ROI if coordinates == "tf_crop_and_resize" else "",
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in COORDINATES
        for name, sizes in (("sizes", (12, 5)), ("scales", (0.62, 2.3)))
    ),
    *(
        _resize(
            f"{rounding}-{coordinates}",
            14,
            6,
            nearest_mode=rounding,
            coordinate_transformation_mode=coordinates,
        )
        for rounding in ("round_prefer_ceil", "floor", "ceil")
        for coordinates in ("half_pixel", "asymmetric")
    ),
    *(
        _resize(f"{mode}-antialias-{exclude}", 3, 13, mode=mode, antialias=1, exclude_outside=exclude)
        for mode in ("linear", "cubic")
        for exclude in (0, 1)
    ),
    _resize("cubic-a-outside", 4, 17, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    _resize("to-one", 1, 1, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    _resize("one-axis", H, 4, mode="linear"),
    _resize("same-sizes", H, W, mode="cubic"),
    _resize("scale-that-keeps-the-size", 1.05, 2.0, mode="linear"),
    _resize("batch-and-channels", 4, 9, H, W),
    _resize(
        "extrapolated",
        5,
        6,
        mode="linear",
        roi=ROI,
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.0,
    ),
    _resize("axes", 5, 12, mode="linear", axes=[2, 3], opset=18),
    _resize("axes-scales", 2.5, 0.7, mode="linear", axes=[3, -2], opset=18),
    _resize(
        "not-larger", 12, 12, mode="linear", axes=[2, 3], opset=18, keep_aspect_ratio_policy="not_larger"
    ),
    _resize("not-smaller", 12, 12, axes=[3, 2], opset=18, keep_aspect_ratio_policy="not_smaller"),
    _resize("1d", N, C, 13, x=(N, C, W), mode="linear"),
    _resize("3d", N, 3, 4, 9, 6, x=(N, 3, 5, H, 4), mode="linear"),
    _resize("opset10-nearest", 1.0, 1.0, 2.0, 0.5, opset=10),
    _resize("opset10-linear", 1.0, 1.0, 2.0, 1.7, opset=10, mode="linear"),
    _resize("opset11", 1, C, 5, 12, x=ONE, opset=11, mode="linear"),
    _resize("opset11-scales", 1.0, 1.0, 1.5, 2.0, opset=11),
    _resize(
        "opset13", 1, C, 5, 12, x=ONE, opset=13, mode="cubic", coordinate_transformation_mode="align_corners"
    ),
    case("Upsample", "opset8", X, opset=8, scales=[1.0, 1.0, 2.0, 3.0]),
    case("Upsample", "opset8-linear", X, opset=8, scales=[1.0, 1.0, 2.0, 1.4], mode="linear"),
    case("Upsample", "opset9", X, np.array([1, 1, 1.5, 2], np.float32), opset=9),
    case("Upsample", "opset9-linear", X, np.array([1, 1, 3, 2], np.float32), opset=9, mode="linear"),
]


def _grid(sizes: tuple[int, ...], *, align: bool = False, outside: int = 2) -> Any:
    """Draws points between positions of a map and around it, away from the middle too, where borders are."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        points = np.empty(shape)
        for axis, size in enumerate(reversed(sizes)):
            cell = rng.integers(-outside, size + outside - 1, shape[:-1])
            x = cell + rng.uniform(0.22, 0.32, shape[:-1]) + 0.46 * rng.integers(0, 2, shape[:-1])
            points[..., axis] = 2 * x / (size - 1) - 1 if align else (2 * x + 1) / size - 1
        return points

    return draw


FRAME = (N, C, 5, 6)


def _grid_case(name: str, *, opset: int, computed: bool, align: int = 0, **attrs: Any) -> Case:
    shape = (N, 3, 4, 2)
    draw = _grid(FRAME[2:], align=bool(align))
    grid: Operand = shape if computed else draw(np.random.default_rng(1), shape).astype(np.float32)
    return case(
        "GridSample",
        name,
        FRAME,
        grid,
        opset=opset,
        linear=not computed,
        draws=(normal, draw),
        align_corners=align,
        **attrs,
    )


GRIDS = [
    *(
        _grid_case(
            f"{mode}-{padding}-{align}",
            opset=16,
            computed=False,
            mode=mode,
            padding_mode=padding,
            align=align,
        )
        for mode in ("nearest", "bilinear", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    *(
        _grid_case(
            f"computed-{padding}-{align}",
            opset=20,
            computed=True,
            mode="linear",
            padding_mode=padding,
            align=align,
        )
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    _grid_case("opset22", opset=22, computed=False, mode="cubic"),
    case(
        "GridSample",
        "3d",
        (N, 3, 4, 5, 3),
        (N, 2, 3, 4, 3),
        opset=20,
        linear=False,
        draws=(normal, _grid((4, 5, 3))),
        mode="linear",
    ),
    *(
        case("AffineGrid", f"{name}-{align}", theta, ints(*size), opset=20, align_corners=align)
        for name, theta, size in (("2d", (N, 2, 3), (N, C, 5, 4)), ("3d", (N, 3, 4), (N, C, 3, 5, 4)))
        for align in (0, 1)
    ),
]

BLOCKS = [
    case("Col2Im", "plain", (N, 3 * 6, 20), ints(6, 6), ints(3, 2), opset=18, draws=normal),
    case(
        "Col2Im",
        "all",
        (N, 3 * 6, 16),
        ints(7, 9),
        ints(2, 3),
        opset=18,
        strides=[2, 3],
        dilations=[1, 2],
        pads=[2, 3, 0, 4],
    ),
    case("Col2Im", "1d", (N, 3 * 4, 6), ints(9), ints(4), opset=18),
    case("Col2Im", "3d", (N, 2 * 8, 12), ints(3, 4, 3), ints(2, 2, 2), opset=18),
    *(
        case("DepthToSpace", name, (N, 12, 3, 5), blocksize=2, **attrs)
        for name, attrs in (
            ("opset8", {"opset": 8}),
            ("dcr", {"mode": "DCR"}),
            ("crd", {"mode": "CRD"}),
        )
    ),
    case("SpaceToDepth", "opset8", (N, 3, 6, 10), blocksize=2, opset=8),
    case("SpaceToDepth", "three", (N, 3, 6, 9), blocksize=3),
    *(
        case("CenterCropPad", name, X, ints(*shape), opset=18, **attrs)
        for name, shape, attrs in (
            ("all", (1, C, 4, 12), {}),
            ("crop-odd", (4, 4), {"axes": [2, 3]}),
            ("pad-odd", (10, 12), {"axes": [-2, -1]}),
            ("both", (4, 12), {"axes": [3, 2]}),
        )
    ),
]

CASES = (*COMPUTED, *TRANSPOSED, *DEFORMED, *POOLS, *UNPOOLS, *RESIZES, *GRIDS, *BLOCKS)
