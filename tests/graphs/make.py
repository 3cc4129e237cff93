"""Makes the stored graphs: known architectures, narrow, as PyTorch's two exporters write them, weights left out.

Run by hand, with PyTorch and torchvision installed: ``python tests/graphs/make.py``. The tests only read what it
wrote, through `tests.seeded`. Names that end in ``_dynamo`` come from the newer exporter.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn import functional

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except RuntimeError:  # its compiled part is not for this PyTorch; the models need none of it but these names
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from storage import store  # noqa: E402
from torchvision import models  # noqa: E402
from torchvision.models import convnext, efficientnet, mobilenetv3, regnet, swin_transformer  # noqa: E402
from torchvision.models.detection import ssdlite as detection  # noqa: E402

HERE = Path(__file__).parent


@contextlib.contextmanager
def narrow(factor):
    """While it is on, layers are made with their channels divided by ``factor``, pictures (1 or 3) excepted."""

    def less(channels):
        return channels if channels < 2 * factor else channels // factor

    def narrowed(original, counts):
        def init(self, *args, **kwargs):
            args = [less(a) if i < counts else a for i, a in enumerate(args)]
            if "groups" in kwargs:
                kwargs["groups"] = 1 if kwargs["groups"] == 1 else less(kwargs["groups"])
            original(self, *args, **kwargs)

        return init

    kinds = ((nn.Conv2d, 2), (nn.BatchNorm2d, 1), (nn.Linear, 1))
    kept = [(kind, kind.__init__) for kind, _ in kinds]
    for kind, counts in kinds:
        kind.__init__ = narrowed(kind.__init__, counts)
    try:
        yield
    finally:
        for kind, original in kept:
            kind.__init__ = original


def narrowed(make, factor, **options):
    def made():
        with narrow(factor):
            return make(weights=None, **options)

    return made


class Outputs(nn.Module):
    """A network that answers with a dictionary, exported with a tuple."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return tuple(self.net(x).values())


class Heads(nn.Module):
    """A detector's backbone and heads, before anchors and suppression: one box map and one score map a scale."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone = backbone
        self.boxes, self.scores = head.regression_head.module_list, head.classification_head.module_list

    def forward(self, x):
        features = list(self.backbone(x).values())
        boxes = [head(f) for head, f in zip(self.boxes, features, strict=True)]
        scores = [head(f) for head, f in zip(self.scores, features, strict=True)]
        return (*boxes, *scores)


def conv(cin, cout, k=3, s=1, act=nn.SiLU):
    return nn.Sequential(nn.Conv2d(cin, cout, k, s, k // 2, bias=False), nn.BatchNorm2d(cout), act())


class Split(nn.Module):
    """A block that splits its channels and keeps every intermediate result, as in YOLOv8."""

    def __init__(self, cin, cout):
        super().__init__()
        self.first, self.last = conv(cin, cout, 1), conv(2 * cout, cout, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(cout // 2, cout // 2), conv(cout // 2, cout // 2)) for _ in range(2)
        )

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Three scales, upsampled and joined; boxes decoded from distributions of distances, as one output."""

    def __init__(self, width=8, classes=5, bins=8):
        super().__init__()
        w, self.bins = width, bins
        self.one = nn.Sequential(conv(3, w, 3, 2), conv(w, 2 * w, 3, 2), Split(2 * w, 2 * w))
        self.two = nn.Sequential(conv(2 * w, 4 * w, 3, 2), Split(4 * w, 4 * w))
        self.three = nn.Sequential(conv(4 * w, 8 * w, 3, 2), Split(8 * w, 8 * w))
        self.squeeze, self.spread = conv(8 * w, 4 * w, 1), conv(16 * w, 8 * w, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.join_two, self.join_one = Split(12 * w, 4 * w), Split(6 * w, 2 * w)
        sizes = (2 * w, 4 * w, 8 * w)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Sequential(conv(c, c), nn.Conv2d(c, n, 1)) for n in (4 * bins, classes))
            for c in sizes
        )

    def forward(self, x):
        one = self.one(x)
        two = self.two(one)
        pools = [self.squeeze(self.three(two))]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        three = self.spread(torch.cat(pools, 1))
        two = self.join_two(torch.cat([self.up(three), two], 1))
        one = self.join_one(torch.cat([self.up(two), one], 1))
        boxes, scores = [], []
        for stride, feature, (box, score) in zip((4, 8, 16), (one, two, three), self.heads, strict=True):
            n, _, h, w = feature.shape
            sides = box(feature).reshape(n, 4, self.bins, h * w).softmax(2)
            sides = (sides * torch.arange(self.bins, dtype=sides.dtype)[:, None]).sum(2)
            ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            centres = torch.stack((xs.reshape(-1), ys.reshape(-1)))
            low, high = centres - sides[:, :2], centres + sides[:, 2:]
            boxes.append(torch.cat(((low + high) / 2, high - low), 1) * stride)
            scores.append(score(feature).reshape(n, -1, h * w).sigmoid())
        return torch.cat((torch.cat(boxes, 2), torch.cat(scores, 2)), 1)


class Gated(nn.Module):
    """A gated residual block with dilation, as in WaveNet."""

    def __init__(self, channels, dilation):
        super().__init__()
        self.wide = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        filtered, gate = self.wide(x).chunk(2, 1)
        return x + self.mix(torch.tanh(filtered) * torch.sigmoid(gate))


def waveform():
    """A sound's samples, (N, 1, T), to classes."""

    def block(cin, cout):
        return nn.Sequential(
            nn.Conv1d(cin, cout, 3, padding=1), nn.BatchNorm1d(cout), nn.ReLU(), nn.MaxPool1d(2)
        )

    stem = nn.Sequential(nn.Conv1d(1, 16, 32, stride=8), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4))
    return nn.Sequential(
        stem, block(16, 24), Gated(24, 1), Gated(24, 2), block(24, 32), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(32, 7),
    )  # fmt: skip


class Spectrogram(nn.Module):
    """A sound's spectrogram, (N, 1, mel, T) with T open, to classes: mean and maximum over time, as in PANNs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(a, b, act=nn.ReLU), conv(b, b, act=nn.ReLU)) for a, b in ((1, 12), (12, 24))
        )
        self.hidden, self.head = nn.Linear(24, 32), nn.Linear(32, 7)

    def forward(self, x):
        x = self.norm(x)
        for block in self.blocks:
            x = functional.avg_pool2d(block(x), 2)
        x = x.mean(2)
        x = x.amax(2) + x.mean(2)
        return torch.sigmoid(self.head(functional.relu(self.hidden(x))))


class Ocr(nn.Module):
    """A line of text, (N, 1, 32, W) with W open, to a distribution over letters a step."""

    def __init__(self, recurrent):
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 12, act=nn.ReLU), nn.MaxPool2d(2), conv(12, 20, act=nn.ReLU), nn.MaxPool2d((2, 1)),
            conv(20, 28, act=nn.LeakyReLU), nn.MaxPool2d((2, 1), ceil_mode=True),
            nn.Conv2d(28, 32, (4, 3), padding=(0, 1)), nn.InstanceNorm2d(32, affine=True), nn.ReLU(),
        )  # fmt: skip
        self.lstm = nn.LSTM(32, 12, bidirectional=True) if recurrent else None
        self.head = nn.Linear(24 if recurrent else 32, 11)

    def forward(self, x):
        x = self.body(x).squeeze(2).permute(2, 0, 1)
        if self.lstm is not None:
            x = self.lstm(x)[0]
        return functional.log_softmax(self.head(x), -1)


def mobilenet_v3_small():
    setting, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.5)
    return models.MobileNetV3(setting, last, num_classes=10)


def efficientnet_b0():
    setting, last = efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.35, depth_mult=1.0)
    return models.EfficientNet(setting, 0.2, num_classes=10, last_channel=last)


def regnet_y():
    params = regnet.BlockParams.from_init_params(
        depth=16, w_0=16, w_a=9.3, w_m=2.09, group_width=8, se_ratio=0.25
    )
    return models.RegNet(params, num_classes=10)


def convnext_tiny():
    widths = (16, 24, 32, 48, None)
    setting = [convnext.CNBlockConfig(widths[i], widths[i + 1], n) for i, n in enumerate((3, 3, 9, 3))]
    return models.ConvNeXt(setting, layer_scale=0.5, num_classes=10)


def swin():
    return swin_transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def ssdlite():
    setting, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_large", width_mult=0.35, reduced_tail=True)
    backbone = models.MobileNetV3(setting, last).features
    fourth = max(i for i, block in enumerate(backbone) if getattr(block, "_is_cn", False))
    backbone = detection.SSDLiteFeatureExtractorMobileNet(backbone, fourth, nn.BatchNorm2d, width_mult=0.25)
    with torch.no_grad():
        channels = [f.shape[1] for f in backbone(torch.zeros(2, 3, 96, 96)).values()]
    return Heads(backbone, detection.SSDLiteHead(channels, [6] * len(channels), 5, nn.BatchNorm2d))


def segmenter(make, factor, **options):
    def made():
        with narrow(factor):
            return Outputs(make(weights=None, weights_backbone=None, num_classes=5, **options))

    return made


IMAGE = (1, 3, 64, 64)
NETWORKS = {
    "resnet18": (narrowed(models.resnet18, 4), IMAGE),
    "resnet50": (narrowed(models.resnet50, 4), IMAGE),
    "mobilenet_v2": (lambda: models.mobilenet_v2(width_mult=0.35, num_classes=10), IMAGE),
    "mobilenet_v3_small": (mobilenet_v3_small, IMAGE),
    "efficientnet_b0": (efficientnet_b0, (1, 3, 96, 96)),
    "densenet121": (lambda: models.DenseNet(8, (6, 12, 24, 16), 16, num_classes=10), IMAGE),
    "googlenet": (narrowed(models.googlenet, 4, aux_logits=False, init_weights=False), IMAGE),
    "inception_v3": (narrowed(models.inception_v3, 4, aux_logits=False, init_weights=False), (1, 3, 96, 96)),
    "shufflenet_v2": (lambda: models.ShuffleNetV2([4, 8, 4], [24, 24, 48, 96, 128], num_classes=10), IMAGE),
    "regnet_y": (regnet_y, IMAGE),
    "convnext_tiny": (convnext_tiny, IMAGE),
    "mnasnet": (lambda: models.MNASNet(0.35, num_classes=10), IMAGE),
    "squeezenet": (narrowed(models.squeezenet1_1, 2), IMAGE),
    "vit": (lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10), (1, 3, 32, 32)),
    "swin": (swin, IMAGE),
    "lraspp": (segmenter(models.segmentation.lraspp_mobilenet_v3_large, 4), IMAGE),
    "deeplabv3": (segmenter(models.segmentation.deeplabv3_resnet50, 8, aux_loss=True), IMAGE),
    "ssdlite": (ssdlite, (1, 3, 96, 96)),
    "yolo": (Yolo, IMAGE),
    "waveform": (waveform, (1, 1, 1024)),
    "spectrogram": (Spectrogram, (1, 1, 32, 48)),
    "ocr": (lambda: Ocr(False), (1, 1, 32, 64)),
    "crnn": (lambda: Ocr(True), (1, 1, 32, 64)),
}
"""How to make each, and the shape of an example input; the batch is always left open."""

OPEN = {"lraspp": {2: "H", 3: "W"}, "spectrogram": {3: "T"}, "ocr": {3: "W"}, "crnn": {3: "W"}}
"""Axes left open besides the batch."""

OPSETS = {"squeezenet": 9, "mnasnet": 11, "shufflenet_v2": 13}
"""For the older exporter, where it is not 17."""

UNFOLDED = ("resnet18", "mobilenet_v2")
"""The older exporter leaves their BatchNormalization, and its constants, as they are."""


def export(name, path, dynamo):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    for tensor in net.state_dict().values():  # equal ones would be stored once
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, *shape[1:])
    axes = {0: "N", **OPEN.get(name, {})}
    options = {"input_names": ["image"], "dynamo": dynamo, "verbose": False}
    if dynamo:
        options["dynamic_shapes"] = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
        options["external_data"] = False
    else:
        options["dynamic_axes"] = {"image": axes}
        options["opset_version"] = OPSETS.get(name, 17)
        if name in UNFOLDED:
            options["training"] = torch.onnx.TrainingMode.PRESERVE
            options["do_constant_folding"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), **options)
    return set(net.state_dict())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    for name in args.names:
        for dynamo in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                parameters = export(name, path, dynamo)
                store(
                    onnx.load(str(path)), parameters, NETWORKS[name][1], args.out, name + "_dynamo" * dynamo
                )


if __name__ == "__main__":
    main()
