"""The input that takes images."""

from __future__ import annotations

from dataclasses import dataclass

from onnxviz.errors import ModelError
from onnxviz.model.graph import ModelFile, Shape, TensorInfo

__all__ = ["ImageInput", "image_input"]

_PICTURE_CHANNELS = (1, 3, 4)
_DTYPES = ("float32", "float16", "float64", "uint8")


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images. ``height``, ``width`` and ``batch`` are None where the file leaves them open."""

    name: str
    dtype: str
    layout: str
    channels: int
    height: int | None
    width: int | None
    batch: int | None

    @property
    def order(self) -> tuple[int, ...]:
        """Permutation of its axes to (N, C, H, W)."""
        return (0, 1, 2, 3) if self.layout == "NCHW" else (0, 3, 1, 2)

    def shape(self, batch: int, size: tuple[int, int]) -> Shape:
        """Its shape for a batch of images of ``size`` (height, width)."""
        if self.layout == "NCHW":
            return (batch, self.channels, *size)
        return (batch, *size, self.channels)

    def __str__(self) -> str:
        height, width, batch = self.height or "H", self.width or "W", self.batch or "N"
        dims: tuple[int | str, ...] = (batch, self.channels, height, width)
        if self.layout == "NHWC":
            dims = (batch, height, width, self.channels)
        return f"{self.name}: {self.dtype} {'×'.join(str(d) for d in dims)} ({self.layout})"


def image_input(model: ModelFile) -> ImageInput:
    """Find it: the one input with four axes, of which the second (NCHW) or the last (NHWC) counts channels.

    Raises:
        ModelError: there is none, or more than one.
    """
    found = [image for info in model.graph.inputs if (image := _as_image(info)) is not None]
    if len(found) == 1:
        return found[0]
    pictures = [image for image in found if image.channels in _PICTURE_CHANNELS]
    if len(pictures) == 1:
        return pictures[0]
    listed = "; ".join(str(i) for i in model.graph.inputs) or "no inputs"
    if found:
        raise ModelError(f"{model.path} has several inputs that could take images ({listed}).")
    raise ModelError(
        f"{model.path} has no image input: that would be a batch of images, N×C×H×W or N×H×W×C; it has {listed}."
    )


def _as_image(info: TensorInfo) -> ImageInput | None:
    if info.dtype not in _DTYPES or info.shape is None or len(info.shape) != 4:
        return None
    sizes = [d if isinstance(d, int) else None for d in info.shape]
    batch, second, third, last = sizes
    if last in _PICTURE_CHANNELS and second not in _PICTURE_CHANNELS:
        return ImageInput(info.name, info.dtype, "NHWC", last, second, third, batch)
    if second is not None:
        return ImageInput(info.name, info.dtype, "NCHW", second, third, last, batch)
    if last is not None:
        return ImageInput(info.name, info.dtype, "NHWC", last, second, third, batch)
    return None
