"""Peaks of memory, each of a process of its own (Linux only)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import photos
from tests.benchmarks.bench import Bench
from tests.benchmarks.timing import Goal, Row

__all__ = ["projecting", "scanning"]

_CHILD = "tests.benchmarks.child"
_MIB, _GIB = 1 << 20, 1 << 30


def scanning(bench: Bench) -> Iterator[Row]:
    """A scan of ten times as many JPEG files; once for each network, as peaks hardly vary."""
    few = 100 if bench.quick else 1000
    many = 10 * few
    folder = photos.links(bench.folder / f"links-{many}", bench.photos(64), many)
    for name in ("tiny",) if bench.quick else ("tiny", "alexnet"):
        model = bench.model(name)
        peaks = [_peak(bench, "scan", model, folder, count)["peak"] for count in (many, few)]
        yield Row(
            f"{name}: peak memory of a scan of {many:,} images, to one of {few:,}",
            f"{peaks[0] / _MIB:.0f} MiB",
            f"{peaks[1] / _MIB:.0f} MiB",
            (peaks[0] / peaks[1],),
            Goal(1.05, at_least=False),
        )


def projecting(bench: Bench) -> Iterator[Row]:
    """What projecting with VGG16 takes beyond the open model and its images, weights included."""
    model = bench.model("vgg16")
    images, units = (4, 16) if bench.quick else (36, 144)
    for layer in ("conv5_3", "conv4_3"):
        found = _peak(bench, "project", model, layer, images, units)
        extra = found["peak"] - found["before"]
        yield Row(
            f"VGG16 {layer}: peak memory of {units} projections on {images} images, beyond the open model",
            f"{found['peak'] / _MIB:.0f} MiB in all",
            "",
            (extra / _GIB,),
            Goal(1, "GiB", at_least=False),
        )


def _peak(bench: Bench, *arguments: int | str | Path) -> dict[str, int]:
    return json.loads(bench.run("-m", _CHILD, *arguments))  # type: ignore[no-any-return]
