"""Seeded pictures, in memory and as JPEG files: blurred noise of several scales, with shapes on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["MEAN", "STD", "inputs", "links", "photos", "picture"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALES = ((4, 90), (12, 60), (48, 30))
_SHAPES = 12


def picture(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture that compresses about as well as a photograph."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128, np.float32)
    for cells, strength in _SCALES:
        coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth, np.float32) - 128) * (strength / 128)
    total += rng.standard_normal((height, width, 1), np.float32) * 6
    image = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y = rng.integers(0, (width, height)).tolist()
        w, h = rng.integers(width // 20, width // 4, 2).tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), fill=colour)
    return image


def inputs(count: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Pictures as the networks take them, (N, 3, size, size): 0 to 1, minus ImageNet's mean, over its deviation."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    x = np.empty((count, 3, size, size), np.float32)
    for index in range(count):
        values = np.asarray(picture(seed + index, size, size), np.float32) / 255
        x[index] = ((values - mean) / std).transpose(2, 0, 1)
    return x


def photos(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (500, 375)) -> Path:
    """A folder of JPEG files, made unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        if not path.exists():
            picture(seed + index, *size).save(path, quality=90)
    return folder


def links(folder: Path, source: Path, count: int) -> Path:
    """A folder of so many links to the files of another, over and over."""
    files: list[Any] = sorted(source.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:06d}.jpg"
        if not path.exists():
            os.link(files[index % len(files)], path)
    return folder
