"""Whole jobs and commands, each as a user would start it, in processes of their own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

import onnxviz
from tests.benchmarks import networks, photos
from tests.benchmarks.bench import Bench
from tests.benchmarks.ours import Ours
from tests.benchmarks.timing import Goal, Row, alternately, cores, ms, timed

__all__ = ["report", "start", "whole"]

_FIELD, _STRIDE, _CHANNELS = 163, 16, 256
"""Of AlexNet's conv5."""


def whole(bench: Bench) -> Iterator[Row]:
    """1,000 JPEG files, AlexNet, all channels of its five convolutions, top 9, report written.

    The peer is `tests/benchmarks/script.py`. It takes minutes, so that a third of the rounds is run, without one
    that does not count; quick, it does every 16th channel, and its time for all is reckoned from that.
    """
    count, every = (100, 16) if bench.quick else (1000, 1)
    net = networks.make("alexnet")
    model, folder = bench.model("alexnet", net), bench.photos(count)
    weights = bench.folder / "alexnet.pt"
    torch.save(net.module.state_dict(), weights)
    out = bench.folder / "report"

    def ours() -> None:
        options = ("--layer", "conv1..conv5", "--preprocess", "imagenet", "--images", folder, "--out", out)
        bench.run("-m", "onnxviz", "analyze", model, *options, "--provider", bench.provider)

    def peer() -> float:
        options = ("--every", every, "--workers", cores(), "--device", bench.provider)
        spent = json.loads(bench.run("-m", "tests.benchmarks.script", weights, folder, out, *options))
        return float(spent["scan"] + every * spent["project"])

    rounds = []
    for _ in range(max(1, bench.rounds // 3)):
        rounds.append((timed(ours)(), peer()))
        shutil.rmtree(out)
    mine, others = (median(side) for side in zip(*rounds, strict=True))
    reckoned = f", from every {every}th channel" if every > 1 else ""
    yield Row(
        f"AlexNet, {count:,} JPEG files, all channels of conv1–conv5, top 9, report written, {bench.provider}, to "
        "PyTorch with Captum and Matplotlib",
        f"{mine:.3g} s",
        f"{others:.3g} s{reckoned}",
        tuple(p / o for o, p in rounds),
        Goal(10),
    )


def report(bench: Bench) -> Iterator[Row]:
    """Drawing a layer's pictures and writing the report, a channel: a job less its scan.

    The network stands in for AlexNet up to conv5: patches as large, but projections that cost next to nothing, as
    they come from one depthwise convolution.
    """
    count = 16 if bench.quick else 100
    path = bench.folder / "stand_in.onnx"
    if not path.exists():
        networks.export(_stand_in(), 227, path)
    folder, outs = bench.photos(count), bench.folder / "stand-in"
    ours = Ours(path)
    source = ours.source(folder)
    outs.mkdir(exist_ok=True)

    def job() -> None:
        # A new folder each, all removed in the end: where many files were removed within minutes, creating one
        # costs ext4 about a millisecond of CPU time, as it passes over the inodes of each of those.
        out = Path(tempfile.mkdtemp(dir=outs))
        options = {"provider": "cpu", "preprocess": "imagenet", "folder": out}
        onnxviz.analyze(path, layers="conv2", images=folder, **options).report(out)

    rounds = alternately(
        timed(job, _CHANNELS),
        timed(lambda: ours.scan(source, ["conv2"]), _CHANNELS),
        rounds=bench.rounds,
    )
    out = next(outs.iterdir())
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(outs)
    values = tuple(1000 * (whole - scan) for whole, scan in rounds)
    yield Row(
        f"writing the report, a channel: 9 patches and projections of {_FIELD}×{_FIELD}",
        f"{ms(median(values) / 1000)}, {size / _CHANNELS / 1024:.0f} KiB",
        "",
        values,
        Goal(10, "ms", at_least=False),
    )


def start(bench: Bench) -> Iterator[Row]:
    """`onnxviz --help`, and `onnxviz layers` on VGG16 with its classifier (553 MB)."""
    path = bench.folder / "vgg16_with_classifier.onnx"
    if not path.exists():
        module = networks.vgg16_with_classifier()
        networks.seed_weights(module, 0)
        networks.export(module, 224, path)
    commands = {
        "`onnxviz --help`": (("--help",), 0.4),
        "`onnxviz layers` on VGG16": (("layers", path), 2.0),
    }
    for what, (arguments, bound) in commands.items():
        side = timed(lambda arguments=arguments: bench.run("-m", "onnxviz", *arguments))
        values = tuple(seconds for (seconds,) in alternately(side, rounds=bench.rounds))
        yield Row(what, f"{median(values):.2f} s", "", values, Goal(bound, "s", at_least=False))


def _stand_in() -> nn.Module:
    """Three smooth random filters, and random mixtures of what they give."""
    module = nn.Sequential(
        nn.Conv2d(3, 3, _FIELD, _STRIDE, groups=3, bias=False), nn.Conv2d(3, _CHANNELS, 1), nn.ReLU()
    )
    networks.seed_weights(module, 0)
    filters = [np.asarray(photos.picture(seed, _FIELD, _FIELD), np.float32)[..., seed] for seed in range(3)]
    shaped = np.stack(filters)[:, None] / 128 - 1
    module[0].weight.copy_(torch.from_numpy(shaped / _FIELD))
    return module
