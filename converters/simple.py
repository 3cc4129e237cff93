"""The small MNIST net: its conversion from an .npz, and the training of the one that the project ships.

Weights: wc1 (7, 7, 1, 32), bc1, wc2 (5, 5, 32, 64), bc2, wd1 (3136, 1024), bd1, wout (1024, 10), bout, in
TensorFlow's layout; wd1 follows an H×W×C flattening. Train with::

    python -m onnxviz.converters.simple train --digits onnxviz/data/digits.npz --out models/simple.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxviz.errors import OnnxvizError, UsageError

from .builder import Conv, Dense, ImageInput, MaxPool, Network, Relu, Softmax, write
from .weights import read_npz

__all__ = ["accuracy", "build", "convert", "held_out", "main", "network", "train"]

INPUT = ImageInput(size=(28, 28), order="gray", mean=(0.0,), std=(1.0,), scale=1 / 255)

HELD_OUT_PER_CLASS = 100


def network(dense_storage: Literal["float32", "int8"] = "float32") -> Network:
    """Return the network. ``dense_storage`` is how the file keeps wd1, 97 % of the weights."""
    layers = (
        Conv("conv1", 32, 7, keys=("wc1", "bc1")),
        Relu("relu1"),
        MaxPool("pool1", 2, 2),
        Conv("conv2", 64, 5, keys=("wc2", "bc2")),
        Relu("relu2"),
        MaxPool("pool2", 2, 2),
        Dense("fc1", 1024, storage=dense_storage, keys=("wd1", "bd1")),
        Relu("relu3"),
        Dense("fc2", 10, keys=("wout", "bout")),
        Softmax("prob"),
    )
    labels = tuple(str(digit) for digit in range(10))
    return Network("simple", INPUT, layers, labels, "A small MNIST net")


def build(
    weights: Mapping[str, NDArray[Any]], dense_storage: Literal["float32", "int8"] = "float32"
) -> onnx.ModelProto:
    """Return the net as a checked model. Raises `WeightsError` for arrays that do not fit."""
    return network(dense_storage).build(weights)


def convert(weights: Path, out: Path) -> Path:
    """Write the model ``out`` from an .npz of weights.

    Raises `UsageError` for paths that are not there, `WeightsError` for a file that does not fit.
    """
    net = network()
    return write(net.build(read_npz(weights, net.weights()), str(weights)), out)


def held_out(y: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Return which digits training never sees: the last 100 of each class, in the file's order. y: (N,)."""
    mask = np.zeros(len(y), np.bool_)
    for digit in range(10):
        mask[np.flatnonzero(y == digit)[-HELD_OUT_PER_CLASS:]] = True
    return mask


def accuracy(model: onnx.ModelProto, x: NDArray[np.uint8], y: NDArray[np.integer[Any]]) -> float:
    """Return the share of digits that onnxruntime classifies rightly. x: (N, 28, 28), 0–255."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"data": x[:, None].astype(np.float32) / 255})
    return float((np.asarray(probabilities).argmax(axis=1) == y).mean())


def train(
    x: NDArray[np.uint8], y: NDArray[np.integer[Any]], epochs: int = 40, seed: int = 2014
) -> dict[str, NDArray[np.float32]]:
    """Train the net with PyTorch on digits x (N, 28, 28), 0–255; return its weights in TensorFlow's layout.

    Digits are turned, scaled and shifted a little at random. Dropout sits before the last layer. conv1 has a
    penalty on its values and on the differences between neighbours, so that its filters come out as smooth
    strokes that a reader can name: 4,000 digits alone leave noise in 7×7 filters. The same seed gives the
    same weights on the same machine and number of threads.

    Raises `UsageError` where PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UsageError("training needs PyTorch: pip install 'onnxviz[train]'") from error
    functional = torch.nn.functional
    torch.manual_seed(seed)
    conv1, conv2 = torch.nn.Conv2d(1, 32, 7, padding=3), torch.nn.Conv2d(32, 64, 5, padding=2)
    fc1, fc2 = torch.nn.Linear(7 * 7 * 64, 1024), torch.nn.Linear(1024, 10)
    net = torch.nn.Sequential(
        conv1,
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Dropout2d(0.1),
        conv2,
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        fc1,
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        fc2,
    )
    images = torch.from_numpy(x[:, None].astype(np.float32) / 255)
    labels = torch.from_numpy(y.astype(np.int64))
    batch = 64
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, epochs=epochs, steps_per_epoch=-(-len(x) // batch)
    )
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(x)).split(batch):
            pictures = _jitter(torch, images[chosen])
            loss = functional.cross_entropy(net(pictures), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            (loss + _roughness(conv1.weight)).backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1:2d} of {epochs}: loss {total / len(x):.4f}", flush=True)
    dense = fc1.weight.detach().reshape(1024, 64, 7, 7).permute(2, 3, 1, 0).reshape(-1, 1024)
    tensors = {
        "wc1": conv1.weight.detach().permute(2, 3, 1, 0),
        "bc1": conv1.bias.detach(),
        "wc2": conv2.weight.detach().permute(2, 3, 1, 0),
        "bc2": conv2.bias.detach(),
        "wd1": dense,
        "bd1": fc1.bias.detach(),
        "wout": fc2.weight.detach().T,
        "bout": fc2.bias.detach(),
    }
    return {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in tensors.items()}


def _jitter(torch: Any, images: Any) -> Any:
    """Turn (±10°), scale (±10 %) and shift (±2 pixels) each image. images: (N, 1, 28, 28) tensor."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.35
    scale = 1 + (torch.rand(count) - 0.5) * 0.2
    shift = (torch.rand(count, 2) - 0.5) * 2 * (2 / 14)  # the frame spans -1..1
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


def _roughness(filters: Any) -> Any:
    """Return the penalty on filters (O, I, H, W): squares of their values and of neighbours' differences."""
    across, down = filters.diff(dim=3), filters.diff(dim=2)
    return 1e-3 * filters.square().sum() + 3e-3 * (across.square().sum() + down.square().sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``train`` from the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m onnxviz.converters.simple", description="The small MNIST net."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train the small MNIST net and write it as ONNX")
    command.add_argument(
        "--digits", type=Path, required=True, help=".npz with x (N, 28, 28) uint8 and y (N,)"
    )
    command.add_argument("--out", type=Path, required=True, help="the model to write")
    command.add_argument("--epochs", type=int, default=40, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=2014, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        if not options.digits.is_file():
            raise UsageError(f"digits {options.digits}: no such file")
        with np.load(options.digits, allow_pickle=False) as digits:
            x, y = digits["x"], digits["y"]
        mask = held_out(y)
        weights = train(x[~mask], y[~mask], options.epochs, options.seed)
        model = build(weights, dense_storage="int8")
        print(f"held out: {accuracy(model, x[mask], y[mask]):.2%} of {int(mask.sum()):,} digits right")
        print(f"wrote {write(model, options.out)}")
    except OnnxvizError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
