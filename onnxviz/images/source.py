"""Where images come from: a folder, one image, an archive, or an array file."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.images import archive
from onnxviz.images.archive import Archive, open_archive
from onnxviz.images.decode import SUFFIXES, Picture, decode, quiet

if TYPE_CHECKING:
    from onnxviz.images.preprocess import Preprocess

__all__ = [
    "Listing",
    "Picture",
    "Sample",
    "Source",
    "index_labels",
    "natural_key",
    "open_source",
    "read_labels",
]

ACCEPTED = (
    "images (png, jpg, bmp, gif, webp, tiff, ppm …) in a folder, .zip or .tar, or an array file (.npy, .npz)"
)
IMAGE_ARRAYS = ("x", "images", "X")
LABEL_ARRAYS = ("y", "labels")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a source. ``read`` decodes it, in any thread, and raises `ImageError`."""

    name: str
    label: str | None
    read: Callable[[], Picture]


class Listing(Sequence[Sample]):
    """Samples made when asked for, so that a million of them cost no more memory than their names."""

    def __init__(self, make: Callable[[int], Sample], indices: range) -> None:
        self._make = make
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Listing: ...
    def __getitem__(self, index: int | slice) -> Sample | Listing:
        if isinstance(index, slice):
            return Listing(self._make, self._indices[index])
        return self._make(self._indices[index])


@dataclass(frozen=True)
class Source:
    """A data set: its samples in a fixed order, and what to call it (``"photos/ (1,203 images)"``)."""

    description: str
    samples: Sequence[Sample]
    builtin: bool = False

    @cached_property
    def classes(self) -> dict[str, int]:
        """Label → number of samples, in natural order; empty if nothing has a label."""
        counts = Counter(sample.label for sample in self.samples if sample.label is not None)
        return dict(sorted(counts.items(), key=lambda item: natural_key(item[0])))


def open_source(
    path: Path, labels: Mapping[str, str] | None = None, preprocess: Preprocess | None = None
) -> Source:
    """Open a folder (with its sub-folders), an image, a zip or tar archive, or a .npy or .npz file.

    Folders and archives are sorted by name, numbers by value, the same in every locale; compressed tar files
    keep their own order. The first folder of a name is its label, in an archive after a folder that all
    members share. Hidden files are skipped. Arrays are ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.
    ``labels`` renames labels: folder names, or the integers of an array as text. Where it is known what the images
    are for, ``preprocess`` saves time: encoded ones are then read as the network's own values.

    Raises:
        UsageError: no such path, or a kind of file that holds no images.
        NoImagesError: nothing in it.
        ImageError: the archive or array file is damaged.
    """
    labels = labels or {}
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path, labels, preprocess)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; give {ACCEPTED}")
    if suffix in (".npy", ".npz"):
        return _arrays(path, labels)
    if suffix in SUFFIXES:
        read = partial(_read_file, str(path), path.name, preprocess)
        return Source(path.name, (Sample(_printable(path.name), None, read),))
    members = open_archive(path)
    if members is not None:
        return _archive(path, members, labels, preprocess)
    if suffix in archive.SUFFIXES:
        raise ImageError(
            f"{path}: not an archive that can be read; expected zip, or tar with or without compression"
        )
    raise UsageError(f"{path}: {suffix or 'a file without an ending'} holds no images; give {ACCEPTED}")


def index_labels(names: Sequence[str]) -> dict[str, str]:
    """Class names by their index as text, as `open_source` wants them: ``{"0": "tench", …}``."""
    return {str(index): name for index, name in enumerate(names)}


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names, in class order: one a line, a JSON list, or a JSON object ``{"0": "tench", …}``.

    Raises:
        UsageError: the file is missing or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; --labels takes a text file with one class name a line"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{"):
        return _json_labels(path, text)
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise UsageError(f"{path}: no class names; one a line is expected")
    if "" in lines:
        raise UsageError(f"{path}: line {lines.index('') + 1} is empty; one class name a line is expected")
    return tuple(lines)


def _json_labels(path: Path, text: str) -> tuple[str, ...]:
    expected = 'a JSON list of class names, or an object {"0": "first class", "1": …}, is expected'
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}); {expected}") from error
    if isinstance(data, dict):
        keys = [str(index) for index in range(len(data))]
        if missing := [key for key in keys if key not in data]:
            raise UsageError(f"{path}: no class {missing[0]} among {len(data)} entries; {expected}")
        data = [data[key] for key in keys]
    if not isinstance(data, list) or not data:
        raise UsageError(f"{path}: no class names; {expected}")
    names = []
    for index, entry in enumerate(data):
        # Keras' imagenet_class_index.json has a list ["n01440764", "tench"] for each class.
        parts = entry if isinstance(entry, list) else [entry]
        if not parts or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"{path}: class {index} is {entry!r}, not a name; {expected}")
        names.append(" ".join(parts))
    return tuple(names)


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key of a path with ``/``: folder by folder, numbers by value, case only as the last resort."""
    return (*(_natural_part(part) for part in name.split("/")), name)


def _natural_part(part: str) -> tuple[Any, ...]:
    pieces: list[Any] = re.split("([0-9]+)", part.casefold())
    # A number as (digits, text) compares by value without int(), which refuses very long ones.
    pieces[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in pieces[1::2]]
    return tuple(pieces)


def _folder(root: Path, labels: Mapping[str, str], preprocess: Preprocess | None) -> Source:
    names: list[str] = []
    unreadable: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    for name, problem in _walk(str(root)):
        if problem is not None:
            unreadable[name] = problem
            names.append(name)
        elif PurePosixPath(name).suffix.lower() in SUFFIXES:
            names.append(name)
        else:
            ignored[PurePosixPath(name).suffix.lower()] += 1
    if not names:
        raise NoImagesError(_nothing(str(root), ignored))
    names.sort(key=natural_key)

    def make(index: int) -> Sample:
        name = names[index]
        shown = _printable(name)
        if name in unreadable:
            return Sample(shown, None, partial(_refuse, f"{shown}: {unreadable[name]}"))
        return Sample(shown, _label(shown, labels), partial(_read_file, f"{root}/{name}", shown, preprocess))

    title = _printable(root.resolve().name or str(root))
    return Source(_describe(f"{title}/", len(names), ignored), Listing(make, range(len(names))))


def _walk(root: str) -> Iterator[tuple[str, str | None]]:
    """Relative names with ``/`` of all files that are not hidden, or of folders with why they cannot be read.

    Links are followed after all real folders, and each folder is entered once, so links that loop end.
    """
    folders, links = [""], list[str]()
    entered: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        path = Path(root, folder)
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield f"{folder or '.'}/", f"the folder cannot be read ({error.strerror})"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(name)
                elif entry.is_file() or PurePosixPath(name).suffix.lower() not in SUFFIXES:
                    yield name, None
                else:  # reading a pipe would wait for ever
                    yield name, "neither a file nor a link to one"
            except OSError as error:
                yield name, f"cannot be read ({error.strerror})"


def _archive(
    path: Path, members: Archive, labels: Mapping[str, str], preprocess: Preprocess | None
) -> Source:
    entries: list[tuple[str, int]] = []
    ignored: Counter[str] = Counter()
    for index, stored in enumerate(members.names):
        parts = [part for part in stored.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        suffix = PurePosixPath(parts[-1]).suffix.lower()
        if suffix in SUFFIXES:
            entries.append(("/".join(parts), index))
        else:
            ignored[suffix] += 1
    if not entries:
        raise NoImagesError(_nothing(str(path), ignored))
    if not members.sequential:
        entries.sort(key=lambda entry: natural_key(entry[0]))
    tops = {name.split("/", 1)[0] if "/" in name else None for name, _ in entries}
    shared = f"{top}/" if len(tops) == 1 and (top := next(iter(tops))) is not None else ""

    def make(index: int) -> Sample:
        name, member = entries[index]
        shown = _printable(name)
        label = _label(_printable(name.removeprefix(shared)), labels)
        return Sample(shown, label, partial(_read_member, members, member, shown, preprocess))

    return Source(_describe(path.name, len(entries), ignored), Listing(make, range(len(entries))))


def _arrays(path: Path, labels: Mapping[str, str]) -> Source:
    array, marks, note = _load_arrays(path)
    if array.ndim not in (3, 4) or array.dtype.kind not in "buif":
        raise ImageError(
            f"{path}: an array of shape {array.shape} and type {array.dtype}; "
            "expected numbers of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if 0 in array.shape:
        raise NoImagesError(f"{path}: the array has shape {array.shape}, so there is no image in it")

    def make(index: int) -> Sample:
        name = f"{path.name}[{index}]"
        label = None if marks is None else _mark(marks[index])
        label = label if label is None else labels.get(label, label)
        return Sample(name, label, partial(_read_array, array, index, name))

    count = len(array)
    return Source(f"{path.name} ({_images(count)}{note})", Listing(make, range(count)))


def _load_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
    """Images, labels or None, and a remark for people."""
    try:
        with quiet(), path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                return np.load(path, mmap_mode="r", allow_pickle=False), None, ""
            # Opened here: np.load leaves the file open when it is no archive.
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as loaded:
                named = next((name for name in IMAGE_ARRAYS if name in loaded.files), None)
                names = loaded.files if named is None else [named]
                array = next((value for name in names if (value := np.asarray(loaded[name])).ndim >= 3), None)
                if array is None:
                    shapes = ", ".join(f"{name} {np.shape(loaded[name])}" for name in loaded.files[:8])
                    raise NoImagesError(
                        f"{path}: no array of images, only {shapes or 'nothing'}; call them x"
                    )
                name = next((name for name in LABEL_ARRAYS if name in loaded.files), None)
                marks = None if name is None else np.asarray(loaded[name])  # bytes, where it is no array
    except ImageError:
        raise
    except (
        Exception
    ) as error:  # NumPy's readers raise whatever a broken header or zip makes them stumble over
        reason = str(error) or type(error).__name__
        if "pickle" in reason or "object" in reason.lower():
            reason = "it holds Python objects, which could run code; only arrays of numbers are read"
        raise ImageError(f"{path}: cannot be read as a NumPy array file ({reason})") from error
    if marks is not None and marks.shape != array.shape[:1]:
        return array, None, f"; {name} of shape {marks.shape} is not one label an image, ignored"
    return array, marks, ""


def _mark(value: Any) -> str:
    """A label out of an array, as text: 3.0 and 3 are both "3"."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.floating) and value.is_integer():
        return str(int(value))
    return str(value)


def _read_array(array: NDArray[Any], index: int, name: str) -> Picture:
    """A picture (H, W, C) of integers 0–255 as uint8; real numbers as float32 in the axes that they have."""
    values = np.array(array[index])
    _let_go(array, index)
    values = values[:, :, None] if values.ndim == 2 else values
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise ImageError(f"{name}: holds NaN or infinity")
        return values
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            raise ImageError(
                f"{name}: integers from {values.min()} to {values.max()}; pictures hold 0 to 255"
            )
        values = values.astype(np.uint8)
    # Channels are the fewer; in doubt they come last, as in pictures.
    channels_first = array.ndim == 4 and values.shape[0] < values.shape[2]
    return np.ascontiguousarray(np.moveaxis(values, 0, 2) if channels_first else values)


_READ_AROUND = 1 << 20


def _let_go(array: NDArray[Any], index: int) -> None:
    """Give back the memory that a row of a mapped file took; else a scan would end with all of the file in it."""
    mapped: Any = array.base
    if isinstance(array, np.memmap) and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        # With what the system has read around it.
        start = array.offset % mmap.ALLOCATIONGRANULARITY + index * array.strides[0]
        first = max(0, start - _READ_AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(len(mapped), start + array.strides[0] + _READ_AROUND)
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _read_file(path: str, name: str, preprocess: Preprocess | None) -> Picture:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error})") from error
    return preprocess.decode(data, name) if preprocess else decode(data, name)


def _read_member(members: Archive, index: int, name: str, preprocess: Preprocess | None) -> Picture:
    try:
        data = members.read(index)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    return preprocess.decode(data, name) if preprocess else decode(data, name)


def _refuse(message: str) -> Picture:
    raise ImageError(message)


def _label(name: str, labels: Mapping[str, str]) -> str | None:
    folder, slash, _ = name.partition("/")
    return labels.get(folder, folder) if slash else None


def _printable(name: str) -> str:
    """A file name that can be written as UTF-8, whatever bytes the file system has."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _images(count: int) -> str:
    return f"{count:,} image" + ("s" if count != 1 else "")


def _describe(title: str, count: int, ignored: Counter[str]) -> str:
    others = ignored.total()
    return f"{title} ({_images(count)}{f', {others:,} other files ignored' if others else ''})"


def _nothing(place: str, ignored: Counter[str]) -> str:
    return (
        f"{place}: no images, only {_kinds(ignored)}; give {ACCEPTED}"
        if ignored
        else (f"{place}: empty; give {ACCEPTED}")
    )


def _kinds(ignored: Counter[str]) -> str:
    kinds: Iterable[str] = (
        f"{count:,} {suffix or 'without an ending'}" for suffix, count in ignored.most_common(4)
    )
    return f"{ignored.total():,} other files ({', '.join(kinds)})"
