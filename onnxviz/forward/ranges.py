"""Which images of a data set are done: ranges of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["Range", "count", "joined", "missing", "overlaps", "pieces", "shard"]

Range = tuple[int, int]
"""The first number, and the one after the last."""


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same numbers in as few ranges as there can be, in order; empty ones are left out."""
    found: list[Range] = []
    for start, stop in sorted(one for one in ranges if one[0] < one[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


def overlaps(first: Iterable[Range], second: Iterable[Range]) -> tuple[Range, ...]:
    """The numbers that are in both."""
    others = joined(second)
    both = ((max(a, c), min(b, d)) for a, b in joined(first) for c, d in others)
    return joined(both)


def missing(done: Iterable[Range], whole: Range) -> tuple[Range, ...]:
    """The numbers of ``whole`` that are not ``done``."""
    found, at = [], whole[0]
    for start, stop in overlaps(done, [whole]):
        found.append((at, start))
        at = stop
    return joined([*found, (at, whole[1])])


def count(ranges: Iterable[Range]) -> int:
    """How many numbers there are in ranges that do not overlap."""
    return sum(stop - start for start, stop in ranges)


def pieces(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """Ranges cut at every multiple of ``size``, so that where a batch ends does not depend on where a range begins."""
    for start, stop in ranges:
        while start < stop:
            end = min(stop, (start // size + 1) * size)
            yield start, end
            start = end


def shard(total: int, number: int, of: int, size: int) -> Range:
    """The range of shard ``number``, from 1 on, of ``of`` about equally long ones, cut at multiples of ``size``."""
    blocks = -(-total // size)
    first, last = ((blocks * n) // of for n in (number - 1, number))
    return min(first * size, total), min(last * size, total)
