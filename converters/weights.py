"""Weight files: reading them without running or trusting what they say, and checking what was read."""

from __future__ import annotations

import lzma
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import OnnxvizError, UsageError, WeightsError

from .unpickler import unpickle

__all__ = ["Shape", "check", "float32", "read_npz", "read_pickled_pairs"]

Shape = tuple[int, ...]

_AXES = {1: "out", 2: "in, out", 4: "height, width, in, out"}
_HEADER = 1 << 16  # bytes; an array's header may claim to be gigabytes long
_HEADROOM = 1 << 20  # bytes for headers, names and entries that no layer uses


class _Described(Protocol):
    """An array or a header of one."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class _Header:
    """Shape and type of an array that was not read yet."""

    def __init__(self, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype


def check(found: Mapping[str, _Described], expected: Mapping[str, Shape], source: str) -> None:
    """Raise `WeightsError` unless each expected array is there, in its shape, in floating point."""
    missing = [key for key in expected if key not in found]
    if missing:
        there = (
            ", ".join(map(repr, list(found)[:8])) + (", …" if len(found) > 8 else "") if found else "nothing"
        )
        raise WeightsError(
            f"{source}: missing {', '.join(missing)} ({len(missing)} of {len(expected)} arrays); "
            f"found {there}. Is it the weight file of this network?"
        )
    for key, shape in expected.items():
        if tuple(found[key].shape) != shape:
            raise WeightsError(
                f"{source}: {key} has shape {tuple(found[key].shape)}, expected {shape} ({_AXES[len(shape)]})"
            )
        if found[key].dtype.kind != "f":
            raise WeightsError(f"{source}: {key} holds {found[key].dtype}, expected float32")


def float32(array: NDArray[Any], key: str, source: str) -> NDArray[np.float32]:
    """Return the array as float32. Raises `WeightsError` where a value is not finite in it."""
    with np.errstate(over="ignore"):
        values = np.asarray(array, np.float32)
    wrong = values.size - int(np.isfinite(values).sum())
    if wrong:
        raise WeightsError(f"{source}: {key} has {wrong:,} values that are not finite, expected none")
    return values


def read_npz(path: Path, expected: Mapping[str, Shape]) -> dict[str, NDArray[Any]]:
    """Read the expected arrays of an .npz file; headers are checked before any data is read.

    Raises `UsageError` for a missing file and `WeightsError` for one that is not what is expected.
    """
    source = str(path)
    with _reading(path, ".npz file (a zip archive of arrays)"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        headers = {}
        for key in expected.keys() & members.keys():
            with archive.open(members[key]) as member:
                headers[key] = _header(BytesIO(member.read(_HEADER)))
        check({key: headers.get(key, _Header((), np.dtype("V"))) for key in members}, expected, source)
        arrays: dict[str, NDArray[Any]] = {}
        for key in expected:
            with archive.open(members[key]) as member, _quiet():
                arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
        return arrays


def read_pickled_pairs(path: Path, expected: Mapping[str, Shape]) -> dict[str, NDArray[Any]]:
    """Read an .npy file with a pickled dict, name → [weights, biases], as ``name_W`` and ``name_b``.

    Nothing from the file is run (see `converters.unpickler`). ``expected`` bounds the size of the file; the
    arrays that come back may still be of other shapes. Raises as `read_npz`.
    """
    source = str(path)
    with _reading(path, ".npy file"):
        _check_size(path.stat().st_size, expected, source)
        stream = BytesIO(path.read_bytes())
        header = _header(stream)
        if header.dtype != np.dtype(object) or header.shape != ():
            raise WeightsError(
                f"{source}: an array of {header.dtype} of shape {header.shape}, "
                "expected a pickled dict: name → [weights, biases]"
            )
        with _quiet():
            content = unpickle(stream, source)
    if not isinstance(content, dict):
        raise WeightsError(f"{source}: a {type(content).__name__}, expected a dict: name → [weights, biases]")
    arrays: dict[str, NDArray[Any]] = {}
    for key, pair in content.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        match pair:
            case [np.ndarray() as weights, np.ndarray() as biases]:
                arrays[f"{name}_W"], arrays[f"{name}_b"] = weights, biases
            case _ if f"{name}_W" in expected:
                raise WeightsError(f"{source}: {name} is {_described(pair)}, expected [weights, biases]")
    return arrays


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    if not path.is_file():
        found = "a folder, not a file" if path.is_dir() else "no such file"
        raise UsageError(f"weights {path}: {found}. Give the path of the {kind}.")
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        # RuntimeError: an encrypted archive, or (NotImplementedError) an unknown compression.
        raise WeightsError(f"{path}: cannot be read as an {kind}: {str(error)[:120]}") from error
    except OSError as error:
        raise OnnxvizError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_size(size: int, expected: Mapping[str, Shape], source: str) -> None:
    """Refuse a size, in bytes, that even float64 does not explain, before memory is given to it."""
    elements = sum(math.prod(shape) for shape in expected.values())
    if size > 8 * elements + _HEADROOM:
        raise WeightsError(f"{source} has {size:,} bytes, expected about {4 * elements:,}")


def _header(stream: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(stream)
    parsers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in parsers:
        raise ValueError(f"its .npy format is {version[0]}.{version[1]}, expected 1.0 or 2.0")
    try:
        with _quiet():
            shape, _, dtype = parsers[version](stream)
    except Exception as error:  # a damaged header raises whatever Python's tokenizer and parser do
        raise ValueError(f"damaged header: {error}") from error
    return _Header(shape, dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep quiet that a header is Python 2's, with sizes such as ``96L``: these files are that old.

    And what Python's parser remarks of a damaged one, and `pickletools` of damaged text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _described(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)} ({', '.join(type(item).__name__ for item in value[:4])})"
    return f"a {type(value).__name__}"
