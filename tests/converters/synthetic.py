"""Weight files in the original formats with seeded He-scaled values, for tests and demonstrations."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxviz.converters import alexnet, simple, vgg16
from onnxviz.converters.builder import Network

Arrays = dict[str, NDArray[np.float32]]


def he_weights(network: Network, seed: int) -> Arrays:
    """Weights with standard deviation √(2 / inputs), and small biases, for every layer of a network."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for key, shape in network.weights().items():
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(0.05 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:-1])))
        arrays[key] = values
    return arrays


def alexnet_npy(path: Path, seed: int) -> Path:
    """Write a file such as ``bvlc_alexnet.npy`` (244 MB)."""
    return write_python2_npy(path, paired(he_weights(alexnet.network(), seed)))


def vgg16_npz(path: Path, seed: int, fc: tuple[int, int, int] = (4096, 4096, 1000)) -> Path:
    """Write a file such as ``vgg16_weights.npz`` (553 MB); other ``fc`` fit a network of those only."""
    np.savez(path, **he_weights(vgg16.network(units=fc), seed))
    return path


def simple_npz(path: Path, seed: int) -> Path:
    """Write an .npz of the small MNIST net (13 MB)."""
    np.savez(path, **he_weights(simple.network(), seed))
    return path


def paired(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, list[NDArray[np.float32]]]:
    """Turn name_W and name_b into name → [weights, biases]."""
    names = [key.removesuffix("_W") for key in arrays if key.endswith("_W")]
    return {name: [arrays[f"{name}_W"], arrays[f"{name}_b"]] for name in names}


def write_python2_npy(path: Path, entries: Mapping[str, list[NDArray[np.float32]]]) -> Path:
    """Write ``np.save(path, entries)`` as Python 2 and NumPy 1 did: protocol 2, strings for bytes."""
    before, after = _array_around((), b"O8", b"|")
    with path.open("wb") as file:
        file.write(npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (), }"))
        file.write(b"\x80\x02" + before + b"](}(")
        for name, arrays in entries.items():
            file.write(_string(name.encode()) + b"](")
            for array in arrays:
                file.write(_array(array))
            file.write(b"e")
        file.write(b"ue" + after + b".")
    return path


def npy_header(text: str) -> bytes:
    """The beginning of an .npy file of version 1.0."""
    padded = text + " " * (-(len(text) + 11) % 16) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin1")


def _array(array: NDArray[np.float32]) -> bytes:
    before, after = _array_around(array.shape, b"f4", b"<")
    return before + _string(array.astype("<f4", copy=False).tobytes()) + after


def _array_around(shape: tuple[int, ...], code: bytes, order: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after an array's data."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    flags = b"K\x3f" if code == b"O8" else b"K\x00"
    kind = b"cnumpy\ndtype\n" + _string(code) + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + _string(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff" + flags + b"tb"
    sizes = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in shape) + b"t" if shape else b")"
    return empty + b"(K\x01" + sizes + kind + b"\x89", b"tb"


def _string(content: bytes) -> bytes:
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content
