"""From a picture to the network's input and back, and where that recipe comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxviz.errors import ImageError, UsageError
from onnxviz.images.decode import (
    MIRRORED,
    SIDEWAYS,
    UPSIDE_DOWN,
    Picture,
    opened,
    orientation,
    pixels,
    upright,
)

__all__ = ["PRESETS", "Preprocess", "from_json", "resolve_preprocess"]

DEFAULT_SIZE = 224  # where neither the model nor anybody says: what most ImageNet networks take
LARGEST_SIZE = 16_384  # pixels a side
KEYS = ("preset", "size", "resize", "crop_fraction", "order", "scale", "mean", "std")
_OUTSIDE = 16
"""How far beyond 0–255 values may reach and still be a picture's, rounding and overshoot aside."""

_SHORTEST = 16

_DRAFTED = ("JPEG", "MPO")
"""Formats that can be decoded at a part of their size."""
_SPARE = 1.5
"""How many times larger than needed a picture is still decoded: what shrinks it is not the same as libjpeg's."""

_GUESS = "guessed from the input's shape"

RESIZE = {"crop": "centre crop", "stretch": "stretched", "pad": "padded"}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "imagenet": {
            "order": "rgb",
            "scale": 1 / 255,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
        "caffe": {"order": "bgr", "mean": (103.939, 116.779, 123.68)},
        "tf": {"scale": 1 / 127.5, "mean": (1.0,)},
        "unit": {"scale": 1 / 255},
        "raw": {},
    }
)
"""Named recipes, in the terms of `Preprocess`: PyTorch's, Caffe's, TensorFlow's −1 to 1, 0 to 1, 0 to 255."""


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input: resized, channels ordered, then (x · scale − mean) / std.

    ``order`` is "rgb", "bgr" (with four channels, alpha comes last), "gray" for one channel, or "any" for
    other numbers of channels, each of which gets the picture's luminance. ``resize`` is "crop" (the centre
    ``crop_fraction`` of the picture's shorter side), "stretch", or "pad" (with what the network sees as 0).
    ``mean`` and ``std`` have one value a channel, in the network's order. Calls are safe in threads.
    """

    height: int
    width: int
    channels: int
    layout: str
    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str
    scale: float = 1.0
    resize: str = "crop"
    crop_fraction: float = 1.0

    @property
    def guessed(self) -> bool:
        """Whether nothing but the input's shape speaks for it."""
        return self.origin.startswith(_GUESS)

    def __call__(self, picture: Picture) -> NDArray[np.float32]:
        """The network's values for one picture: (C, H, W) float32, channels first whatever the layout.

        ``picture`` is (h, w, C) uint8 of any size, grey, RGB or RGBA (transparency shows white), or with as
        many channels as the network. Floating-point arrays of the network's own shape, (C, H, W) or
        (H, W, C), are used as they are.

        Raises:
            ImageError: an array of another shape or type. The message does not name the image.
        """
        if picture.dtype != np.uint8:
            return self._own_values(picture)
        if picture.ndim != 3 or 0 in picture.shape:
            raise ImageError(f"an array of shape {picture.shape} is no picture (height, width, channels)")
        size, box = self._fitted(picture.shape[0], picture.shape[1])
        return self._framed(_resized(self._channels(picture), size, box))

    def decode(self, data: bytes, name: str) -> NDArray[np.float32]:
        """The network's values for an encoded image: as called with `decode.decode`'s picture, in less time.

        A JPEG is decoded at half or a quarter of its size where that leaves `_SPARE` times what is needed, and is then
        shrunk as others are: libjpeg works out no more pixels than that. On photographs (the built-in ones) the mean
        difference to decoding all of it is 0.2 to 0.9 of 255, on the worst of them 1.7, in a single pixel 17.

        Raises:
            ImageError: it cannot be decoded, or does not suit the network.
        """
        with opened(data, name) as image:
            if image.format not in _DRAFTED:
                image.load()
            turned = orientation(image)
            width, height = image.size[::-1] if turned in SIDEWAYS else image.size
            size, (left, top, right, bottom) = self._fitted(height, width)
            spare = min((right - left) / size[1], (bottom - top) / size[0]) / _SPARE
            smaller = next((n for n in (4, 2) if n <= spare), 1)
            image.draft(None, (image.width // smaller, image.height // smaller))
            image.load()
            image = upright(image)
            # A picture that is no whole number of blocks large has more than itself at its last edges.
            x = image.width - width / smaller if turned in MIRRORED else 0.0
            y = image.height - height / smaller if turned in UPSIDE_DOWN else 0.0
            box = (left / smaller + x, top / smaller + y, right / smaller + x, bottom / smaller + y)
            try:
                if image.mode in ("L", "RGB") and not image.has_transparency_data:
                    picture = self._channels(pixels(_resized_image(image, size, box), name))
                else:
                    picture = _resized(self._channels(pixels(image, name)), size, box)
            except ImageError as error:
                raise ImageError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
        return self._framed(picture)

    def batch(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack (C, H, W) arrays in the network's layout (`model.inputs.ImageInput`), float32."""
        there = [letter for letter in "NCHW" if letter in self.layout]
        missing = tuple(axis for axis, letter in enumerate("NCHW") if letter not in there)
        stacked = np.stack(arrays).squeeze(missing)
        return np.ascontiguousarray(stacked.transpose([there.index(letter) for letter in self.layout]))

    def picture(self, x: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """The picture (H, W, 3 or 1) RGB uint8 that the network's values (C, H, W) stand for."""
        mean, std = self._statistics()
        values = x * (std / np.float32(self.scale))
        values += mean / np.float32(self.scale)
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 255.0)
        if low < -_OUTSIDE or high > 255 + _OUTSIDE:  # no picture: the network's own values, a signal perhaps
            values = (values - low) * (255 / (high - low))
        np.clip(values, 0, 255, out=values)
        if self.order == "any":
            values = np.rint(values, out=values).mean(axis=0, keepdims=True)
        planes = np.rint(values, out=values).astype(np.uint8)
        if self.order == "bgr":
            planes = planes[[2, 1, 0, 3][: self.channels]]
        image = np.ascontiguousarray(planes.transpose(1, 2, 0))
        return _on_white(image) if self.channels == 4 else image

    def display(self, p: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Signed projections (…, C, H, W) as (…, H, W, 3) in RGB order, or (…, H, W, 1), a view where it can be one.

        Values stay as they are. Alpha is left out; channels that are no colours are averaged.
        """
        values = p.astype(np.float32, copy=False)
        if self.order == "any":
            values = values.mean(axis=-3, keepdims=True)
        elif self.order in ("rgb", "bgr"):
            values = values[..., :3, :, :] if self.order == "rgb" else values[..., 2::-1, :, :]
        return np.moveaxis(values, -3, -1)

    def describe(self) -> str:
        """One line for people: ``227×227, centre crop, BGR, 0–255 minus (103.9, 116.8, 123.7)``."""
        resize = RESIZE[self.resize]
        if self.resize == "crop" and self.crop_fraction != 1:
            resize += f" of {100 * self.crop_fraction:.3g} %"
        order = {"gray": "grey", "any": f"{self.channels} channels"}.get(self.order, self.order.upper())
        return f"{self.height}×{self.width}, {resize}, {order}{'A' * (self.channels == 4)}, {self._values()}"

    def to_json(self) -> dict[str, Any]:
        """The recipe under the keys that `from_json` reads: in a sidecar or in the model's metadata."""
        return {
            "size": [self.height, self.width],
            "resize": self.resize,
            "crop_fraction": self.crop_fraction,
            "order": self.order,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _own_values(self, values: NDArray[Any]) -> NDArray[np.float32]:
        own = (self.channels, self.height, self.width)
        if values.dtype.kind == "f" and values.shape == own:
            return np.ascontiguousarray(values, np.float32)
        if values.dtype.kind == "f" and values.shape == (*own[1:], own[0]):
            return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
        sizes = tuple(own["CHW".index(letter)] for letter in self.layout[1:])
        if values.dtype.kind == "f" and values.shape in (sizes, (*sizes, 1)):
            there = [self.layout.index(letter) - 1 for letter in "CHW" if letter in self.layout]
            moved = values.reshape(sizes).transpose(there)
            return np.ascontiguousarray(moved.reshape(own), np.float32)
        raise ImageError(
            f"an array of {values.dtype} and shape {values.shape}; expected uint8 pictures, "
            f"or the network's own float values of shape {own} or {(*own[1:], own[0])}"
        )

    def _channels(self, picture: Picture) -> Picture:
        """The picture with as many channels as the network, or one that stands for all; colours as RGB, alpha last."""
        found = picture.shape[2]
        if found == self.channels:
            return picture
        if found == 4:
            picture = _on_white(picture)
        elif found not in (1, 3):
            raise ImageError(f"a picture of {found} channels for a network of {self.channels}")
        if self.order in ("gray", "any"):
            return _luminance(picture)  # of which all channels are made in the end
        colours = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
        if self.channels == 3:
            return colours
        return np.concatenate([colours, np.full_like(colours[..., :1], 255)], axis=2)

    def _fitted(self, height: int, width: int) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
        """For a picture's size: the (height, width) to resize it to, and what part of it (left, top, right, bottom)."""
        box = (0.0, 0.0, float(width), float(height))
        if self.resize == "pad":
            factor = min(self.height / height, self.width / width)
            return (max(1, round(height * factor)), max(1, round(width * factor))), box
        if self.resize == "crop":
            factor = max(self.height / height, self.width / width) / self.crop_fraction
            h, w = min(self.height / factor, height), min(self.width / factor, width)
            box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
        return (self.height, self.width), box

    def _framed(self, picture: Picture) -> NDArray[np.float32]:
        """The network's values for a picture that is fitted, in the middle of its frame."""
        values = self._normalise(picture)
        height, width = values.shape[1:]
        if (height, width) == (self.height, self.width):
            return values
        top, left = (self.height - height) // 2, (self.width - width) // 2
        frame = np.zeros((self.channels, self.height, self.width), np.float32)
        frame[:, top : top + height, left : left + width] = values
        return frame

    def _normalise(self, picture: Picture) -> NDArray[np.float32]:
        planes = np.broadcast_to(picture.transpose(2, 0, 1), (self.channels, *picture.shape[:2]))
        if self.order == "bgr":
            planes = planes[::-1] if len(planes) == 3 else planes[[2, 1, 0, 3]]
        values = planes.astype(np.float32, order="C")
        mean, std = self._statistics()
        if self.scale != 1:
            values *= np.float32(self.scale)
        if mean.any():
            values -= mean
        if (std != 1).any():
            values /= std
        return values

    def _statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        return mean, np.asarray(self.std, np.float32)[:, None, None]

    def _values(self) -> str:
        largest = 255 * self.scale
        if len(set(self.mean)) == 1 and len(set(self.std)) == 1:
            low, high = -self.mean[0] / self.std[0], (largest - self.mean[0]) / self.std[0]
            if math.isclose(low, 0, abs_tol=1e-9):
                return f"0–{high:.4g}"
            return f"{low:.4g} to {high:.4g}".replace("-", "−")
        text = f"0–{largest:.4g} minus {_tuple(self.mean)}"
        return text if set(self.std) == {1.0} else f"{text}, divided by {_tuple(self.std)}"


def from_json(
    data: object,
    *,
    channels: int,
    height: int | None,
    width: int | None,
    layout: str,
    origin: str,
) -> Preprocess:
    """Build a `Preprocess` from JSON data: a preset's name, or an object with any of these keys.

    ``preset`` (a name; the other keys change it), ``size`` [height, width], ``resize``, ``crop_fraction``,
    ``order``, ``scale``, ``mean``, ``std``. ``channels``, ``height`` and ``width`` (None: free) are the
    network's; ``origin`` names the place in errors and in the result.

    Raises:
        UsageError: an unknown key or preset, or a value that does not fit the network.
    """
    if isinstance(data, str):
        data = {"preset": data}
    if not isinstance(data, dict):
        raise UsageError(
            f"{origin}: {_shorten(data)}; expected a preset's name or an object with {_any_of(KEYS)}"
        )
    if unknown := [key for key in data if key not in KEYS]:
        raise UsageError(f"{origin}: unknown key {unknown[0]!r}; known: {_any_of(KEYS)}")
    recipe = _expand(data, channels, origin)
    order = _order(recipe.get("order"), channels, origin)
    size = (
        None if "size" not in data else _numbers(data["size"], f"{origin}: size", counts=(2,), positive=True)
    )
    resize = data.get("resize", "crop")
    if not isinstance(resize, str) or resize not in RESIZE:
        raise UsageError(f"{origin}: resize is {_shorten(resize)}; expected {_any_of(RESIZE)}")
    (crop_fraction,) = _numbers(
        data.get("crop_fraction", 1.0), f"{origin}: crop_fraction", (1,), positive=True
    )
    if crop_fraction > 1:
        raise UsageError(f"{origin}: crop_fraction is {crop_fraction:g}; expected more than 0, at most 1")
    (scale,) = _numbers(recipe.get("scale", 1.0), f"{origin}: scale", (1,), positive=True)
    fitted = _size(size, height, width, f"{origin}: size")
    return Preprocess(
        height=fitted[0],
        width=fitted[1],
        channels=channels,
        layout=layout,
        order=order,
        mean=_statistic(recipe.get("mean", 0.0), channels, f"{origin}: mean"),
        std=_statistic(recipe.get("std", 1.0), channels, f"{origin}: std", positive=True),
        origin=origin,
        scale=scale,
        resize=resize,
        crop_fraction=crop_fraction,
    )


def resolve_preprocess(
    *,
    channels: int,
    height: int | None,
    width: int | None,
    layout: str = "NCHW",
    dtype: str = "float32",
    metadata: str | None = None,
    sidecar: Path | None = None,
    preset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    size: tuple[int, int] | None = None,
) -> Preprocess:
    """Find the recipe in force: command line, sidecar, the model's metadata, else a guess from the input.

    ``channels``, ``height``, ``width`` (None: free), ``layout`` and ``dtype`` (NumPy's name) are those of the
    network's input; ``metadata`` is the JSON text that the model carries, ``sidecar`` a JSON file that need
    not exist. The rest comes from the command line: ``preset`` replaces the whole recipe, the others change
    one field of it. Turning RGB into BGR turns the mean and std with it, unless they are given too.

    Raises:
        UsageError: something is malformed, unknown, or does not fit the network's input.
    """
    fit: dict[str, Any] = {"channels": channels, "height": height, "width": width, "layout": layout}
    if size is not None:  # checked first, so that a size in a file does not hide the option's own mistake
        asked = _numbers(list(size), "--size", counts=(2,), positive=True)
        fit["height"], fit["width"] = _size(asked, height, width, "--size")
    base, origin = _base(channels, dtype, metadata, sidecar, preset)
    if size is not None and isinstance(base, dict):
        base = {key: value for key, value in base.items() if key != "size"}
    found = from_json(base, **fit, origin=origin)

    if bgr is not None:
        if channels not in (3, 4):
            raise UsageError(f"--bgr: the network's input has {channels} channels, not 3 or 4")
        order = "bgr" if bgr else "rgb"
        if order != found.order:
            found = replace(found, order=order, mean=_turned(found.mean), std=_turned(found.std))
    if mean is not None:
        found = replace(found, mean=_statistic(list(mean), channels, "--mean"))
    if std is not None:
        found = replace(found, std=_statistic(list(std), channels, "--std", positive=True))
    given = {"--mean": mean, "--std": std, "--bgr": bgr, "--size": size}
    names = [name for name, value in given.items() if value is not None]
    return replace(found, origin=f"{origin}, with {_and(names)} from the command line") if names else found


def _base(
    channels: int, dtype: str, metadata: str | None, sidecar: Path | None, preset: str | None
) -> tuple[object, str]:
    """The recipe as JSON data, before single fields are changed, and where it comes from."""
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"--preprocess: no preset is called {preset!r}; expected {_any_of(PRESETS)}")
        return preset, f"preset {preset}"
    if sidecar is not None and sidecar.exists():
        try:
            return json.loads(sidecar.read_text(encoding="utf-8-sig")), sidecar.name
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{sidecar}: not a readable JSON file ({error}); mend or remove it") from error
    if metadata is not None:
        if metadata.strip() in PRESETS:
            return metadata.strip(), "model metadata"
        try:
            return json.loads(metadata), "model metadata"
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"model metadata: onnxviz.preprocess is not valid JSON ({error}); --preprocess overrides it"
            ) from error
    guess = "raw" if dtype == "uint8" else "imagenet" if channels == 3 else "unit"
    return guess, _GUESS


def _expand(data: Mapping[str, Any], channels: int, origin: str) -> dict[str, Any]:
    """The data with its preset filled in; an order other than the preset's turns the preset's statistics."""
    if "preset" not in data:
        return dict(data)
    name = data["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise UsageError(f"{origin}: no preset is called {_shorten(name)}; expected {_any_of(PRESETS)}")
    recipe = dict(PRESETS[name])
    if len(recipe.get("mean", ())) == 3 and channels != 3:
        raise UsageError(f"{origin}: preset {name} is for 3 channels, the network's input has {channels}")
    if "order" in data and "order" in recipe and data["order"] != recipe["order"]:
        recipe |= {key: _turned(recipe[key]) for key in ("mean", "std") if key in recipe}
    return recipe | dict(data)


def _order(order: object, channels: int, origin: str) -> str:
    possible = {1: ("gray",), 3: ("rgb", "bgr"), 4: ("rgb", "bgr")}.get(channels, ("any",))
    if order is None:
        return possible[0]
    if order not in possible:
        raise UsageError(
            f"{origin}: order is {_shorten(order)}; an input of {channels} channels takes {_any_of(possible)}"
        )
    return str(order)


def _size(
    asked: tuple[float, ...] | None, height: int | None, width: int | None, where: str
) -> tuple[int, int]:
    if asked is None:
        # Where one side is open it is as long as the other, if that is a picture's and no signal's few rows.
        known = max(height or 0, width or 0)
        open_ = known if known >= _SHORTEST else DEFAULT_SIZE
        return height or open_, width or open_
    if any(not value.is_integer() or value > LARGEST_SIZE for value in asked):
        raise UsageError(f"{where} is {_tuple(asked)}; expected whole numbers of pixels up to {LARGEST_SIZE}")
    wanted = (int(asked[0]), int(asked[1]))
    if wanted != (height or wanted[0], width or wanted[1]):
        fixed = "×".join("any" if value is None else str(value) for value in (height, width))
        advice = "choose only what is open" if None in (height, width) else "leave it out"
        raise UsageError(
            f"{where} is {wanted[0]}×{wanted[1]}, but the model's input is fixed at {fixed}; {advice}"
        )
    return wanted


def _statistic(value: object, channels: int, where: str, positive: bool = False) -> tuple[float, ...]:
    numbers = _numbers(value, where, counts=(1, channels), positive=positive)
    return numbers * channels if len(numbers) == 1 else numbers


def _numbers(value: object, where: str, counts: tuple[int, ...], positive: bool = False) -> tuple[float, ...]:
    """A number or a list of them, checked: finite, as many as expected, above 0 if asked."""
    items: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        raise UsageError(f"{where} is {_shorten(value)}; expected {_count(counts)}")
    if len(items) not in counts:
        raise UsageError(f"{where} has {len(items)} values; expected {_count(counts)}")
    numbers = tuple(float(item) if abs(item) < 1e30 else math.inf for item in items)
    if not all(math.isfinite(number) and (number > 0 or not positive) for number in numbers):
        kind = "finite numbers above 0" if positive else "finite numbers"
        raise UsageError(f"{where} is {_tuple(numbers)}; expected {kind}")
    return numbers


def _resized(picture: Picture, size: tuple[int, int], box: tuple[float, float, float, float]) -> Picture:
    """The box (left, top, right, bottom) of a picture at another size, antialiased."""
    if picture.shape[:2] == size and (box[2] - box[0], box[3] - box[1]) == (float(size[1]), float(size[0])):
        return picture
    if picture.shape[2] not in (1, 3, 4):
        planes = [_resized(picture[..., c : c + 1], size, box) for c in range(picture.shape[2])]
        return np.concatenate(planes, axis=2)
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    array = np.asarray(_resized_image(image, size, box))
    return array[:, :, None] if array.ndim == 2 else array


def _resized_image(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    """As `_resized`, of an image of Pillow's."""
    height, width = size
    if image.size == (width, height) and (box[2] - box[0], box[3] - box[1]) == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _luminance(picture: Picture) -> Picture:
    """(h, w, 1) of a grey or RGB picture, in Pillow's (ITU-R 601) weights."""
    if picture.shape[2] == 1:
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"))[:, :, None]


def _on_white(picture: Picture) -> Picture:
    """An RGBA picture (h, w, 4) as RGB (h, w, 3), on white."""
    alpha = picture[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(picture[..., :3])
    return ((picture[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _turned(values: tuple[float, ...]) -> tuple[float, ...]:
    """Values of R, G, B (and alpha) as those of B, G, R (and alpha)."""
    return (*values[2::-1], *values[3:])


def _tuple(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _count(counts: tuple[int, ...]) -> str:
    options = sorted(set(counts))
    return " or ".join(str(option) for option in options) + (" number" if options == [1] else " numbers")


def _any_of(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
