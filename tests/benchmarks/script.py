"""The peer's whole job, as a plain script: PyTorch, Captum, Matplotlib.

Scans a folder for each channel's nine strongest images at AlexNet's convolutions, projects them, and draws a figure
a channel and a page of all: ``python -m tests.benchmarks.script alexnet.pt photos/ out/``. Prints what it spent, as
JSON: on loading and scanning, and on projecting and drawing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks import networks
from tests.benchmarks.peers import Captum
from tests.benchmarks.photos import MEAN, STD

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["main"]

TOP, BATCH, ROWS = 9, 32, 3


class Photos(Dataset[Tensor]):
    """The images of a folder: scaled to the network's size, cropped at the centre, normalised."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files, self.size = sorted(folder.iterdir()), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        size = self.size
        with Image.open(self.files[index]) as image:
            image.draft("RGB", (size, size))
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            pixels = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
        x = torch.from_numpy(np.asarray(pixels, np.float32)).permute(2, 0, 1) / 255
        return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@dataclass
class Best:
    """Of each channel of a layer the strongest activations: score, image and place, (channels, TOP)."""

    score: Tensor
    image: Tensor
    place: Tensor
    width: int = 0

    def update(self, maps: Tensor, first: int) -> None:
        """Take in a batch of maps (N, C, H, W), of the images from ``first`` on."""
        score, place = (found.cpu() for found in maps.flatten(2).max(2))
        image = torch.arange(first, first + len(maps)).expand(score.shape[1], -1)
        score = torch.cat([self.score, score.T], 1)
        self.score, chosen = score.topk(min(TOP, score.shape[1]), 1)
        self.image = torch.cat([self.image, image], 1).gather(1, chosen)
        self.place = torch.cat([self.place, place.T], 1).gather(1, chosen)
        self.width = maps.shape[3]

    def units(self, channel: int) -> np.ndarray:
        """Rows (image, channel, y, x)."""
        y, x = np.divmod(self.place[channel].numpy(), self.width)
        return np.stack([self.image[channel].numpy(), np.full(len(y), channel), y, x], 1)


def scan(
    net: networks.Net, data: DataLoader[Tensor], device: str = "cpu"
) -> tuple[np.ndarray, dict[str, Best]]:
    """All images, as the network takes them, and the best of every measured layer."""
    best = {
        name: Best(
            torch.empty(net.channels(name), 0), *torch.empty(2, net.channels(name), 0, dtype=torch.int64)
        )
        for name in net.layers
    }
    kept, first = [], 0
    hooks = [
        net.layer(name).register_forward_hook(lambda *args, one=one: one.update(args[2], first))
        for name, one in best.items()
    ]
    with torch.inference_mode():
        for x in data:
            net.module(x.to(device))
            kept.append(x)
            first += len(x)
    for hook in hooks:
        hook.remove()
    return torch.cat(kept).numpy(), best


def fields(net: networks.Net) -> Iterator[tuple[str, int, int, int]]:
    """For each measured layer what a unit at 0 sees: stride, first pixel, size. The network is a plain chain."""
    step, first, size = 1, 0, 1
    paths = {path: name for name, path in net.layers.items()}
    for path, part in net.module.named_children():
        if isinstance(part, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, pad = (
                value if isinstance(value, int) else value[0]
                for value in (part.kernel_size, part.stride, part.padding)
            )
            first, size, step = first - pad * step, size + (kernel - 1) * step, step * stride
        if path in paths:
            yield paths[path], step, first, size


def crop(frame: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """A square of a frame (C, H, W) as (size, size, C), zero outside."""
    padded = np.pad(frame, ((0, 0), (size, size), (size, size)))
    return padded[:, top + size : top + 2 * size, left + size : left + 2 * size].transpose(1, 2, 0)


def tiled(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles (h, w, C) in rows of three."""
    tiles = tiles + [np.zeros_like(tiles[0])] * (TOP - len(tiles))
    return np.concatenate([np.concatenate(tiles[i : i + ROWS], 1) for i in range(0, TOP, ROWS)])


def main() -> None:
    """Do the whole job."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("weights", "folder", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--every", type=int, default=1, help="project every so many-th channel")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(given.workers)
    net = networks.alexnet()
    net.module.load_state_dict(torch.load(given.weights))
    net.module.eval().requires_grad_(False).to(given.device)
    data = DataLoader(Photos(given.folder, net.size), BATCH, num_workers=given.workers)
    images, best = scan(net, data, given.device)
    scanned = time.perf_counter()
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    given.out.mkdir(parents=True, exist_ok=True)
    page = []
    for name, step, first, size in fields(net):
        captum = Captum(net, name, device=given.device)
        figure, axes = plt.subplots(1, 2, figsize=(8, 4))
        blank = np.zeros((ROWS * size, ROWS * size, 3))
        shown = [axis.imshow(blank) for axis in axes]
        for axis in axes:
            axis.axis("off")
        for channel in range(0, net.channels(name), given.every):
            units = best[name].units(channel)
            frames = captum.project(images, units)
            corners = [(y * step + first, x * step + first) for _, _, y, x in units.tolist()]
            patches = [
                crop(images[i], *corner, size) * std + mean
                for i, corner in zip(units[:, 0], corners, strict=True)
            ]
            drawn = []
            for frame, corner in zip(frames, corners, strict=True):
                tile = crop(frame, *corner, size)
                drawn.append(0.5 + tile / (2 * max(float(np.abs(tile).max()), 1e-12)))
            for axis, tiles in zip(shown, (patches, drawn), strict=True):
                axis.set_data(np.clip(tiled(tiles), 0, 1))
            figure.suptitle(f"{name}, channel {channel}")
            figure.savefig(given.out / f"{name}-{channel}.png")
            page.append(f'<img src="{name}-{channel}.png" loading="lazy">')
        plt.close(figure)
    (given.out / "index.html").write_text("\n".join(page))
    print(json.dumps({"scan": scanned - begin, "project": time.perf_counter() - scanned}))


if __name__ == "__main__":
    main()
