"""Ranges of numbers, against sets of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from onnxviz.forward import ranges


def _numbers(some):
    return {n for start, stop in some for n in range(start, stop)}


def _random(rng):
    return [tuple(sorted(rng.integers(0, 60, 2).tolist())) for _ in range(rng.integers(0, 6))]


@pytest.mark.parametrize("seed", range(50))
def test_ranges_are_sets(seed):
    rng = np.random.default_rng(seed)
    one, other = _random(rng), _random(rng)
    joined = ranges.joined(one)
    assert _numbers(joined) == _numbers(one)
    assert all(a[1] < b[0] for a, b in pairwise(joined))
    assert _numbers(ranges.overlaps(one, other)) == _numbers(one) & _numbers(other)
    whole = (int(rng.integers(0, 20)), int(rng.integers(20, 70)))
    assert _numbers(ranges.missing(one, whole)) == set(range(*whole)) - _numbers(one)
    assert ranges.count(joined) == len(_numbers(one))


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_pieces_end_at_multiples(size):
    some = [(3, 9), (12, 12), (14, 40)]
    pieces = list(ranges.pieces(some, size))
    assert [n for start, stop in pieces for n in range(start, stop)] == [*range(3, 9), *range(14, 40)]
    ends = {9, 40}
    assert all(stop % size == 0 or stop in ends for _, stop in pieces)
    assert all(start // size == (stop - 1) // size for start, stop in pieces)


@pytest.mark.parametrize(
    ("total", "of", "size"), [(100, 16, 1), (100, 3, 8), (1000, 7, 32), (5, 9, 1), (0, 3, 4)]
)
def test_shards_share_everything_out_evenly(total, of, size):
    shards = [ranges.shard(total, number, of, size) for number in range(1, of + 1)]
    assert [n for start, stop in shards for n in range(start, stop)] == list(range(total))
    assert all(start % size == 0 for start, stop in shards if start < stop)
    lengths = [stop - start for start, stop in shards]
    assert max(lengths) - min(lengths) <= 2 * size
