"""From an encoded image to a picture, with Pillow; whatever goes wrong there becomes an `ImageError`."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from onnxviz.errors import ImageError

__all__ = [
    "MIRRORED",
    "SIDEWAYS",
    "SUFFIXES",
    "UPSIDE_DOWN",
    "Picture",
    "decode",
    "opened",
    "orientation",
    "pixels",
    "quiet",
    "upright",
]

Picture: TypeAlias = NDArray[Any]
"""``(H, W, C)`` uint8 with C of 1 (grey) or 3 (RGB); from array files also float32 or any C."""

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".avif"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""File name endings that count as images, in lower case."""

# Named, so that a file whose ending lies never reaches a decoder that runs other programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM")

# EXIF orientation (TIFF tag 274) → what undoes it.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS, MIRRORED, UPSIDE_DOWN = frozenset({5, 6, 7, 8}), frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
"""Orientations of which, once upright, the width is the stored height; the left edge was the right or bottom one; the
top edge was the bottom or right one."""


def decode(data: bytes, name: str) -> Picture:
    """Decode an image's bytes to ``(H, W, 1)`` grey, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA uint8.

    The EXIF orientation is applied, palettes, CMYK and the like become RGB, 16 bits become 8, and of an
    animation the first frame is taken. Transparent grey is composited on white; transparent colour keeps its
    alpha, for networks that take it (`Preprocess` composites it for all others).

    Raises:
        ImageError: the bytes are no image that can be read, or one of more pixels than Pillow's
            ``Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    with opened(data, name) as image:
        image.load()
        return pixels(upright(image), name)


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image whose header is read; what goes wrong with it in the ``with`` block becomes an `ImageError`.

    Raises:
        ImageError: as `decode`.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=_formats()) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                size = f"{image.width}×{image.height}"
                raise ImageError(f"{name}: {size} pixels, more than the {limit:,} allowed; shrink it first")
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels ({error}); shrink it first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a known format") from error
    except Exception as error:  # Pillow's parsers raise whatever a broken file makes them stumble over
        raise ImageError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def pixels(image: Image.Image, name: str) -> Picture:
    """The pixels of a loaded image of any mode, as `decode` gives them.

    Raises:
        ImageError: they have no fixed range.
    """
    if image.mode == "F":
        raise ImageError(
            f"{name}: floating-point pixels have no fixed range; save them as 8 bits, or as .npy"
        )
    if image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: grey values {values.min()} to {values.max()} do not fit into 16 bits")
        return ((values * 255 + 32767) // 65535).astype(np.uint8)[:, :, None]
    if image.has_transparency_data:
        if image.mode in ("L", "LA", "La"):
            image = image.convert("LA")
            canvas = Image.new("L", image.size, "white")
            canvas.paste(image.getchannel("L"), mask=image.getchannel("A"))
            image = canvas
        else:
            image = image.convert("RGBA")
    elif image.mode in ("1", "L", "LA", "La"):
        image = image.convert("L")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def upright(image: Image.Image) -> Image.Image:
    """The loaded image, turned as its EXIF orientation says."""
    turn = UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; broken EXIF data does not spoil a good picture, it counts as upright."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filter: tuple[Any, ...] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of Pillow and NumPy about the file at hand, from any number of threads at once.

    Those about the header of an array, which is Python text, come from a file that is called ``<unknown>``.

    `warnings.catch_warnings` restores the whole list of filters and is not safe in threads; this counts its
    users, and the last one takes back the one filter that the first one put in.
    """
    global _quiet_users, _quiet_filter
    with _quiet_lock:
        _quiet_users += 1
        if _quiet_users == 1:
            warnings.filterwarnings("ignore", module=r"(PIL|numpy)\b|<unknown>")
            _quiet_filter = warnings.filters[0]
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0 and _quiet_filter in warnings.filters:
                warnings.filters.remove(_quiet_filter)  # type: ignore[attr-defined]
