"""Sums that no order of adding changes: of float32 numbers, exact until they are asked for.

A number is split into digits of 32 bits at fixed places (as in Demmel and Nguyen's reproducible summation, but with
every place kept), and the digits of each place are added as integers. So sums of parts can be added in any order, and
are the same to the last bit as one sum over everything.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLACES", "digits", "rounded"]

Array: TypeAlias = NDArray[Any]

_BITS = 32
_LOWEST = -5
_AT_ONCE = 1024
"""Columns that are worked on at once, so that they stay in the cache."""

PLACES = 9
"""Digits of a sum, the lowest first: float32 numbers are multiples of 2⁻¹⁴⁹ below 2¹²⁸, these reach from 2⁻¹⁶⁰ to 2¹²⁸.

Each holds the sums of 2³¹ numbers.
"""


def digits(values: Array) -> Array:
    """The exact sums over the first axis of finite float32 numbers (N, C), N below 2²¹: int64 (PLACES, C).

    Those of several arrays, added up, are those of all their rows together.
    """
    found = np.zeros((PLACES, values.shape[1]), np.int64)
    for start in range(0, values.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        _add(values[:, part], found[:, part])
    return found


def _add(values: Array, found: Array) -> None:
    """Write the sums of some columns into ``found``."""
    rest = values.astype(np.float64)
    largest = max(rest.max(initial=0), -rest.min(initial=0))
    if not largest:
        return
    # No number reaches to a digit above this one.
    place = min(max(math.frexp(largest)[1] // _BITS - _LOWEST, 0), PLACES - 1)
    rest *= 2.0 ** (-_BITS * (place + _LOWEST))
    whole = np.empty_like(rest)
    while True:
        np.trunc(rest, out=whole)
        found[place] = whole.sum(0)
        rest -= whole
        if not place or not rest.any():
            return
        rest *= 2.0**_BITS
        place -= 1


def rounded(sums: Array) -> Array:
    """What sums in digits, (PLACES, C), amount to: float64 (C,), each rounded once."""
    below = 1 << -_BITS * _LOWEST
    return np.array(
        [sum(digit << _BITS * place for place, digit in enumerate(one)) / below for one in sums.T.tolist()],
        np.float64,
    )
