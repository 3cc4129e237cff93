"""Intervals of tensor axes that move with a unit.

Along each axis the unit at ``p`` sees an interval ``[a·p + b, a·p + b + size)``, a `Span`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from onnxviz.model.graph import Shape

__all__ = ["Span", "Spans", "union", "whole"]


@dataclass(frozen=True)
class Span:
    """The interval ``[a·p + b, a·p + b + size)`` of one axis, ``p`` being the unit's coordinate ``coord``.

    With ``coord`` None the interval is fixed: ``[b, b + size)``.
    """

    size: int
    b: int = 0
    a: int = 0
    coord: int | None = None

    def shifted(self, by: int) -> Span:
        """The same interval, moved."""
        return replace(self, b=self.b + by)

    def strided(self, stride: int, extent: int, begin: int) -> Span:
        """What a window of ``extent`` sees that steps by ``stride`` from ``-begin`` on, over this interval."""
        return Span((self.size - 1) * stride + extent, self.b * stride - begin, self.a * stride, self.coord)


Spans: TypeAlias = tuple[Span, ...]


def whole(shape: Iterable[int]) -> Spans:
    """All of a tensor."""
    return tuple(Span(size) for size in shape)


def union(spans: Sequence[Spans], shape: Shape) -> Spans:
    """The least spans that hold all of ``spans``; an axis becomes whole where they move differently."""
    merged = []
    for axis, size in enumerate(shape):
        choices = {s[axis] for s in spans}
        first = next(iter(choices))
        if first.coord is None or any((s.coord, s.a) != (first.coord, first.a) for s in choices):
            merged.append(Span(size))
            continue
        begin = min(s.b for s in choices)
        end = max(s.b + s.size for s in choices)
        span = replace(first, b=begin, size=end - begin)
        merged.append(span if span.size < size else Span(size))
    return tuple(merged)
