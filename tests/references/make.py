"""Makes the stored references: small networks exported by PyTorch, and PyTorch's own projections of them.

Run by hand, with PyTorch installed: ``python tests/references/make.py``. The tests only read what it wrote.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent


class Rectifier(torch.autograd.Function):
    """A ReLU (or ReLU6) whose backward pass follows one of the three rules."""

    @staticmethod
    def forward(ctx, x, method, most):
        y = x.clamp(0, most)
        ctx.save_for_backward(y)
        ctx.method, ctx.most = method, most
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        passed = ((y > 0) & (y < ctx.most)).to(g.dtype)
        answer = {"gradient": g * passed, "deconvnet": g.clamp(min=0), "guided": g.clamp(min=0) * passed}
        return answer[ctx.method], None, None


class Rectify(nn.Module):
    """Exported as Relu or Clip; run with the rule that `METHOD` names."""

    method = "gradient"

    def __init__(self, most=float("inf")):
        super().__init__()
        self.most = most

    def forward(self, x):
        if torch.onnx.is_in_onnx_export():
            return torch.relu(x) if self.most == float("inf") else torch.clamp(x, 0.0, self.most)
        return Rectifier.apply(x, Rectify.method, self.most)


def conv(cin, cout, k=3, **options):
    options.setdefault("padding", k // 2)
    return nn.Sequential(nn.Conv2d(cin, cout, k, bias=False, **options), nn.BatchNorm2d(cout), Rectify())


class Residual(nn.Module):
    """Two blocks with skips, one of them with a projection, as in ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 7, stride=2), nn.MaxPool2d(3, 2, 1))
        self.a = nn.Sequential(conv(8, 8), nn.Conv2d(8, 8, 3, padding=1))
        self.b = nn.Sequential(conv(8, 12, stride=2), nn.Conv2d(12, 12, 3, padding=1))
        self.skip = nn.Conv2d(8, 12, 1, stride=2)
        self.relu_a, self.relu_b = Rectify(), Rectify()
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.relu_a(self.a(x) + x)
        x = self.relu_b(self.b(x) + self.skip(x))
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches of unlike sizes, joined, with overlapping and ceil_mode pools."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 5, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.one, self.three = conv(8, 4, 1), nn.Sequential(conv(8, 4, 1), conv(4, 6))
        self.five = nn.Sequential(conv(8, 3, 1), conv(3, 4, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(8, 3, 1))
        self.down = nn.AvgPool2d(3, 2, 1)
        self.last = conv(17, 10, 3)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)
        return self.head(self.last(self.down(x)).mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise convolutions, ReLU6, dilation, uneven strides, LeakyReLU and a sigmoid gate."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=(2, 1), padding=1)
        self.six = Rectify(6.0)
        self.depth = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.leaky = nn.LeakyReLU(0.1)
        self.point = nn.Conv2d(8, 12, 1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.last = nn.Conv2d(12, 6, 3, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.leaky(self.depth(self.six(self.stem(x))))
        x = self.point(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return torch.softmax(self.head(torch.tanh(self.last(x)).flatten(2).mean(2)), 1)


NETWORKS = {"residual": Residual, "inception": Inception, "mobile": Mobile}
SIZE = (37, 41)


def reference(net, x, tensor_of, method):
    """PyTorch's projection of each image's strongest unit in channel 2 of a layer."""
    Rectify.method = method
    x = x.clone().requires_grad_(True)
    kept = {}
    handle = tensor_of(net).register_forward_hook(lambda module, inputs, output: kept.update(y=output))
    net(x)
    handle.remove()
    y = kept["y"]
    flat = y[:, 2].reshape(len(x), -1)
    best = flat.argmax(1)
    seed = torch.zeros_like(flat)
    value = torch.ones(len(x)) if method == "gradient" else flat.detach().gather(1, best[:, None])[:, 0]
    seed[torch.arange(len(x)), best] = value
    (flat * seed).sum().backward()
    return y.detach().numpy(), x.grad.numpy()


# Exporters fold BatchNormalization into the convolution before it, so there its output is what can be compared.
LAYERS = {
    "residual": {"b": lambda net: net.b[1], "head": lambda net: net.head},
    "inception": {"five": lambda net: net.five[1][1], "last": lambda net: net.last[1]},
    "mobile": {"point": lambda net: net.point, "last": lambda net: net.last, "head": lambda net: net.head},
}
METHODS = {"residual": 3, "inception": 3, "mobile": 1}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args().out
    for number, (name, make) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        net = make().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, -1.5, 1.5)
        x = torch.randn(2, 3, *SIZE)
        arrays = {"x": x.numpy()}
        for layer, tensor_of in LAYERS[name].items():
            for method in ("gradient", "deconvnet", "guided")[: METHODS[name]]:
                arrays[f"{layer}/activation"], arrays[f"{layer}/{method}"] = reference(
                    net, x, tensor_of, method
                )
        np.savez_compressed(out / f"{name}.npz", **arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net,
                (x[:1],),
                str(out / f"{name}.onnx"),
                input_names=["image"],
                dynamic_axes={"image": {0: "N"}},
                opset_version=17,
                dynamo=False,
                do_constant_folding=number != 0,
                training=torch.onnx.TrainingMode.EVAL if number else torch.onnx.TrainingMode.PRESERVE,
            )
            torch.onnx.export(
                net,
                (x[:1],),
                str(out / f"{name}_dynamo.onnx"),
                input_names=["image"],
                dynamo=True,
                verbose=False,
                external_data=False,
            )


if __name__ == "__main__":
    main()
