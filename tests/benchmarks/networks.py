"""The networks that are measured, as PyTorch modules with seeded weights, and as ONNX files with the same weights.

Each is the published architecture up to its last convolution; classifiers are left out, except of the VGG16 that
`onnxviz layers` opens. Two things are as Captum needs them, in both nets alike: every rectifier is an `nn.ReLU` of
its own (MobileNet's ReLU6 too: Captum hooks no other), and the deconvnet passes LRN by, which Captum does not know
of, so that here LRN's backward pass is the identity.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Net", "export", "make", "seed_weights", "vgg16_with_classifier"]


@dataclass(frozen=True)
class Net:
    """A network. ``layers`` are the measured ones: what to call each, and the path of its module.

    The module of a layer ends in a convolution, or in the batch normalisation that exporters fold into one.
    """

    name: str
    module: nn.Sequential
    size: int
    layers: Mapping[str, str]

    def layer(self, name: str) -> nn.Module:
        """The module of a measured layer."""
        return self.module.get_submodule(self.layers[name])

    def channels(self, name: str) -> int:
        """How many channels a measured layer has."""
        return self._convolution(name).out_channels

    def cut(self, name: str) -> nn.Sequential:
        """The network up to the block that a measured layer is in."""
        last = self.layers[name].split(".")[0]
        children = list(self.module.named_children())
        end = [child for child, _ in children].index(last) + 1
        return nn.Sequential(OrderedDict(children[:end]))

    def aliases(self) -> dict[str, str]:
        """For each measured layer onnxviz's name of it: which of the file's convolutions it is, in order."""
        order: list[nn.Module] = []
        hooks = [
            module.register_forward_pre_hook(lambda module, _: order.append(module))
            for module in self.module.modules()
            if isinstance(module, nn.Conv2d)
        ]
        with torch.inference_mode():
            self.module(torch.zeros(1, 3, self.size, self.size))
        for hook in hooks:
            hook.remove()
        return {name: f"conv{order.index(self._convolution(name)) + 1}" for name in self.layers}

    def _convolution(self, name: str) -> nn.Conv2d:
        return next(m for m in reversed(list(self.layer(name).modules())) if isinstance(m, nn.Conv2d))


def make(name: str, seed: int = 0) -> Net:
    """A network of `NETWORKS`, its weights seeded, in evaluation mode."""
    net = NETWORKS[name]()
    seed_weights(net.module, seed)
    return net


def seed_weights(module: nn.Module, seed: int) -> None:
    """Random weights that keep activations in size; statistics and biases as of a network that has been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                fan_in = math.prod(part.weight.shape[1:])
                part.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
                if part.bias is not None:
                    part.bias.normal_(0, 0.05, generator=generator)
            elif isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.0, generator=generator)
                part.bias.normal_(0, 0.05, generator=generator)
                part.running_mean.normal_(0, 0.05, generator=generator)
                part.running_var.uniform_(0.8, 1.2, generator=generator)
    module.eval()
    module.requires_grad_(False)


def export(module: nn.Module, size: int, path: Path) -> Path:
    """Write a module as ONNX, of open batch. Batch normalisations become part of the convolutions before them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is the old one; the new one needs another package
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, size, size),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["features"],
            dynamic_axes={"image": {0: "N"}, "features": {0: "N"}},
        )
    return path


# Blocks


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return nn.functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g

    @staticmethod
    def symbolic(graph: Any, x: Any) -> Any:
        return graph.op("LRN", x, size_i=5, alpha_f=1e-4, beta_f=0.75, bias_f=1.0)


class LocalResponseNorm(nn.Module):
    """Caffe's LRN across five channels; its backward pass is the identity."""

    def forward(self, x: Tensor) -> Tensor:
        return _LocalResponseNorm.apply(x)  # type: ignore[no-any-return]


def _normalised(
    cin: int, cout: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: Any = 0, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias, and its batch normalisation."""
    conv = nn.Conv2d(cin, cout, kernel, stride, pad, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(cout)))


def _rectified(cin: int, cout: int, *args: Any, **options: Any) -> nn.Sequential:
    """`_normalised`, then a ReLU."""
    return nn.Sequential(OrderedDict(layer=_normalised(cin, cout, *args, **options), relu=nn.ReLU()))


class Branches(nn.Module):
    """Branches side by side, their channels joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Bottleneck(nn.Module):
    """ResNet's (version 1.5: the stride is at the 3×3)."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = 4 * width
        self.first = _rectified(cin, width)
        self.second = _rectified(width, width, 3, stride, 1)
        self.last = _normalised(width, cout)
        self.shortcut = nn.Identity() if cin == cout else _normalised(cin, cout, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.last(self.second(self.first(x))) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNet v2's inverted residual."""

    def __init__(self, cin: int, cout: int, stride: int, factor: int) -> None:
        super().__init__()
        width = cin * factor
        self.wide = nn.Identity() if factor == 1 else _rectified(cin, width)
        self.deep = _rectified(width, width, 3, stride, 1, groups=width)
        self.narrow = _normalised(width, cout)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.deep(self.wide(x)))
        return x + y if self.residual else y


class Dense(nn.Module):
    """DenseNet's layer: it adds 32 channels to those it is given."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(cin), nn.ReLU()
        self.narrow = _rectified(cin, 128)
        self.last = nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.last(self.narrow(self.relu(self.norm(x))))], 1)


# Networks


def alexnet() -> Net:
    """Krizhevsky et al. (2012), as Caffe's bvlc_alexnet: groups, and normalisation before pooling."""

    def block(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        pad = kernel // 2 if stride == 1 else 0
        return [nn.Conv2d(cin, cout, kernel, stride, pad, groups=groups), nn.ReLU()]

    def pool() -> list[nn.Module]:
        return [LocalResponseNorm(), nn.MaxPool2d(3, 2)]

    parts = [
        *(*block(3, 96, 11, stride=4), *pool()),
        *(*block(96, 256, 5, groups=2), *pool()),
        *(*block(256, 384, 3), *block(384, 384, 3, groups=2), *block(384, 256, 3, groups=2)),
    ]
    convs = [str(i) for i, part in enumerate(parts) if isinstance(part, nn.Conv2d)]
    return Net("AlexNet", nn.Sequential(*parts), 227, {f"conv{i + 1}": path for i, path in enumerate(convs)})


def vgg16() -> Net:
    """Simonyan and Zisserman (2014), configuration D."""
    parts: list[nn.Module] = []
    layers: dict[str, str] = {}
    cin = 3
    for stage, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        if stage > 1:
            parts.append(nn.MaxPool2d(2))
        for number in range(1, count + 1):
            layers[f"conv{stage}_{number}"] = str(len(parts))
            parts += [nn.Conv2d(cin, width, 3, padding=1), nn.ReLU()]
            cin = width
    return Net("VGG16", nn.Sequential(*parts), 224, {name: layers[name] for name in ("conv5_3", "conv4_3")})


def vgg16_with_classifier() -> nn.Sequential:
    """All of VGG16: 138 million weights."""
    widths = [512 * 7 * 7, 4096, 4096, 1000]
    dense = [nn.Linear(cin, cout) for cin, cout in pairwise(widths)]
    return nn.Sequential(
        vgg16().module,
        nn.MaxPool2d(2),
        nn.Flatten(),
        *(dense[0], nn.ReLU(), dense[1], nn.ReLU(), dense[2]),
    )


def resnet50() -> Net:
    """He et al. (2015); measured is the last convolution of each of the four stages."""
    blocks: dict[str, nn.Module] = {"stem": _rectified(3, 64, 7, 2, 3), "pool": nn.MaxPool2d(3, 2, 1)}
    layers: dict[str, str] = {}
    cin = 64
    for stage, count in enumerate([3, 4, 6, 3], 1):
        width = 32 * 2**stage
        for number in range(1, count + 1):
            name = f"stage{stage}_{number}"
            blocks[name] = Bottleneck(cin, width, 2 if number == 1 and stage > 1 else 1)
            cin = 4 * width
        layers[f"stage {stage}"] = f"{name}.last"
    return Net("ResNet-50", nn.Sequential(OrderedDict(blocks)), 224, layers)


def mobilenet_v2() -> Net:
    """Sandler et al. (2018), with ReLU for ReLU6; measured is the last convolution of the tenth block of 17."""
    blocks: dict[str, nn.Module] = {"stem": _rectified(3, 32, 3, 2, 1)}
    cin, number = 32, 0
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)]
    for factor, cout, count, stride in [*table, (6, 320, 1, 1)]:
        for index in range(count):
            number += 1
            blocks[f"block{number}"] = Inverted(cin, cout, stride if index == 0 else 1, factor)
            cin = cout
    blocks["head"] = _rectified(cin, 1280)
    return Net("MobileNet v2", nn.Sequential(OrderedDict(blocks)), 224, {"block 10": "block10.narrow"})


def inception_v3() -> Net:
    """Szegedy et al. (2015), as in torchvision; measured is the last 7×1 convolution of the block Mixed_6b."""
    r, row, column = _rectified, (1, 7), (7, 1)

    def chain(cin: int, *steps: tuple[Any, ...]) -> nn.Sequential:
        parts = []
        for cout, *rest in steps:
            parts.append(r(cin, cout, *rest))
            cin = cout
        return nn.Sequential(*parts)

    def averaged(cin: int, cout: int) -> nn.Sequential:
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), r(cin, cout))

    def a(cin: int, pooled: int) -> Branches:
        double = chain(cin, (64,), (96, 3, 1, 1), (96, 3, 1, 1))
        return Branches(r(cin, 64), chain(cin, (48,), (64, 5, 1, 2)), double, averaged(cin, pooled))

    def b(cin: int, w: int) -> Branches:
        across, down = (row, 1, (0, 3)), (column, 1, (3, 0))
        single = chain(cin, (w,), (w, *across), (192, *down))
        double = chain(cin, (w,), (w, *down), (w, *across), (w, *down), (192, *across))
        return Branches(r(cin, 192), single, double, averaged(cin, 192))

    def c(cin: int) -> Branches:
        def fork() -> Branches:
            return Branches(r(384, 384, (1, 3), 1, (0, 1)), r(384, 384, (3, 1), 1, (1, 0)))

        return Branches(
            r(cin, 320),
            nn.Sequential(r(cin, 384), fork()),
            nn.Sequential(chain(cin, (448,), (384, 3, 1, 1)), fork()),
            averaged(cin, 192),
        )

    blocks = {
        "stem": chain(3, (32, 3, 2), (32, 3), (64, 3, 1, 1)),
        "pool1": nn.MaxPool2d(3, 2),
        "middle": chain(64, (80,), (192, 3)),
        "pool2": nn.MaxPool2d(3, 2),
        "mixed5b": a(192, 32),
        "mixed5c": a(256, 64),
        "mixed5d": a(288, 64),
        "mixed6a": Branches(
            r(288, 384, 3, 2), chain(288, (64,), (96, 3, 1, 1), (96, 3, 2)), nn.MaxPool2d(3, 2)
        ),
        "mixed6b": b(768, 128),
        "mixed6c": b(768, 160),
        "mixed6d": b(768, 160),
        "mixed6e": b(768, 192),
        "mixed7a": Branches(
            chain(768, (192,), (320, 3, 2)),
            chain(768, (192,), (192, row, 1, (0, 3)), (192, column, 1, (3, 0)), (192, 3, 2)),
            nn.MaxPool2d(3, 2),
        ),
        "mixed7b": c(1280),
        "mixed7c": c(2048),
    }
    layers = {"Mixed_6b": "mixed6b.branches.1.2.layer"}
    return Net("Inception v3", nn.Sequential(OrderedDict(blocks)), 299, layers)


def densenet121() -> Net:
    """Huang et al. (2016); measured is the last convolution of the twelfth layer of 24 in the third block."""
    blocks: dict[str, nn.Module] = {"stem": _rectified(3, 64, 7, 2, 3), "pool": nn.MaxPool2d(3, 2, 1)}
    width = 64
    for stage, count in enumerate([6, 12, 24, 16], 1):
        for number in range(1, count + 1):
            blocks[f"dense{stage}_{number}"] = Dense(width)
            width += 32
        if stage < 4:
            narrow = nn.Conv2d(width, width // 2, 1, bias=False)
            blocks[f"transition{stage}"] = nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), narrow, nn.AvgPool2d(2)
            )
            width //= 2
    blocks["norm"] = nn.BatchNorm2d(width)
    return Net("DenseNet-121", nn.Sequential(OrderedDict(blocks)), 224, {"block 3": "dense3_12.last"})


def tiny() -> Net:
    """A toy for the tests, with all that matters: LRN, overlapping pools, groups, residuals, branches."""
    blocks = {
        "conv1": nn.Conv2d(3, 8, 5, 2),
        "relu1": nn.ReLU(),
        "norm1": LocalResponseNorm(),
        "pool1": nn.MaxPool2d(3, 2),
        "block": Bottleneck(8, 4, 1),
        "inverted": Inverted(16, 16, 1, 2),
        "dense": Dense(16),
        "mixed": Branches(_rectified(48, 6, 3, 2), nn.MaxPool2d(3, 2)),
        "conv2": nn.Conv2d(54, 12, 3, padding=1, groups=2),
        "relu2": nn.ReLU(),
    }
    layers = {"conv1": "conv1", "residual": "block.last", "dense": "dense.last", "conv2": "conv2"}
    return Net("tiny", nn.Sequential(OrderedDict(blocks)), 43, layers)


NETWORKS: Mapping[str, Callable[[], Net]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "inception_v3": inception_v3,
    "densenet121": densenet121,
    "tiny": tiny,
}
