"""From arrays to pictures: projections, activation maps, crops, sprites and montages, all uint8."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onnxviz.files import writing
from onnxviz.images.fitting import inscribed

__all__ = [
    "MAT",
    "OUTSIDE",
    "PALETTE",
    "alike",
    "captioned",
    "crop",
    "encode",
    "fit",
    "grid",
    "heatmap",
    "montage",
    "projection_limit",
    "projection_rgb",
    "resize_map",
    "save",
]

Array = NDArray[Any]
GREY = 128
# Share of a projection's values that is clipped. In deep layers a handful is 5 to 10 times as strong as
# all others (SqueezeNet's fire9); scaled by its maximum such a projection is an empty grey.
SATURATED = 0.005


def projection_limit(p: Array, saturated: float = SATURATED) -> float:
    """The value that `projection_rgb` draws at full contrast: of |p| > 0 a share ``saturated`` is larger.

    With a share of 0, and where values are few, it is max |p|. Zeros do not count, so a projection has the
    same limit in its receptive field and on the whole frame.
    """
    return _limit(np.abs(finite(p)), saturated)


def _limit(sizes: Array, saturated: float) -> float:
    values = sizes.ravel(order="K")
    count = np.count_nonzero(values > 0)  # of truth values it is four times as fast
    return float(_largest(values, int(saturated * count))) if count else 0.0


def finite(values: Array, axes: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """Values as float32 that can be drawn: what is no number is 0, and infinity the largest of the others.

    ``axes`` are those of one picture, where there are several: each has a largest value of its own.
    """
    values = np.asarray(values, np.float32)
    fine = np.isfinite(values)
    if fine.all():
        return values
    most = np.abs(np.where(fine, values, np.float32(0))).max(axis=axes, keepdims=True, initial=0)
    most[most == 0] = 1
    infinite = np.copysign(most, values)
    drawn: NDArray[np.float32] = np.where(np.isnan(values), np.float32(0), np.where(fine, values, infinite))
    return drawn


def _largest(values: Array, rank: int) -> Any:
    """Of values (n,) the one that ``rank`` others exceed, for a small rank."""
    heads = values[: values.size - values.size % 16].reshape(16, -1).max(axis=0)
    if rank < heads.size:
        # So many heads are this large: only values that are, too, can come before it. A whole partition is slow.
        values = values[values >= np.partition(heads, heads.size - 1 - rank)[heads.size - 1 - rank]]
    return np.partition(values, values.size - 1 - rank)[values.size - 1 - rank]


def projection_rgb(p: Array, largest: float | None = None) -> NDArray[np.uint8]:
    """Signed projections (…, H, W, 3 or 1) as (…, H, W, 3): zero is exactly 128, ±``largest`` is 128 ± 127.

    ``largest`` defaults to `projection_limit`, of each its own; give one to draw several on a common scale. Values
    beyond are clipped. All zeros are plain grey, as is what is no number.
    """
    values = finite(p, (-3, -2, -1))
    peaks = np.full((*values.shape[:-3], 1, 1, 1), largest or 0, np.float32)
    if largest is None:
        sizes = np.abs(values)
        for index in np.ndindex(values.shape[:-3]):
            peaks[index] = _limit(sizes[index], SATURATED)
    scaled = _shares(values, peaks)
    np.clip(scaled, -1, 1, out=scaled)
    scaled *= 127
    scaled += GREY
    np.rint(scaled, out=scaled)
    pixels = np.empty((*scaled.shape[:-1], 3), np.uint8)
    # One colour after the other: planes lie apart, and a copy of all at once takes six times as long.
    for colour in range(3):
        pixels[..., colour] = scaled[..., colour % scaled.shape[-1]]
    return pixels


def heatmap(a: Array, largest: float | None = None) -> NDArray[np.uint8]:
    """Activation maps (…, h, w) as colours of `PALETTE`: 0 and less is darkest, ``largest`` brightest.

    ``largest`` defaults to each map's maximum.
    """
    values = finite(a, (-2, -1))
    peaks = values.max(axis=(-2, -1), keepdims=True, initial=0) if largest is None else largest
    share = _shares(values, peaks)
    np.clip(share, 0, 1, out=share)
    share *= _BRIGHTEST
    return np.rint(share, out=share).astype(np.uint8)


def _shares(values: Array, peaks: Array | float) -> NDArray[np.float32]:
    """Values (…) over the peaks that they are drawn with. Where there is no peak no value is above 0."""
    peaks = np.asarray(peaks, np.float32)
    return np.divide(values, np.where(peaks > 0, peaks, np.float32(1)), dtype=np.float32)


def crop(picture: Array, box: tuple[int, int, int, int], fill: float = GREY) -> Array:
    """The box (top, left, bottom, right) of a picture or map (H, W, …), ``fill`` where it is outside."""
    top, left, bottom, right = box
    height, width = picture.shape[:2]
    out = np.full((bottom - top, right - left, *picture.shape[2:]), fill, picture.dtype)
    inside = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    if top < height and left < width:
        out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out


def place_on_frame(p: Array, box: tuple[int, int, int, int], frame: tuple[int, int]) -> Array:
    """A projection (h, w, C) over ``box`` on the whole frame (H, W, C), zero elsewhere."""
    top, left, _, _ = box
    return crop(p, (-top, -left, frame[0] - top, frame[1] - left), fill=0)


def outlined(picture: Array, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with the box (top, left, bottom, right) drawn on it, as far as it is inside."""
    height, width = picture.shape[:2]
    top, left, bottom, right = box
    inside = (max(left, 0), max(top, 0), min(right, width) - 1, min(bottom, height) - 1)
    image = _image(picture)
    draw = ImageDraw.Draw(image)
    draw.rectangle(inside, outline=(0, 0, 0), width=3)
    draw.rectangle(inside, outline=(255, 214, 10), width=2)
    return np.asarray(image)


def resize_map(
    a: Array,
    frame: tuple[int, int],
    stride: tuple[float, float] | None,
    offset: tuple[float, float] = (0.0, 0.0),
    field: tuple[float, float] = (1.0, 1.0),
) -> Array:
    """Maps (…, h, w) on the input's frame (…, H, W), each unit a cell about the centre of its receptive field.

    Unit p sees the interval [stride·p + offset, stride·p + offset + field) on each axis (y, x), in input
    pixels. The outermost cells reach to the border. With no stride, or a single unit on an axis, the cells
    share the axis evenly.
    """
    steps = stride or (0.0, 0.0)
    rows = _cells(a.shape[-2], frame[0], steps[0], offset[0], field[0])
    columns = _cells(a.shape[-1], frame[1], steps[1], offset[1], field[1])
    # Columns first: rows are then copied whole.
    return a.take(columns, axis=-1).take(rows, axis=-2)


def fit(picture: Array, tile: int) -> NDArray[np.uint8]:
    """Shrink a picture (H, W, C) uint8 by area until no side exceeds ``tile``; smaller ones stay the same.

    Slivers are stretched (`fitting.inscribed`).
    """
    height, width = inscribed(picture.shape[:2], min(tile, max(picture.shape[:2])))
    if picture.shape[:2] == (height, width):
        return picture
    pixels = np.asarray(_image(picture).resize((width, height), Image.Resampling.BOX))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def grid(
    tiles: Sequence[Array], columns: int, gap: int = 0, fill: int = GREY, rows: int | None = None
) -> Array:
    """Tiles (h, w, 1 or 3) uint8 of one size, row by row in one picture (H, W, 3).

    ``fill`` shows in the gaps and where tiles are missing; ``rows`` asks for more rows than they need.
    """
    shape = {tile.shape[:2] for tile in tiles}
    if len(shape) != 1:
        raise ValueError(f"tiles of one size are expected, found {sorted(shape)}")
    ((height, width),) = shape
    lines = max(math.ceil(len(tiles) / columns), rows or 0)
    out = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, 3), fill, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        out[y : y + height, x : x + width] = tile
    return out


def encode(picture: Array, kind: str, *, lossless: bool = False, quality: int = 80) -> bytes:
    """A picture (H, W, 1 or 3) uint8, or (H, W) colours of `PALETTE`, as the bytes of a "webp", "png" or "jpeg" file.

    ``lossless`` is for small pictures that are shown pixel by pixel (WebP; PNG always is, JPEG never). JPEG keeps
    the colour of every pixel, as a projection's fine structure is one of colours; not so of a `PALETTE`, which has
    its structure in the lightness. It takes a fifth of the time of WebP.
    """
    file = io.BytesIO()
    _encode(picture, file, kind, lossless, quality)
    return file.getvalue()


def _encode(picture: Array, file: IO[bytes], kind: str, lossless: bool, quality: int) -> None:
    options: dict[str, dict[str, Any]] = {
        "webp": {"lossless": lossless, "quality": 75 if lossless else quality, "method": 2},
        "png": {"compress_level": 3},
        "jpeg": {"quality": quality, "subsampling": 0 if picture.ndim == 3 else 2},
    }
    image = _image(picture)
    if image.mode == "P" and kind != "png":
        image = image.convert("RGB")
    image.save(file, kind.upper(), **options[kind])


def save(picture: Array, path: Path, *, lossless: bool = False, quality: int = 80) -> None:
    """Write a picture as the format that the file's ending names: .webp, .png or .jpg; no half of one is left."""
    kind = path.suffix.lower().removeprefix(".").replace("jpg", "jpeg")
    partial = path.with_name(f".part-{path.name}")
    with writing(path):
        try:
            # Straight into the file: meanwhile other threads can go on, which wait while Pillow encodes in memory.
            with open(partial, "wb") as file:  # noqa: PTH123 (as below)
                _encode(picture, file, kind, lossless, quality)
            os.replace(partial, path)  # noqa: PTH105 (Path.replace builds a new Path a file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def alike(cards: Sequence[Array], height: int) -> list[Array]:
    """Cards (h, w, 3) made one size, filled up with grey, and enlarged to about ``height`` where they are smaller."""
    most, width = (max(card.shape[axis] for card in cards) for axis in (0, 1))
    zoom = max(1, round(height / most))
    filled = []
    for card in cards:
        sheet = np.full((most, width, 3), GREY, np.uint8)
        sheet[: card.shape[0], : card.shape[1]] = card
        filled.append(sheet.repeat(zoom, 0).repeat(zoom, 1))
    return filled


def montage(
    cards: Sequence[Array], names: Sequence[str], columns: int | None = None, gap: int = 12
) -> NDArray[np.uint8]:
    """Cards (h, w, 1 or 3) uint8 of one size on white, each under its name, as one picture of about 4:3."""
    height, width = cards[0].shape[:2]
    font = ImageFont.load_default()
    _, above, _, below = font.getbbox("Ag0")
    line = math.ceil(below - min(above, 0)) + 3
    if columns is None:
        columns = _landscape(len(cards), (height + line + gap) / (width + gap))
    labelled = []
    for card, name in zip(cards, names, strict=True):
        canvas = Image.new("RGB", (width, height + line), "white")
        ImageDraw.Draw(canvas).text((0, 0), name, fill=(32, 32, 32), font=font)
        canvas.paste(_image(card), (0, line))
        labelled.append(np.asarray(canvas))
    sheet = grid(labelled, columns, gap=gap, fill=255)
    return np.pad(sheet, ((gap, gap), (gap, gap), (0, 0)), constant_values=255)


def captioned(picture: Array, lines: Sequence[str], size: int = 24, gap: int = 12) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with lines of text below it, on white; lines that are too long are wrapped at words."""
    font = ImageFont.load_default(size)
    width = picture.shape[1]
    wrapped: list[str] = []
    for text in lines:
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width - 2 * gap:
                wrapped.append(line)
                longer = word
            line = longer
        wrapped.append(line)
    step = math.ceil(1.35 * size)
    canvas = Image.new("RGB", (width, picture.shape[0] + step * len(wrapped) + gap), "white")
    canvas.paste(_image(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(wrapped):
        draw.text((gap, picture.shape[0] + number * step), line, fill=(32, 32, 32), font=font)
    return np.asarray(canvas)


def _landscape(count: int, aspect: float, target: float = 4 / 3) -> int:
    """How many columns of cells, ``aspect`` times as high as wide, make a sheet nearest to ``target``:1."""
    return min(
        range(1, count + 1),
        key=lambda columns: abs(math.log(columns / (math.ceil(count / columns) * aspect * target))),
    )


@lru_cache(4096)
def _cells(count: int, pixels: int, stride: float, offset: float, field: float) -> NDArray[np.intp]:
    """For each input pixel on an axis the unit whose cell covers it. Not to be changed: it is kept."""
    centres = np.arange(pixels) + 0.5
    if count == 1 or stride <= 0:
        return np.minimum(centres * count / pixels, count - 1).astype(np.intp)
    nearest: NDArray[np.intp] = np.floor((centres - offset - field / 2) / stride + 0.5).astype(np.intp)
    return np.clip(nearest, 0, count - 1)


def _image(picture: Array) -> Image.Image:
    if picture.ndim == 2:
        image = Image.fromarray(np.ascontiguousarray(picture))
        image.putpalette(PALETTE.tobytes())
        return image
    return Image.fromarray(np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture))


def _ramp(count: int) -> NDArray[np.uint8]:
    """Colours (count, 3), dark blue over rose to pale yellow, of evenly rising lightness.

    Drawn in OKLCh (Björn Ottosson, 2020), where lightness L is what the eye sees: L from 0.13 to 0.96, the
    hue turning from 285° up to 465° (105°), the chroma an arc kept inside sRGB.
    """
    t = np.linspace(0, 1, count)
    lightness = 0.13 + 0.83 * t
    hue = np.deg2rad(285 + 180 * t)
    chroma = 0.05 + 0.15 * np.sin(np.pi * np.clip(t, 0, 1)) ** 0.8
    for _ in range(200):  # less chroma wherever a channel leaves 0..1
        linear = _oklab_to_linear(lightness, chroma * np.cos(hue), chroma * np.sin(hue))
        outside = ((linear < 0) | (linear > 1)).any(axis=1)
        if not outside.any():
            break
        chroma = np.where(outside, chroma * 0.98, chroma)
    chroma = np.convolve(np.pad(chroma, 12, mode="edge"), np.full(25, 1 / 25), mode="valid")  # no kinks
    linear = np.clip(_oklab_to_linear(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), 0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    ramp: NDArray[np.uint8] = np.rint(255 * gamma).astype(np.uint8)
    return ramp


def _oklab_to_linear(lightness: Array, a: Array, b: Array) -> Array:
    """Linear sRGB (n, 3) of OKLab colours, by the matrices of OKLab's definition."""
    roots: Array = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear: Array = roots**3 @ to_rgb.T
    return linear


_BRIGHTEST, OUTSIDE, MAT = 253, 254, 255
PALETTE = np.concatenate([_ramp(_BRIGHTEST + 1), np.array([[GREY] * 3, [29, 30, 33]], np.uint8)])
"""The colours (256, 3) of activation maps: the ramp, then `OUTSIDE` the image, and the report's dark `MAT`."""
