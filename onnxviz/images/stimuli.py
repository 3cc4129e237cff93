"""Generated stimuli: the patterns that first layers are known to like, and some that later ones do.

Everything is drawn at the size asked for, antialiased, and the same in every run. Lengths are in pixels of
the network's input, because receptive fields are; what would not fit a small input is left out. Directions
are counter-clockwise from the right, as in mathematics: stripes at 0° lie flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stimulus", "stimuli"]

Field: TypeAlias = NDArray[np.floating[Any]]
"""(H, W): how much of the second colour shows at each pixel, 0..1; or a distance in pixels."""
Colour: TypeAlias = tuple[int, int, int]
Pattern: TypeAlias = Callable[[Field, Field], Field]
"""From all pixels' coordinates x (rightwards) and y (upwards), 0 at the centre, to a `Field` of 0..1."""

DARK, GREY, LIGHT = (36, 36, 36), (128, 128, 128), (220, 220, 220)
RED, GREEN, BLUE, YELLOW = (214, 52, 52), (44, 152, 66), (52, 76, 208), (232, 204, 48)
ORANGE, TEAL, MAGENTA, CYAN = (236, 132, 36), (24, 124, 140), (200, 56, 180), (64, 200, 216)
OPPONENTS: tuple[tuple[str, Colour, Colour], ...] = (
    ("red–green", RED, GREEN),
    ("blue–yellow", BLUE, YELLOW),
    ("orange–teal", ORANGE, TEAL),
)
PLAIN: dict[str, Colour] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": RED,
    "orange": ORANGE,
    "yellow": YELLOW,
    "green": GREEN,
    "cyan": CYAN,
    "blue": BLUE,
    "magenta": MAGENTA,
    "brown": (110, 70, 40),
    "skin": (226, 178, 150),
    "sky": (140, 185, 230),
}


@dataclass(frozen=True)
class Stimulus:
    """A picture that is drawn when asked for: ``draw()`` gives (H, W, 3) RGB uint8."""

    kind: str
    name: str
    draw: Callable[[], NDArray[np.uint8]]


def stimuli(height: int, width: int) -> tuple[Stimulus, ...]:
    """All stimuli for an input of this size, about 200 for 224×224, fewer for small ones."""
    size = min(height, width)
    made = []
    for family in FAMILIES:
        for kind, name, pattern, low, high in family(size):
            made.append(Stimulus(kind, name, _Drawing(height, width, pattern, low, high)))
    made += [
        Stimulus("noise", name, _Noise(height, width, seed, band, colour))
        for seed, (name, band, colour) in enumerate(_noises(size))
    ]
    made += [
        Stimulus("colour", f"plain {name}", _Plain(height, width, colour)) for name, colour in PLAIN.items()
    ]
    return tuple(made)


Row: TypeAlias = tuple[str, str, Pattern, Colour, Colour]


@dataclass(frozen=True)
class _Drawing:
    height: int
    width: int
    pattern: Pattern
    low: Colour
    high: Colour

    def __call__(self) -> NDArray[np.uint8]:
        x = np.arange(self.width, dtype=np.float32) - (self.width - 1) / 2
        y = (self.height - 1) / 2 - np.arange(self.height, dtype=np.float32)
        share = self.pattern(*np.meshgrid(x, y))[..., None]
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        return np.rint(low + (high - low) * share).astype(np.uint8)


@dataclass(frozen=True)
class _Plain:
    height: int
    width: int
    colour: Colour

    def __call__(self) -> NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), self.colour, np.uint8)


@dataclass(frozen=True)
class _Noise:
    """Random noise in a band of spatial frequencies (cycles a pixel), of equal energy in each octave."""

    height: int
    width: int
    seed: int
    band: tuple[float, float]
    colour: bool

    def __call__(self) -> NDArray[np.uint8]:
        planes = 3 if self.colour else 1
        noise = np.random.Generator(np.random.PCG64(self.seed)).random((self.height, self.width, planes))
        frequency = np.hypot(np.fft.fftfreq(self.height)[:, None], np.fft.rfftfreq(self.width))
        inside = (frequency >= self.band[0]) & (frequency <= self.band[1])
        weight = np.where(inside, 1 / np.maximum(frequency, 1 / max(self.height, self.width)), 0)
        spectrum = np.fft.rfft2(noise - 0.5, axes=(0, 1)) * weight[..., None]
        values = np.fft.irfft2(spectrum, s=(self.height, self.width), axes=(0, 1))
        values *= 48 / max(float(values.std()), 1e-9)
        return np.rint(np.clip(128 + values, 0, 255) * np.ones(3)).astype(np.uint8)


def _gratings(size: int) -> Iterator[Row]:
    for period in _lengths(size, (4, 6, 10, 18, 36)):
        for degrees in _turn(8, 180):
            name = f"grating {_degrees(degrees)} {period} px"
            yield "grating", name, _wave(degrees, period), DARK, LIGHT
    for pair, one, other in OPPONENTS:
        for period in _lengths(size, (8, 24)):
            for degrees in _turn(4, 180):
                name = f"{pair} grating {_degrees(degrees)} {period} px"
                yield "colour grating", name, _wave(degrees, period), one, other


def _edges(size: int) -> Iterator[Row]:
    for degrees in _turn(16, 360):
        yield "edge", f"edge {_degrees(degrees)}", _edge(degrees), DARK, LIGHT
    for pair, one, other in OPPONENTS:
        for degrees in _turn(6, 360):
            yield "colour edge", f"{pair} edge {_degrees(degrees)}", _edge(degrees), one, other


def _bars(size: int) -> Iterator[Row]:
    for thickness in _lengths(size, (3, 12)):
        for degrees in _turn(8, 180):
            for tone, ground, paint in (("light", DARK, LIGHT), ("dark", LIGHT, DARK)):
                name = f"{tone} bar {_degrees(degrees)} {thickness} px"
                yield "bar", name, _bar(degrees, thickness), ground, paint


def _spots(size: int) -> Iterator[Row]:
    for diameter in _lengths(size, (5, 12, 28, 64), share=0.6):
        for tone, ground, paint in (("light", DARK, LIGHT), ("dark", LIGHT, DARK)):
            yield "spot", f"{tone} spot {diameter} px", _disc(diameter), ground, paint
    for diameter in _lengths(size, (18, 48), share=0.6):
        for tone, ground, paint in (
            ("red on green", GREEN, RED),
            ("green on red", RED, GREEN),
            ("blue on yellow", YELLOW, BLUE),
            ("yellow on blue", BLUE, YELLOW),
            ("orange on grey", GREY, ORANGE),
            ("magenta on grey", GREY, MAGENTA),
        ):
            yield "colour spot", f"{tone} spot {diameter} px", _disc(diameter), ground, paint
    for spacing in _lengths(size, (8, 16, 32)):
        yield "dots", f"light dots {spacing} px", _dots(spacing), DARK, LIGHT
        yield "dots", f"dark dots {spacing} px", _dots(spacing, staggered=True), LIGHT, DARK
    for spacing in _lengths(size, (14, 28)):
        yield "dots", f"red dots {spacing} px", _dots(spacing), LIGHT, RED
        yield "dots", f"blue dots {spacing} px", _dots(spacing, staggered=True), YELLOW, BLUE


def _curves(size: int) -> Iterator[Row]:
    for radius in _lengths(size, (14, 36), share=0.5):
        for degrees in _turn(8, 360):
            name = f"arc {_degrees(degrees)} radius {radius} px"
            yield "arc", name, _arc(degrees, radius, max(2.5, radius / 6)), DARK, LIGHT
    for diameter in _lengths(size, (12, 32, 90), share=0.8):
        yield "ring", f"ring {diameter} px", _ring(diameter, max(2.0, diameter / 8)), LIGHT, DARK
    for period in _lengths(size, (8, 20)):
        yield "ring", f"rings {period} px", _rings(period), DARK, LIGHT
        yield "ring", f"blue–yellow rings {period} px", _rings(period), BLUE, YELLOW
    for arms in (4, 12):
        yield "radial", f"rays ×{arms}", _spiral(arms, 0), DARK, LIGHT
        yield "radial", f"spiral ×{arms // 2}", _spiral(arms // 2, size / 6), LIGHT, DARK


def _corners(size: int) -> Iterator[Row]:
    for angle, tone, ground, paint in (
        (90, "light", DARK, LIGHT),
        (90, "dark", LIGHT, DARK),
        (45, "light", DARK, LIGHT),
    ):
        for degrees in _turn(4, 360, start=45 if angle == 90 else 0):
            name = f"{tone} corner {angle}° towards {_degrees(degrees)}"
            yield "corner", name, _wedge(degrees, angle), ground, paint
    for arms, name in (((0, 90, 180, 270), "cross"), ((45, 135, 225, 315), "diagonal cross")):
        yield "junction", name, _star(arms, max(3.0, size / 28)), DARK, LIGHT
    for turn in _turn(4, 360):
        name = f"T-junction {_degrees(turn)}"
        yield "junction", name, _star((turn, turn + 90, turn + 180), max(3.0, size / 28)), LIGHT, DARK


def _textures(size: int) -> Iterator[Row]:
    for cell in _lengths(size, (3, 6, 14, 32), share=0.3):
        yield "checker", f"checker {cell} px", _checker(cell, 0), DARK, LIGHT
    for cell in _lengths(size, (8, 20), share=0.3):
        yield "checker", f"diamond checker {cell} px", _checker(cell, 45), DARK, LIGHT
        yield "checker", f"red–green checker {cell} px", _checker(cell, 0), RED, GREEN
        yield "checker", f"blue–yellow checker {cell} px", _checker(cell, 45), BLUE, YELLOW
    for cell in _lengths(size, (9, 24), share=0.3):
        yield "mesh", f"light mesh {cell} px", _mesh(cell, 0, max(1.5, cell / 6)), DARK, LIGHT
        yield "mesh", f"dark mesh 45° {cell} px", _mesh(cell, 45, max(1.5, cell / 6)), LIGHT, DARK
    for degrees in _turn(4, 360):
        yield (
            "gradient",
            f"gradient towards {_degrees(degrees)}",
            _gradient(degrees, size),
            (0, 0, 0),
            (255, 255, 255),
        )
    yield "gradient", "sky over earth", _gradient(270, size), PLAIN["sky"], PLAIN["brown"]
    yield "gradient", "glow", _glow(size), (30, 10, 60), (255, 214, 120)


FAMILIES: tuple[Callable[[int], Iterator[Row]], ...] = (
    _gratings,
    _edges,
    _bars,
    _spots,
    _curves,
    _corners,
    _textures,
)


def _noises(size: int) -> Iterator[tuple[str, tuple[float, float], bool]]:
    for colour, prefix in ((False, ""), (True, "colour ")):
        yield f"{prefix}noise, all scales", (0, 1), colour
        for low, high in ((3, 6), (8, 16), (20, 40)):
            if high <= size:
                yield f"{prefix}noise {low}–{high} px", (1 / high, 1 / low), colour


def _wave(degrees: float, period: float) -> Pattern:
    return lambda x, y: 0.5 + 0.5 * np.cos(2 * np.pi / period * _across(x, y, degrees))


def _edge(degrees: float) -> Pattern:
    """Light lies towards ``degrees``."""
    return lambda x, y: _cover(-_along(x, y, degrees))


def _bar(degrees: float, thickness: float) -> Pattern:
    return lambda x, y: _cover(np.abs(_across(x, y, degrees)) - thickness / 2)


def _disc(diameter: float) -> Pattern:
    return lambda x, y: _cover(np.hypot(x, y) - diameter / 2)


def _ring(diameter: float, thickness: float) -> Pattern:
    return lambda x, y: _cover(np.abs(np.hypot(x, y) - diameter / 2) - thickness / 2)


def _rings(period: float) -> Pattern:
    return lambda x, y: 0.5 + 0.5 * np.cos(2 * np.pi / period * np.hypot(x, y))


def _spiral(arms: int, pitch: float) -> Pattern:
    """Rays if the pitch (pixels from an arm to the next, along a ray) is 0."""
    turn = 2 * np.pi / pitch if pitch else 0.0
    return lambda x, y: 0.5 + 0.5 * np.cos(arms * np.arctan2(y, x) + turn * np.hypot(x, y))


def _arc(degrees: float, radius: float, thickness: float) -> Pattern:
    """Half a circle through the centre of the frame, bulging towards ``degrees``."""

    def draw(x: Field, y: Field) -> Field:
        along = _along(x, y, degrees) + radius / 2
        ring = np.abs(np.hypot(along, _across(x, y, degrees)) - radius) - thickness / 2
        return _cover(np.maximum(ring, -along))

    return draw


def _wedge(degrees: float, angle: float) -> Pattern:
    """All between two rays from the centre, ``angle`` apart, about ``degrees``."""
    return lambda x, y: _cover(
        np.maximum(-_across(x, y, degrees - angle / 2), _across(x, y, degrees + angle / 2))
    )


def _star(directions: tuple[float, ...], thickness: float) -> Pattern:
    def draw(x: Field, y: Field) -> Field:
        distances = [
            np.hypot(np.minimum(_along(x, y, degrees), 0), _across(x, y, degrees)) for degrees in directions
        ]
        return _cover(np.minimum.reduce(distances) - thickness / 2)

    return draw


def _dots(spacing: float, staggered: bool = False) -> Pattern:
    def draw(x: Field, y: Field) -> Field:
        row = np.floor(y / spacing)
        shift = spacing / 2 * (row % 2) if staggered else 0.0
        u = (x + shift) % spacing - spacing / 2
        v = y % spacing - spacing / 2
        return _cover(np.hypot(u, v) - spacing / 3.6)

    return draw


def _checker(cell: float, degrees: float) -> Pattern:
    def draw(x: Field, y: Field) -> Field:
        u, v = _square(_along(x, y, degrees), cell), _square(_across(x, y, degrees), cell)
        return u + v - 2 * u * v

    return draw


def _mesh(cell: float, degrees: float, thickness: float) -> Pattern:
    def draw(x: Field, y: Field) -> Field:
        u = np.abs(_along(x, y, degrees) % cell - cell / 2)
        v = np.abs(_across(x, y, degrees) % cell - cell / 2)
        return _cover(np.minimum(u, v) - thickness / 2)

    return draw


def _gradient(degrees: float, size: float) -> Pattern:
    return lambda x, y: np.clip(0.5 + _along(x, y, degrees) / size, 0, 1)


def _glow(size: float) -> Pattern:
    return lambda x, y: np.exp(-np.square(np.hypot(x, y) / (0.3 * size)))


def _square(u: Field, cell: float) -> Field:
    """A square wave of stripes ``cell`` wide, 0..1, antialiased."""
    return _cover(np.abs(u % (2 * cell) - cell) - cell / 2)


def _along(x: Field, y: Field, degrees: float) -> Field:
    angle = np.deg2rad(degrees)
    return x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))


def _across(x: Field, y: Field, degrees: float) -> Field:
    return _along(x, y, degrees + 90)


def _cover(distance: Field) -> Field:
    """How much of a pixel lies inside a shape, from the pixel's signed distance to its outline."""
    cover: Field = np.clip(0.5 - distance, 0, 1)
    return cover


def _turn(count: int, full: float, start: float = 0) -> tuple[float, ...]:
    return tuple(start + full * index / count for index in range(count))


def _degrees(degrees: float) -> str:
    return f"{degrees % 360:g}°"


def _lengths(size: int, pixels: tuple[int, ...], share: float = 0.25) -> tuple[int, ...]:
    """Those lengths that fit ``share`` of the frame."""
    return tuple(length for length in pixels if length <= share * size)
