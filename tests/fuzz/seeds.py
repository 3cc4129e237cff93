"""Good files of every kind that onnxviz reads, all small: what the mutators start from."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper
from PIL import Image

from onnxviz.analysis import analyze
from onnxviz.converters.builder import Conv, Dense, ImageInput, MaxPool, Network, Relu
from onnxviz.scans.job import fed
from onnxviz.scans.saved import Origin
from tests.converters.synthetic import he_weights, paired, write_python2_npy
from tests.model.nets import build, conv_weights, node, small, subgraph, write
from tests.reverse.node_tests import collected
from tests.scans import synthetic

__all__ = [
    "TINY",
    "Case",
    "archives",
    "arrays",
    "atlases",
    "images",
    "models",
    "nodes",
    "saved_scans",
    "texts",
    "weights",
]

Case: TypeAlias = dict[str, bytes]
"""Files by name; the first is the one that is opened."""

RNG = np.random.default_rng(0)
W = {"w": conv_weights(RNG, 4, 3, 3, 3), "v": conv_weights(RNG, 4, 4, 3, 3)}
CONV = node("Conv", "x w", "a", "conv")


def _case(model: onnx.ModelProto) -> Case:
    return {"model.onnx": model.SerializeToString()}


def _reshaped() -> onnx.ModelProto:
    """Sizes that are worked out, as exporters write them."""
    nodes = [
        CONV,
        node("Shape", "a", "s"),
        node("Gather", "s first", "n"),
        node("Unsqueeze", "n axes", "nn"),
        node("Concat", "nn rest", "target", axis=0),
        node("Reshape", "a target", "r"),
        node("ConstantOfShape", "size", "zeros"),
        node("Expand", "bias size", "biases"),
        node("Add", "zeros biases", "offset"),
        node("Tile", "offset repeats", "offsets"),
        node("MatMul", "r offsets", "y", "fc"),
        node("Range", "start limit step", "steps"),
        node("Cast", "steps", "real", to=TensorProto.FLOAT),
        node("Add", "y real", "z", "shift"),
    ]
    weights = {
        **W,
        "first": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
        "size": np.array([400, 2]),
        "bias": np.ones((1, 2), np.float32),
        "repeats": np.array([1, 3]),
        "start": np.array(0),
        "limit": np.array(6),
        "step": np.array(1),
    }
    return build(nodes, weights)


def _resized() -> onnx.ModelProto:
    nodes = [
        node("Pad", "x pads", "p", "pad"),
        node("Conv", "p w", "a", "conv", strides=[2, 2], group=1),
        node("LRN", "a", "l", "lrn", size=3),
        node("LeakyRelu", "l", "r", "act", alpha=0.1),
        node("Resize", "r - scales", "b", "up", mode="nearest"),
        node("Slice", "b starts ends axes", "c", "crop"),
        node("Concat", "c c", "d", axis=1),
        node("Split", "d", "e f", axis=1, num_outputs=2),
        node("ConvTranspose", "e t", "g", "deconv", strides=[2, 2], output_padding=[1, 1]),
        node("AveragePool", "g", "h", "pool", kernel_shape=[2, 2], ceil_mode=1),
        node("Softmax", "h", "y", "soft", axis=1),
    ]
    weights = {
        **W,
        "t": conv_weights(RNG, 4, 2, 3, 3),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "starts": np.array([0, 0]),
        "ends": np.array([9, 2**31]),
        "axes": np.array([2, 3]),
    }
    return build(nodes, weights, opset=18)


def _controlled() -> onnx.ModelProto:
    """A Loop, an If and a Scan whose trip counts and conditions are constant."""
    step = subgraph(
        [node("Add", "h bias", "h2"), node("Identity", "go", "go2")],
        "go2 h2",
        "i go h",
        types={"i": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "go2": (TensorProto.BOOL, [])},
    )
    branches = {
        "then_branch": subgraph([node("Relu", "h3", "p")], "p"),
        "else_branch": subgraph([node("Neg", "h3", "q")], "q"),
    }
    nodes = [
        CONV,
        node("Loop", "trips true a", "h3", "loop", body=step),
        node("If", "true", "b", "choice", **branches),
        node("Conv", "b v", "y", "last"),
    ]
    return build(nodes, {**W, "trips": np.array(3), "true": np.array(True), "bias": np.float32(0.1)})


def _quantised() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("QLinearConv", "xq s z wq s zw s z", "aq", "conv"),
        node("DequantizeLinear", "aq s z", "a"),
        node("GlobalMaxPool", "a", "g"),
        node("Flatten", "g", "y"),
    ]
    weights = {
        "s": np.array(0.05, np.float32),
        "z": np.array(100, np.uint8),
        "zw": np.array(0, np.int8),
        "wq": RNG.integers(-9, 9, (4, 3, 3, 3)).astype(np.int8),
    }
    return build(nodes, weights)


def _with_functions() -> onnx.ModelProto:
    inner = [node("Conv", "a w", "c"), node("Relu", "c", "d")]
    block = helper.make_function("local", "Block", ["a", "w"], ["d"], inner, [helper.make_opsetid("", 17)])
    calls = [node("Block", "x w", "h", domain="local"), node("Block", "h v", "y", domain="local")]
    model = build(calls, W, domains=["local"])
    model.functions.append(block)
    return model


def _external() -> Case:
    model = small()
    data = bytearray()
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        external_data_helper.set_external_data(tensor, "weights.bin", offset=len(data), length=len(raw))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        data += raw
    return {"model.onnx": model.SerializeToString(), "weights.bin": bytes(data)}


def _sequence() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w", "a", "conv_a", strides=[2], pads=[3, 3]),
        node("Transpose", "a", "t", perm=[2, 0, 1]),
        node("LSTM", "t k r", "l", "lstm", hidden_size=3),
        node("Squeeze", "l one", "q"),
        node("Transpose", "q", "y", perm=[1, 2, 0]),
        node("Conv", "y v", "z", "conv_b"),
    ]
    weights = {
        "w": conv_weights(RNG, 6, 5, 7),
        "v": conv_weights(RNG, 4, 3, 3),
        "k": conv_weights(RNG, 1, 12, 6),
        "r": conv_weights(RNG, 1, 12, 3),
        "one": np.array([1]),
    }
    return build(nodes, weights, x=("N", 5, 30))


def _last() -> onnx.ModelProto:
    """Channels last, half precision, a fixed batch, metadata."""
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Transpose", "h", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "a", "conv", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Clip", "a low high", "r", "relu6"),
        node("GlobalAveragePool", "r", "g"),
        node("Flatten", "g", "y"),
    ]
    weights = {"w": W["w"].astype(np.float16), "low": np.float16(0), "high": np.float16(6)}
    metadata = {"onnxviz.preprocess": '{"preset": "tf"}', "onnxviz.labels": '["a", "b", "c", "d"]'}
    return build(nodes, weights, x=(2, 12, 12, 3), metadata=metadata)


@cache
def models() -> Mapping[str, Case]:
    """Every feature of the format that opening a model deals with."""
    found = {
        "small": small(),
        "small-opset-8": small(opset=8),
        "reshaped": _reshaped(),
        "resized": _resized(),
        "controlled": _controlled(),
        "quantised": _quantised(),
        "functions": _with_functions(),
        "sequence": _sequence(),
        "channels-last": _last(),
    }
    return {**{name: _case(model) for name, model in found.items()}, "external": _external()}


@cache
def nodes() -> Mapping[str, Case]:
    """onnx's own tests of its operators: one small model for each way to use one."""
    found = {name: case.model.SerializeToString() for name, case in collected().items()}
    return {name: {"model.onnx": data} for name, data in found.items() if len(data) < 1 << 14}


def _photo(height: int = 21, width: int = 18) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def images() -> Mapping[str, Case]:
    """A picture of every format and pixel type that is read."""
    photo, exif = _photo(), Image.Exif()
    exif[0x0112] = 6
    sixteen = Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200)
    found: dict[str, tuple[str, bytes]] = {
        "png": ("x.png", _encoded(photo, "PNG")),
        "png-rgba": ("x.png", _encoded(photo.convert("RGBA"), "PNG")),
        "png-palette": ("x.png", _encoded(photo.quantize(8), "PNG", transparency=0)),
        "png-16": ("x.png", _encoded(sixteen, "PNG")),
        "png-bits": ("x.png", _encoded(photo.convert("1"), "PNG")),
        "apng": ("x.apng", _encoded(photo, "PNG", save_all=True, append_images=[photo.rotate(90)])),
        "jpeg": ("x.jpg", _encoded(photo, "JPEG", exif=exif)),
        "jpeg-large": ("x.jpg", _encoded(_photo(130, 90), "JPEG", progressive=True)),
        "jpeg-cmyk": ("x.jpeg", _encoded(photo.convert("CMYK"), "JPEG")),
        "mpo": ("x.mpo", _encoded(photo, "MPO", save_all=True, append_images=[photo])),
        "bmp": ("x.bmp", _encoded(photo, "BMP")),
        "dib": ("x.dib", _encoded(photo, "DIB")),
        "gif": ("x.gif", _encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(90)])),
        "webp": ("x.webp", _encoded(photo, "WEBP")),
        "webp-lossless": ("x.webp", _encoded(photo.convert("RGBA"), "WEBP", lossless=True)),
        "avif": ("x.avif", _encoded(photo, "AVIF")),
        "tiff": ("x.tiff", _encoded(photo, "TIFF", exif=exif)),
        "tiff-lzw": ("x.tif", _encoded(photo, "TIFF", compression="tiff_lzw")),
        "tiff-16": ("x.tif", _encoded(sixteen, "TIFF")),
        "ppm": ("x.ppm", _encoded(photo, "PPM")),
        "pgm-16": ("x.pgm", b"P5 2 1 65535\n\x01\x01\xff\xff"),
        "pbm-text": ("x.pbm", b"P1\n# text\n3 2\n1 0 1\n0 1 0\n"),
    }
    return {name: {file: data} for name, (file, data) in found.items()}


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of some files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


@cache
def archives() -> Mapping[str, Case]:
    """Pictures in zip and tar files."""
    small_ones = ("png", "jpeg", "gif", "pgm-16")
    files = {
        f"class{i % 2}/{i}{next(iter(images()[n]))}": next(iter(images()[n].values()))
        for i, n in enumerate(small_ones)
    }

    def tar(mode: str) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    return {
        "zip": {"x.zip": zipped(files)},
        "zip-stored": {"x.zip": zipped(files, zipfile.ZIP_STORED)},
        "zip-lzma": {"x.zip": zipped(files, zipfile.ZIP_LZMA)},
        "tar": {"x.tar": tar("w")},
        "tgz": {"x.tgz": tar("w:gz")},
        "tbz2": {"x.tar.bz2": tar("w:bz2")},
        "txz": {"x.tar.xz": tar("w:xz")},
    }


def npy(array: np.ndarray) -> bytes:
    """An array as .npy."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@cache
def arrays() -> Mapping[str, Case]:
    """Data sets in .npy and .npz."""
    x = np.random.default_rng(1).integers(0, 256, (5, 8, 7, 3), np.uint8)
    npz = {"x.npy": npy(x), "y.npy": npy(np.arange(5))}
    return {
        "npy-bytes": {"x.npy": npy(x)},
        "npy-floats": {"x.npy": npy(x.transpose(0, 3, 1, 2).astype(np.float32))},
        "npy-planes": {"x.npy": npy(x[..., 0].astype(np.int32))},
        "npy-bool": {"x.npy": npy(np.asfortranarray(x[..., 0] > 99))},
        "npz": {"x.npz": zipped(npz)},
        "npz-stored": {"x.npz": zipped(npz, zipfile.ZIP_STORED)},
    }


TINY = Network(
    "tiny",
    ImageInput(size=(6, 6), order="rgb", mean=(0.0, 1.0, 2.0), std=(1.0, 1.0, 1.0)),
    (Conv("c1", 2, 3), Relu("r1"), MaxPool("p1", 2, 2), Dense("f1", 3)),
    ("a", "b", "c"),
    "A tiny net",
)
"""A network of the converters' kind whose weights are small."""


@cache
def weights() -> Mapping[str, Case]:
    """Weight files as the converters read them."""
    found = he_weights(TINY, 0)
    with tempfile.TemporaryDirectory() as folder:
        python2 = write_python2_npy(Path(folder, "x.npy"), paired(found)).read_bytes()
    pickled = io.BytesIO()
    np.save(pickled, np.array(paired(found), dtype=object), allow_pickle=True)
    return {
        "npz": {"x.npz": zipped({f"{name}.npy": npy(array) for name, array in found.items()})},
        "python2": {"x.npy": python2},
        "python3": {"x.npy": pickled.getvalue()},
    }


@cache
def atlases() -> Mapping[str, Case]:
    """A saved atlas with all that it can have."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write(folder / "small.onnx", small())
        x = np.random.default_rng(2).normal(size=(6, 3, 12, 12)).astype(np.float32)
        np.savez(folder / "x.npz", x=x, y=np.arange(6) % 3)
        atlas = analyze(
            model,
            images=folder / "x.npz",
            layers=["relu1", "fc2"],
            preprocess="raw",
            channels="0-1",
            top=3,
            labels=[f"class {i}" for i in range(6)],
            method=["deconvnet", "guided"],
            montage=True,
            provider="cpu",
        )
        saved = atlas.save(folder / "saved")
        files = {
            p.relative_to(saved).as_posix(): p.read_bytes() for p in sorted(saved.rglob("*")) if p.is_file()
        }
    first = ("atlas.json", "arrays.npz")
    return {"atlas": {name: files[name] for name in (*first, *(n for n in files if n not in first))}}


@cache
def saved_scans() -> Mapping[str, Case]:
    """A scan that is finished, one that is not and has all that there can be, and a shard."""
    values = synthetic.activations(np.random.default_rng(3), 12)
    feeds = {"scale": np.array([2.0], np.float32)}
    origin = Origin("/models/net.onnx", "/data/photos", ("tench", "goldfish", "shark"), feeds)
    job = replace(synthetic.job(12), feeds=fed(feeds))
    return {
        "finished": {"scan.atlas": synthetic.saved(synthetic.job(12), values).to_bytes()},
        "begun": {
            "scan.atlas": synthetic.saved(
                job, values, 2, 9, range_=(0, 12), origin=origin, broken=[3]
            ).to_bytes()
        },
        "shard": {"scan.atlas": synthetic.saved(synthetic.job(12), values, 0, 6, shard=(1, 2)).to_bytes()},
    }


@cache
def texts() -> Mapping[str, Case]:
    """Sidecars, labels and the like."""
    recipe = {
        "preset": "imagenet",
        "size": [12, 12],
        "resize": "pad",
        "crop_fraction": 0.9,
        "order": "bgr",
        "scale": 1,
        "mean": [1, 2, 3],
        "std": [1, 2, 3],
    }
    names = {str(i): [f"n0{i}", f"name {i}"] for i in range(3)}
    return {
        "sidecar": {"model.onnxviz.json": json.dumps(recipe).encode()},
        "labels-list": {"labels.json": json.dumps(["a", "b", "c"]).encode()},
        "labels-object": {"labels.json": json.dumps(names).encode()},
        "labels-lines": {"labels.txt": "one\ntwo\ndrei ü\n".encode()},
    }
