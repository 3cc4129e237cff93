"""Numbers, dates and addresses as people and browsers read them: the filters of the templates."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from onnxviz.images.fitting import SLENDEREST

__all__ = ["Place", "bars", "date", "integer", "number", "part", "percent", "place", "size", "url"]


class Place(NamedTuple):
    """A rectangle in percent of the picture it is drawn on."""

    top: float
    left: float
    width: float
    height: float

    def style(self, name: str) -> str:
        """The style properties that carry it: ``--bt``, ``--bl``, ``--bw`` and ``--bh`` where the name is b."""
        top, left, width, height = self
        return f"--{name}t:{top:.2f}%;--{name}l:{left:.2f}%;--{name}w:{width:.2f}%;--{name}h:{height:.2f}%"


def number(value: float) -> str:
    """Format with four significant digits and thousands separated; ``n/a`` for what is no number."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e7:
        return integer(int(value))
    if 1e-3 <= abs(value) < 1e7:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
    else:
        mantissa, exponent = f"{value:.3e}".split("e")
        text = mantissa + "×10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return text.replace("-", "−")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def integer(value: int) -> str:
    """Format a count with its thousands separated."""
    return f"{value:,}".replace("-", "−")


def percent(share: float) -> str:
    """Format a share of 0..1; only an exact 0 or 1 reads as 0 % or 100 %."""
    if math.isnan(share):
        return "n/a"
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    value = 100 * share
    text = f"{value:.1f}" if value < 10 else f"{value:.0f}" if value < 99.5 else f"{value:.1f}"
    return text.removesuffix(".0") + " %"


def size(lengths: Sequence[int]) -> str:
    """Join lengths with ×; an empty size is a vector."""
    return "×".join(integer(n) for n in lengths) if lengths else "vector"


def date(stamp: str) -> str:
    """Format an ISO 8601 date for people: 22 November 2025, 14:43 UTC."""
    when = datetime.fromisoformat(stamp)
    # Not strftime's %B: the month must not change with the locale.
    month = _MONTHS[when.month - 1]
    zone = (when.tzname() or "").replace("UTC+00:00", "UTC")
    return f"{when.day} {month} {when.year}, {when:%H:%M} {zone}".rstrip()


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def url(path: str, root: str) -> str:
    """Quote a path relative to the report's folder, as seen from a page that is ``root`` away from it.

    Raises ValueError for a path that leaves the folder.
    """
    if path.startswith("/") or "\\" in path or ".." in posixpath.normpath(path).split("/"):
        raise ValueError(f"picture {path!r}: expected a path inside the report's folder, with /")
    return root + quote(path, errors="surrogateescape")


@lru_cache(4096)  # units of a layer are few, and many of its hits are in the same one
def place(box: tuple[int, int, int, int], frame: tuple[int, int], tile: tuple[int, int]) -> Place:
    """Place a receptive field, clipped at the frame, on a tile that shows the whole frame centred.

    ``box`` is (top, left, bottom, right) in input pixels, ``frame`` and ``tile`` are (height, width).
    """
    scale = min(tile[0] / frame[0], tile[1] / frame[1])
    drawn = [max(f * scale, min(tile) / SLENDEREST) for f in frame]
    down, across = (d / f for d, f in zip(drawn, frame, strict=True))
    offset = [(t - d) / 2 for t, d in zip(tile, drawn, strict=True)]
    top, bottom = (offset[0] + down * min(max(v, 0), frame[0]) for v in (box[0], box[2]))
    left, right = (offset[1] + across * min(max(v, 0), frame[1]) for v in (box[1], box[3]))
    return Place(
        100 * top / tile[0],
        100 * left / tile[1],
        100 * (right - left) / tile[1],
        100 * (bottom - top) / tile[0],
    )


def bars(counts: Sequence[int]) -> str:
    """The bars of a histogram as the data of an SVG path: together 320 wide, up to 64 high, on a line at 66."""
    tallest, width = max(counts), 320 / len(counts)
    heights = [max(1.5, 64 * count / tallest) if count else 0 for count in counts]
    return "".join(
        f"M{index * width:.1f} 66v-{height:.1f}h{width - 0.8:.1f}v{height:.1f}z"
        for index, height in enumerate(heights)
        if height
    )


@lru_cache(4096)
def part(box: tuple[int, int, int, int], frame: tuple[int, int]) -> Place:
    """Place a receptive field on a picture of the whole frame, beyond its edges too; arguments as of `place`."""
    top, left, bottom, right = box
    height, width = frame
    return Place(
        100 * top / height, 100 * left / width, 100 * (right - left) / width, 100 * (bottom - top) / height
    )
