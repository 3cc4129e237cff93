"""The input that takes images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ModelError, UsageError
from onnxviz.model.graph import Constants, Graph, ModelFile, Node, Shape, TensorInfo
from onnxviz.model.soundness import LARGEST_TENSOR

__all__ = ["ImageInput", "image_input"]

_PICTURE_CHANNELS = (1, 3, 4)
_DTYPES = ("float32", "float16", "float64", "uint8")

_AXES: Mapping[str, tuple[int | None, ...]] = {
    "NCHW": (0, 1, 2, 3),
    "NHWC": (0, 3, 1, 2),
    "NHW": (0, None, 1, 2),
    "NWH": (0, None, 2, 1),
    "NW": (0, None, None, 1),
}
"""Of each layout the axes that are N, C, H and W; None where there is none, and its size is 1."""


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images. ``height``, ``width`` and ``batch`` are None where the file leaves them open.

    ``layout`` is NCHW or NHWC; NHW for three axes: grey images without a channel axis, or signals, whose
    channels then are the rows of a picture and whose samples its columns (NWH where the channels, few, come
    last); or NW for vectors.
    """

    name: str
    dtype: str
    layout: str
    channels: int
    height: int | None
    width: int | None
    batch: int | None

    @property
    def order(self) -> tuple[int, ...]:
        """Permutation of its axes to (N, C, H, W), as far as it has them."""
        return tuple(axis for axis in _AXES[self.layout] if axis is not None)

    @property
    def axes(self) -> tuple[int | None, int | None]:
        """Its axes for height and width."""
        _, _, height, width = _AXES[self.layout]
        return height, width

    @property
    def missing(self) -> tuple[int, ...]:
        """Which of (N, C, H, W) it does not have."""
        return tuple(k for k, axis in enumerate(_AXES[self.layout]) if axis is None)

    def shape(self, batch: int, size: tuple[int, int]) -> Shape:
        """Its shape for a batch of images of ``size`` (height, width)."""
        sizes = (batch, self.channels, *size)
        return tuple(sizes[_AXES[self.layout].index(axis)] for axis in range(len(self.order)))

    def to_nchw(self, x: NDArray[Any]) -> NDArray[Any]:
        """An array in the input's layout as (N, C, H, W)."""
        return np.expand_dims(np.transpose(x, self.order), self.missing)

    def __str__(self) -> str:
        sizes = (self.batch or "N", self.channels, self.height or "H", self.width or "W")
        dims = [sizes[_AXES[self.layout].index(axis)] for axis in range(len(self.order))]
        return f"{self.name}: {self.dtype} {'×'.join(map(str, dims))} ({self.layout})"


def image_input(model: ModelFile, name: str | None = None) -> ImageInput:
    """Find it: the input ``name``, or the one that looks most like images.

    Four axes are images: the second (NCHW) or the last (NHWC) counts channels; where the file leaves both open,
    the first convolution says. Without such an input, three axes (a plane, or a signal of channels by samples) or
    two (a vector) will do.

    Raises:
        UsageError: there is no input ``name``.
        ModelError: it takes no images; or there is no such input, or more than one.
    """
    listed = "; ".join(str(i) for i in model.graph.inputs) or "no inputs"
    if name is not None:
        info = next((i for i in model.graph.inputs if i.name == name), None)
        if info is None:
            raise UsageError(f"{model.path} has no input {name!r}: it has {listed}.")
        if (image := _as_image(info, model)) is None:
            raise ModelError(
                f"{model.path}: its input {info} takes no images: that would be real numbers (or uint8), "
                "N×C×H×W, N×H×W×C, N×H×W (or signals, N×C×W) or N×W, the number of channels known."
            )
        return _sensible(image, model)
    images = [image for info in model.graph.inputs if (image := _as_image(info, model)) is not None]
    for layouts in (("NCHW", "NHWC"), ("NHW", "NWH", "NW")):
        found = [image for image in images if image.layout in layouts]
        pictures = [image for image in found if len(image.order) == 4 and image.channels in _PICTURE_CHANNELS]
        for choice in (found, pictures):
            if len(choice) == 1:
                return _sensible(choice[0], model)
        if found:
            raise ModelError(
                f"{model.path} has several inputs that could take images ({listed}). Name one with --input."
            )
    raise ModelError(
        f"{model.path} has no image input: that would be real numbers (or uint8), N×C×H×W or N×H×W×C "
        f"(or planes or signals, N×H×W, or vectors, N×W); it has {listed}."
    )


_MOST_CHANNELS = 1 << 16


def _sensible(image: ImageInput, model: ModelFile) -> ImageInput:
    """The input, if arrays of its sizes can be made at all."""
    sizes = [size for size in (image.batch, image.channels, image.height, image.width) if size is not None]
    if not 0 < image.channels <= _MOST_CHANNELS or 4 * math.prod(sizes) > LARGEST_TENSOR:
        raise ModelError(
            f"{model.path}: its input {image} is too large to be worked with: no more than {_MOST_CHANNELS:,} channels "
            f"and {LARGEST_TENSOR >> 2:,} numbers."
        )
    return image


def _as_image(info: TensorInfo, model: ModelFile) -> ImageInput | None:
    if info.dtype not in _DTYPES or info.shape is None or not 2 <= len(info.shape) <= 4 or 0 in info.shape:
        return None
    sizes = [d if isinstance(d, int) else None for d in info.shape]
    if len(sizes) == 2:
        return ImageInput(info.name, info.dtype, "NW", 1, 1, sizes[1], sizes[0])
    if len(sizes) == 3 and sizes[2] in _PICTURE_CHANNELS and sizes[1] not in _PICTURE_CHANNELS:
        return ImageInput(info.name, info.dtype, "NWH", 1, sizes[2], sizes[1], sizes[0])
    if len(sizes) == 3:
        return ImageInput(info.name, info.dtype, "NHW", 1, sizes[1], sizes[2], sizes[0])
    batch, second, third, last = sizes
    if last in _PICTURE_CHANNELS and second not in _PICTURE_CHANNELS:
        return ImageInput(info.name, info.dtype, "NHWC", last, second, third, batch)
    if second is not None:
        return ImageInput(info.name, info.dtype, "NCHW", second, third, last, batch)
    if last is not None:
        return ImageInput(info.name, info.dtype, "NHWC", last, second, third, batch)
    if (found := _first_convolution(model.graph, model.constants, info.name)) is not None:
        channels, layout = found
        return ImageInput(info.name, info.dtype, layout, channels, *_sides(layout, sizes), batch)
    return None


def _sides(layout: str, sizes: list[int | None]) -> tuple[int | None, int | None]:
    _, _, height, width = _AXES[layout]
    assert height is not None and width is not None
    return sizes[height], sizes[width]


_BEFORE_CONVOLUTION = frozenset(
    {
        "Add",
        "BatchNormalization",
        "Cast",
        "DequantizeLinear",
        "Div",
        "Identity",
        "Mul",
        "Pad",
        "QuantizeLinear",
    }
    | {"Sub"}
)


def _first_convolution(graph: Graph, constants: Constants, name: str) -> tuple[int, str] | None:
    """Channels and layout of an input, by the convolution that it comes to first."""
    layout = "NCHW"
    while True:
        users = [node for node in graph.nodes if name in node.inputs]
        conv = next((n for n in users if _weight(n, constants) is not None), None)
        if conv is not None:
            weight = _weight(conv, constants)
            group = conv.attrs.get("group", 1)
            assert weight is not None and isinstance(group, int)
            return weight.shape[1] * group, layout
        step = next((n for n in users if n.op in _BEFORE_CONVOLUTION or n.op == "Transpose"), None)
        if step is None:
            return None
        if step.op == "Transpose":
            if step.attrs.get("perm") != (0, 3, 1, 2) or layout != "NCHW":
                return None
            layout = "NHWC"
        name = step.output


def _weight(node: Node, constants: Constants) -> NDArray[Any] | None:
    if node.op == "Conv" and len(node.inputs) > 1 and node.inputs[1] in constants:
        return constants[node.inputs[1]]
    return None
