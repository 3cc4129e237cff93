"""Exact sums: against math.fsum, in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxviz.forward.exact import PLACES, digits, rounded

HOSTILE = {
    "none": [],
    "zero": [0.0, -0.0],
    "smallest": [2.0**-149] * 3,
    "largest": [float(np.finfo(np.float32).max)] * 5,
    "all of the range": [2.0**-149, float(np.finfo(np.float32).max), -1.0, 2.0**-149],
    "cancelling": [1e30, 1.0, -1e30, 1e-30],
    "negative": [-(2.0**-33), -(2.0**32), -1.5],
    "powers at the digits' ends": [2.0**k for k in range(-149, 128)],
    "just below a digit's end": [
        float(np.nextafter(np.float32(2.0**k), np.float32(0))) for k in range(-96, 97, 32)
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sums_are_exact(name):
    values = np.array(HOSTILE[name], np.float32)[:, None]
    assert rounded(digits(values)).tolist() == [math.fsum(values[:, 0].tolist())]


@pytest.mark.parametrize("seed", range(20))
def test_random_sums_are_exact_in_any_order(seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(300, 4)) * 2.0 ** rng.integers(-140, 120, (300, 4))).astype(np.float32)
    want = [math.fsum(column) for column in values.T.tolist()]
    sums = np.zeros((PLACES, 4), np.int64)
    for rows in np.array_split(rng.permutation(300), rng.integers(1, 40)):
        sums = sums + digits(values[rows])
    assert rounded(sums).tolist() == want


def test_billions_of_numbers_do_not_overflow():
    """2³⁰ times the largest number that a digit holds."""
    one = digits(np.array([[2.0**32 - 256]], np.float32))
    assert rounded(one << 30).tolist() == [(2.0**32 - 256) * 2**30]
