"""How pictures of any shape are fitted into square tiles."""

from __future__ import annotations

__all__ = ["SLENDEREST", "inscribed"]

SLENDEREST = 6
"""How many times longer than wide a picture is drawn at most."""


def inscribed(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The largest (height, width) of the same shape in a square; slivers, such as signals, are stretched."""
    larger = max(size)
    height, width = (max(side // SLENDEREST, 1, round(n * side / larger)) for n in size)
    return height, width
