"""The kernels against plain loops, and the switches against onnxruntime's own indices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxviz.reverse.kernels import (
    conv_transpose,
    dilate,
    place,
    place_each,
    spread,
    switches,
    take,
    unpool,
)
from tests.reverse.cases import IR_VERSION, Array

seeds = pytest.mark.parametrize("seed", range(25))


@dataclass(frozen=True)
class Pool:
    """Parameters of a pooling, one number an axis."""

    source: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    ceil_mode: bool = False
    column_major: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator) -> Pool:
        rank = int(rng.integers(1, 4))

        def draw(low: int, high: int) -> tuple[int, ...]:
            return tuple(int(v) for v in rng.integers(low, high, rank))

        kernel, dilations = draw(1, 4), draw(1, 4)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        source = tuple(int(e + rng.integers(0, 9 - 2 * rank)) for e in extent)
        begins, ends = (tuple(int(rng.integers(0, k)) for k in kernel) for _ in range(2))
        ceil_mode, column_major = (bool(v) for v in rng.integers(0, 2, 2))
        return cls(source, kernel, draw(1, 4), dilations, begins, ends, ceil_mode, column_major)

    @property
    def extent(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def run(self, x: Array) -> tuple[Array, Array]:
        """Pooled values and flat indices, by onnxruntime's MaxPool."""
        node = helper.make_node(
            "MaxPool",
            ["x"],
            ["y", "i"],
            kernel_shape=self.kernel,
            strides=self.strides,
            dilations=self.dilations,
            pads=(*self.begins, *self.ends),
            ceil_mode=int(self.ceil_mode),
            storage_order=int(self.column_major),
        )
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node],
            "pool",
            [value("x", TensorProto.FLOAT, x.shape)],
            [value("y", TensorProto.FLOAT, None), value("i", TensorProto.INT64, None)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=IR_VERSION)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        y, indices = session.run(None, {"x": x})
        return y, indices

    def switches(self, x: Array, y: Array) -> Array:
        return switches(x, y, self.kernel, self.strides, self.dilations, self.begins)

    def flat(self, chosen: Array) -> Array:
        """Switches as flat indices over the whole input, as ONNX defines them."""
        order = "F" if self.column_major else "C"
        found = np.empty(chosen.shape, np.int64)
        for n, c, *at in np.ndindex(*chosen.shape):
            place = self.places(at)[chosen[(n, c, *at)]]
            plane = (n * chosen.shape[1] + c) * math.prod(self.source)
            found[(n, c, *at)] = plane + np.ravel_multi_index(place, self.source, order=order)
        return found

    def places(self, at: Sequence[int]) -> list[tuple[int, ...]]:
        """The source positions that output ``at`` looks at, cell by cell; some may lie in the padding."""
        return [
            tuple(
                p * s - b + k * d
                for p, s, b, k, d in zip(at, self.strides, self.begins, cell, self.dilations, strict=True)
            )
            for cell in np.ndindex(*self.kernel)
        ]

    def first_maximum(self, plane: Array, at: Sequence[int]) -> int:
        """The number of the first kernel cell that holds the maximum."""
        inside = {
            number: plane[place]
            for number, place in enumerate(self.places(at))
            if all(0 <= p < n for p, n in zip(place, self.source, strict=True))
        }
        return max(inside, key=lambda number: (inside[number], -number))


def expected_switches(pool: Pool, x: Array, sizes: Sequence[int]) -> Array:
    found = np.empty((*x.shape[:2], *sizes), np.int64)
    for n, c, *at in np.ndindex(*found.shape):
        found[(n, c, *at)] = pool.first_maximum(x[n, c], at)
    return found


@seeds
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_switches_are_the_first_maximum_of_each_window(seed: int, ties: bool):
    rng = np.random.default_rng(seed)
    pool = Pool.random(rng)
    shape = (2, 3, *pool.source)
    x = (rng.integers(0, 3, shape) if ties else rng.permutation(math.prod(shape)).reshape(shape)) * 1.0
    y, indices = pool.run(x.astype(np.float32))
    found = pool.switches(x.astype(np.float32), y)
    np.testing.assert_array_equal(found, expected_switches(pool, x, y.shape[2:]))
    np.testing.assert_array_equal(pool.flat(found), indices)
    assert found.dtype == np.uint8


def test_switches_of_a_large_kernel_do_not_overflow_a_byte():
    pool = Pool((20, 19), (17, 18), (1, 1), (1, 1), (0, 0), (0, 0))
    x = np.zeros((1, 1, 20, 19), np.float32)
    x[0, 0, 16, 17] = 1
    y, _ = pool.run(x)
    assert pool.switches(x, y)[0, 0, 0].tolist() == [16 * 18 + 17, 16 * 18 + 16]


def test_switches_of_256_cells_fit_a_byte():
    pool = Pool((20, 20), (16, 16), (1, 1), (1, 1), (0, 0), (0, 0))
    x = np.random.default_rng(0).permutation(800).reshape(1, 2, 20, 20).astype(np.float32)
    y, indices = pool.run(x)
    found = pool.switches(x, y)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(pool.flat(found), indices)


def test_switches_of_more_channels_than_are_compared_at_once():
    pool = Pool((40, 40), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    x = np.random.default_rng(0).standard_normal((2, 401, 40, 40)).astype(np.float32)
    y, indices = pool.run(x)
    np.testing.assert_array_equal(pool.flat(pool.switches(x, y)), indices)


def test_switches_of_bytes_are_those_of_the_same_numbers():
    pool = Pool((9, 9), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    x = np.random.default_rng(0).integers(-5, 5, (1, 2, 9, 9))
    y, indices = pool.run(x.astype(np.float32))
    found = pool.switches(x.astype(np.int8), y.astype(np.int8))
    np.testing.assert_array_equal(pool.flat(found), indices)


def test_a_window_without_a_number_has_its_first_cell():
    pool = Pool((4, 4), (2, 2), (2, 2), (1, 1), (0, 0), (0, 0))
    x = np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 0, 1] = np.nan
    y = np.ones((1, 1, 2, 2), np.float32)
    y[0, 0, 0, 0] = np.nan
    assert pool.switches(x, y).ravel().tolist() == [0, 0, 0, 0]


def test_a_tie_goes_to_the_first_in_scan_order():
    pool = Pool((2, 2), (2, 2), (1, 1), (1, 1), (0, 0), (0, 0))
    for grid, cell in (([[5, 5], [5, 5]], 0), ([[1, 5], [5, 5]], 1), ([[1, 2], [5, 5]], 2)):
        x = np.array([[grid]], np.float32)
        y, _ = pool.run(x)
        assert pool.switches(x, y).item() == cell


@seeds
def test_unpool_puts_each_value_at_its_switch(seed: int):
    rng = np.random.default_rng(seed)
    pool = Pool.random(rng)
    sizes = tuple(int(v) for v in rng.integers(1, 5, len(pool.kernel)))
    g = rng.standard_normal((2, 3, *sizes))
    chosen = rng.integers(0, math.prod(pool.kernel), g.shape)
    reach = tuple((n - 1) * s + e for n, s, e in zip(sizes, pool.strides, pool.extent, strict=True))
    expected = np.zeros((2, 3, *reach))
    for n, c, *at in np.ndindex(*g.shape):
        place = pool.places(at)[chosen[(n, c, *at)]]
        expected[(n, c, *(p + b for p, b in zip(place, pool.begins, strict=True)))] += g[(n, c, *at)]
    np.testing.assert_allclose(unpool(g, chosen, pool.kernel, pool.strides, pool.dilations), expected)


def test_unpool_of_a_pool_gives_its_input_back_at_the_switches():
    rng = np.random.default_rng(0)
    pool = Pool((9, 8), (3, 2), (3, 2), (1, 1), (0, 0), (0, 0))
    x = rng.standard_normal((2, 3, 9, 8)).astype(np.float32)
    y, _ = pool.run(x)
    back = unpool(y, pool.switches(x, y), pool.kernel, pool.strides, pool.dilations)
    np.testing.assert_array_equal(back, np.where(back != 0, x, 0))
    assert np.count_nonzero(back) == y.size


def test_unpool_works_through_more_rows_than_one_block():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((5, 64, 70, 70)).astype(np.float32)
    chosen = rng.integers(0, 4, g.shape)
    whole = unpool(g, chosen, (2, 2), (2, 2), (1, 1))
    for n in range(5):
        part = unpool(g[n : n + 1], chosen[n : n + 1], (2, 2), (2, 2), (1, 1))
        np.testing.assert_array_equal(whole[n], part[0])


@seeds
def test_spread_adds_to_every_cell_of_the_window(seed: int):
    rng = np.random.default_rng(seed)
    pool = Pool.random(rng)
    sizes = tuple(int(v) for v in rng.integers(1, 5, len(pool.kernel)))
    g = rng.standard_normal((2, 3, *sizes))
    reach = tuple((n - 1) * s + e for n, s, e in zip(sizes, pool.strides, pool.extent, strict=True))
    expected = np.zeros((2, 3, *reach))
    for at in np.ndindex(*sizes):
        for cell in pool.places(at):
            where = tuple(p + b for p, b in zip(cell, pool.begins, strict=True))
            expected[(..., *where)] += g[(..., *at)]
    np.testing.assert_allclose(spread(g, pool.kernel, pool.strides, pool.dilations), expected, atol=1e-12)


@seeds
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv_transpose_adds_the_kernel_at_every_position(seed: int, groups: int):
    rng = np.random.default_rng(seed)
    pool = Pool.random(rng)
    sizes = tuple(int(v) for v in rng.integers(1, 5, len(pool.kernel)))
    g = rng.standard_normal((3, 6, *sizes))
    weight = rng.standard_normal((6, 2, *pool.kernel))
    reach = tuple((n - 1) * s + e for n, s, e in zip(sizes, pool.strides, pool.extent, strict=True))
    expected = np.zeros((3, 2 * groups, *reach))
    for out, at in itertools.product(range(6), np.ndindex(*sizes)):
        first = out // (6 // groups) * 2
        for cell, seen in zip(np.ndindex(*pool.kernel), pool.places(at), strict=True):
            where = tuple(p + b for p, b in zip(seen, pool.begins, strict=True))
            for channel in range(2):
                expected[(slice(None), first + channel, *where)] += (
                    g[(slice(None), out, *at)] * weight[(out, channel, *cell)]
                )
    found = conv_transpose(g, weight, pool.strides, pool.dilations, groups)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("positions", [(3, 4), (7, 7), (8, 9)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_conv_transpose_of_a_batch_is_that_of_each_row(rows: int, positions: tuple[int, int]):
    rng = np.random.default_rng(0)
    g = rng.standard_normal((rows, 6, *positions)).astype(np.float32)
    weight = rng.standard_normal((6, 5, 3, 2)).astype(np.float32)
    whole = conv_transpose(g, weight, (2, 1), (1, 2), 2)
    for row in {0, rows // 2, rows - 1}:
        alone = conv_transpose(g[row : row + 1], weight, (2, 1), (1, 2), 2)[0]
        np.testing.assert_allclose(whole[row], alone, rtol=1e-4, atol=1e-5)


@seeds
def test_dilate_sets_elements_apart(seed: int):
    rng = np.random.default_rng(seed)
    g = rng.standard_normal(tuple(rng.integers(1, 5, 3)))
    steps = [int(s) for s in rng.choice([-3, -2, -1, 1, 2, 3], 3)]
    reach = [(n - 1) * abs(s) + 1 for n, s in zip(g.shape, steps, strict=True)]
    expected = np.zeros(reach)
    for at in np.ndindex(*g.shape):
        place = (i * s if s > 0 else (i - n + 1) * s for i, s, n in zip(at, steps, g.shape, strict=True))
        expected[tuple(place)] = g[at]
    np.testing.assert_array_equal(dilate(g, steps), expected)


def placed(g: Array, offsets: Sequence[int], sizes: Sequence[int]) -> Array:
    full = np.zeros(sizes)
    for at in np.ndindex(*g.shape):
        place = tuple(i + o for i, o in zip(at, offsets, strict=True))
        if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
            full[place] = g[at]
    return full


@seeds
def test_place_crops_and_pads(seed: int):
    rng = np.random.default_rng(seed)
    g = rng.standard_normal(tuple(rng.integers(1, 6, 3)))
    offsets = [int(o) for o in rng.integers(-7, 8, 3)]
    sizes = [int(n) for n in rng.integers(1, 8, 3)]
    np.testing.assert_array_equal(place(g, offsets, sizes), placed(g, offsets, sizes))


@seeds
def test_place_each_gives_every_row_its_own_offset(seed: int):
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((4, *rng.integers(1, 6, 2)))
    offsets = rng.integers(-7, 8, (4, 2))
    sizes = [int(n) for n in rng.integers(1, 8, 2)]
    expected = np.stack([placed(row, o.tolist(), sizes) for row, o in zip(g, offsets, strict=True)])
    np.testing.assert_array_equal(place_each(g, offsets, (4, *sizes)), expected)


@seeds
@pytest.mark.parametrize("axes", [(2, 3), (1,), (3, 2), (1, 2, 3)], ids=str)
def test_take_cuts_windows_that_may_leave_the_array(seed: int, axes: tuple[int, ...]):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((3, 4, 5, 6))
    rows = rng.integers(0, 3, 5)
    sizes = [int(n) for n in rng.integers(1, 9, len(axes))]
    starts = [rng.integers(-9, 10, 5) for _ in axes]
    shape = list(values.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    expected = np.zeros((5, *shape[1:]))
    for m, *at in np.ndindex(*expected.shape):
        place = [int(rows[m]), *at]
        for axis, start in zip(axes, starts, strict=True):
            place[axis] += int(start[m])
        if all(0 <= p < n for p, n in zip(place, values.shape, strict=True)):
            expected[(m, *at)] = values[tuple(place)]
    np.testing.assert_array_equal(take(values, rows, axes, starts, sizes), expected)


def test_take_without_axes_picks_rows():
    values = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(take(values, np.array([2, 0, 2]), (), (), ()), values[[2, 0, 2]])


@pytest.mark.parametrize(
    "call",
    [
        lambda a: place(a, [1, -1, 0, 2], [3, 4, 5, 6]),
        lambda a: dilate(a, [1, 1, -2, 3]),
        lambda a: spread(a, (2, 2), (1, 2), (1, 1)),
        lambda a: take(a, np.array([0, 1]), (2,), [np.array([-1, 1])], [3]),
        lambda a: place_each(a, np.zeros((2, 3), int), (2, 3, 9, 9)),
        lambda a: conv_transpose(a, np.ones((3, 2, 2, 2)), (1, 2), (1, 1), 1),
    ],
    ids=["place", "dilate", "spread", "take", "place_each", "conv_transpose"],
)
def test_kernels_leave_their_argument_alone(call):
    a = np.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    before = a.copy()
    call(a)
    np.testing.assert_array_equal(a, before)
