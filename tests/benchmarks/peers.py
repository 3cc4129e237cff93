"""The peer's side: PyTorch, with Captum's `NeuronDeconvolution`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from captum.attr import NeuronDeconvolution
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.benchmarks.networks import Net
from tests.benchmarks.timing import cores

__all__ = ["Captum", "disagreement", "like_onnxviz"]

Array = NDArray[Any]


def like_onnxviz() -> None:
    """Let PyTorch use the cores that onnxruntime uses, and on CUDA the precision, which is not TF32."""
    torch.set_num_threads(cores())
    torch.backends.cudnn.allow_tf32 = False


class Captum:
    """Projects units of a measured layer of a network.

    Captum runs the network to its end to project a unit of any layer. With ``cut`` it is given the network only as
    far as the block of the layer: faster, and more than its users are told to do. The network is moved to
    ``device`` for good.
    """

    def __init__(self, net: Net, layer: str, *, cut: bool = False, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self.module: nn.Module = (net.cut(layer) if cut else net.module).to(self._device)
        self._layer = net.layer(layer)
        self._deconvolution = NeuronDeconvolution(self.module, self._layer)

    def project(self, x: Array, units: Array) -> Array:
        """One channel's units, at most one an image: rows (sample, channel, y, x). The frames (M, 3, H, W)."""
        channel, y, column = (torch.from_numpy(part).to(self._device) for part in units.T[1:])
        images = torch.from_numpy(x[units[:, 0]]).to(self._device)
        rows = torch.arange(len(units), device=self._device)

        def seeds(maps: Tensor) -> Tensor:
            # Captum starts at 1; the gradient of a²/2 starts it at the activation a, as the paper does.
            return maps[rows, channel, y, column].square() / 2

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there will be hooks
            answer = self._deconvolution.attribute(images, seeds)
        return answer.detach().cpu().numpy()  # type: ignore[no-any-return]

    def activations(self, x: Array) -> Array:
        """The layer's activations."""
        kept: list[Tensor] = []
        hook = self._layer.register_forward_hook(lambda *args: kept.append(args[2]))
        with torch.inference_mode():
            self.module(torch.from_numpy(x).to(self._device))
        hook.remove()
        return kept[0].cpu().numpy()


def disagreement(frames: Array, pixels: Array, boxes: Sequence[Sequence[int]]) -> float:
    """The largest difference between whole frames and windows of them, relative to the largest value.

    Args:
        frames: (M, C, H, W).
        pixels, boxes: `onnxviz.reverse.project.Projections`.
    """
    height, width = frames.shape[2:]
    worst = 0.0
    for frame, window, (top, left, bottom, right) in zip(frames, pixels, boxes, strict=True):
        placed = np.zeros_like(frame)
        inside = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        cut = slice(max(-top, 0), max(-top, 0) + inside[0].stop - inside[0].start)
        across = slice(max(-left, 0), max(-left, 0) + inside[1].stop - inside[1].start)
        placed[:, inside[0], inside[1]] = window[:, cut, across]
        worst = max(worst, float(np.abs(frame - placed).max() / np.abs(frame).max()))
    return worst
