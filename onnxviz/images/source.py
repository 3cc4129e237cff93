"""Where images come from: a folder, one image, archives, or an array file, here or behind a URL."""

from __future__ import annotations

import json
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.images import archive
from onnxviz.images.archive import is_archive_name
from onnxviz.images.decode import SUFFIXES, Picture, decode, quiet
from onnxviz.images.files import File, Folder, LocalFile, Opened
from onnxviz.images.fingerprint import Fingerprint, Row, fingerprint, sampled_bytes
from onnxviz.images.folder import find_local
from onnxviz.images.patterns import matcher
from onnxviz.images.remote import RemoteFile, find_remote
from onnxviz.images.rows import Rows
from onnxviz.images.shards import NotAnArchiveError, Shards
from onnxviz.images.urls import is_url, masked

if TYPE_CHECKING:
    from onnxviz.images.preprocess import Preprocess

__all__ = [
    "Fingerprint",
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
    """A data set: its samples in a fixed order, and what to call it (``"photos/ (1,203 images)"``).

    ``rows`` describes it to `fingerprint` where more is known than names and labels. ``readers`` are the threads that
    are worth reading in, where that is not a matter of cores: data that lies elsewhere is waited for. ``hurry``, where
    there is one, lets reads that are being tried now give up instead of trying on.

    What `open_source` opened can be pickled, with its listing, so that other processes need not list and index anew;
    files must lie in the same places for them. The secrets of a URL go along.
    """

    description: str
    samples: Sequence[Sample]
    builtin: bool = False
    rows: Callable[[], Iterable[Row]] | None = field(default=None, repr=False, compare=False)
    readers: int | None = None
    hurry: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def fingerprint(self) -> Fingerprint:
        """What tells this data set from another or a changed one; works it out anew, as things are now.

        Files count by their sizes and times, not by their content, so it takes seconds for a million of them. What
        cannot be read counts as that.
        """
        if self.rows is not None:
            return fingerprint(self.rows())
        return fingerprint(((sample.name, sample.label), None) for sample in self.samples)

    @cached_property
    def classes(self) -> dict[str, int]:
        """Label → number of samples, in natural order; empty if nothing has a label."""
        counts = Counter(sample.label for sample in self.samples if sample.label is not None)
        return dict(sorted(counts.items(), key=lambda item: natural_key(item[0])))


def open_source(
    place: str | Path, labels: Mapping[str, str] | None = None, preprocess: Preprocess | None = None
) -> Source:
    """Open a folder (with its sub-folders), an image, a zip or tar archive, or a .npy or .npz file.

    A ``place`` with ``://`` is a URL as fsspec takes it (``s3://``, ``gs://``, ``https://``, chained too); braces
    (``train-{00..99}.tar``) and globs stand for several files. Several archives, or a folder with nothing but
    archives, are one data set.

    Folders and archives are sorted by name, numbers by value, the same in every locale; compressed tar files
    keep their own order. The first folder of a name is its label, in archives after a folder that all
    members share. Hidden files are skipped. Arrays are ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.
    ``labels`` renames labels: folder names, or the integers of an array as text. Where it is known what the images
    are for, ``preprocess`` saves time: encoded ones are then read as the network's own values.

    Raises:
        UsageError: no such place, or a kind of file that holds no images.
        NoImagesError: nothing in it.
        ImageError: the archive or array file is damaged, or the place cannot be reached.
    """
    labels = labels or {}
    if isinstance(place, str) and (chain := re.fullmatch(r"(?:zip|tar)://(.*?)::(.+)", place, re.DOTALL)):
        return _chosen(masked(place), _find(chain[2]), matcher(chain[1]), labels, preprocess)
    found = _find(place)
    if isinstance(found, LocalFile | RemoteFile):
        return _file(found, labels, preprocess)
    return _folder(found, labels, preprocess)


def _find(place: str | Path) -> LocalFile | RemoteFile | Folder:
    if place in ("", "file://"):
        raise UsageError(f"No place of images is named; give {ACCEPTED}")
    if is_url(place) and not str(place).startswith(("file://", "local://")):
        return find_remote(str(place))
    path = Path(str(place).partition("://")[2]) if is_url(place) else Path(place)
    found = find_local(path)
    if found is None:
        raise UsageError(f"{path}: no such file or folder; give {ACCEPTED}")
    return found


def _file(file: LocalFile | RemoteFile, labels: Mapping[str, str], preprocess: Preprocess | None) -> Source:
    suffix = PurePosixPath(file.name).suffix.lower()
    if suffix in (".npy", ".npz"):
        return _arrays(file, labels)
    if suffix in SUFFIXES or (isinstance(file, RemoteFile) and file.is_image):
        name = _printable(file.name)
        sample = Sample(name, None, partial(_read, file.whole, name, preprocess))
        return Source(_printable(file.title), (sample,), rows=partial(_rows_of_image, file))
    try:
        shards = Shards([file.name], lambda _: file)
    except NotAnArchiveError:
        if suffix in archive.SUFFIXES:
            raise
        kind = suffix or "a file without an ending"
        raise UsageError(f"{file.place}: {kind} holds no images; give {ACCEPTED}") from None
    return _archives(file.place, file.title, shards, file, labels, preprocess)


def _rows_of_image(file: File) -> Iterable[Row]:
    yield ("image", sampled_bytes(file)), file.version


def _chosen(
    title: str,
    found: LocalFile | RemoteFile | Folder,
    chosen: re.Pattern[str],
    labels: Mapping[str, str],
    preprocess: Preprocess | None,
) -> Source:
    """The chosen members of an archive, or of several."""
    if isinstance(found, LocalFile | RemoteFile):
        shards = Shards([found.name], lambda _: found, chosen)
    else:
        names = sorted((name for name, _ in found.walk() if is_archive_name(name)), key=natural_key)
        if not names:
            raise NoImagesError(f"{found.place}: no archive; expected zip or tar")
        shards = Shards(names, found.file, chosen)
    return _archives(title, title, shards, found, labels, preprocess)


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


def _folder(folder: Folder, labels: Mapping[str, str], preprocess: Preprocess | None) -> Source:
    names: list[str] = []
    archives: list[str] = []
    unreadable: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    for name, problem in folder.walk():
        suffix = PurePosixPath(name).suffix.lower()
        if problem is not None:
            unreadable[name] = problem
        elif suffix in SUFFIXES:
            names.append(name)
        else:
            ignored[suffix] += 1
            if is_archive_name(name):
                archives.append(name)

    def archive_of(name: str) -> File:
        if name in unreadable:
            raise ImageError(unreadable[name])
        return folder.file(name)

    if archives and not names:
        shards = Shards(sorted([*archives, *unreadable], key=natural_key), archive_of)
        return _archives(folder.place, folder.title, shards, folder, labels, preprocess)
    names = sorted([*names, *unreadable], key=natural_key)
    if not names:
        raise NoImagesError(_nothing(folder.place, ignored))

    files = _Files(folder, names, unreadable, labels, preprocess)
    samples = Listing(files.sample, range(len(names)))
    description = _describe(_printable(folder.title), len(names), ignored)
    return Source(description, samples, rows=files.rows, readers=folder.readers, hurry=folder.hurry)


@dataclass(frozen=True, slots=True)
class _Files:
    """The images in a folder, in order."""

    folder: Folder
    names: list[str]
    unreadable: dict[str, str]
    labels: Mapping[str, str]
    preprocess: Preprocess | None

    def sample(self, index: int) -> Sample:
        name = self.names[index]
        shown = _printable(name)
        if name in self.unreadable:
            return Sample(shown, None, partial(_refuse, f"{shown}: {self.unreadable[name]}"))
        read = partial(_read, partial(self.folder.read, name), shown, self.preprocess)
        return Sample(shown, _label(shown, self.labels), read)

    def rows(self) -> Iterator[Row]:
        found = self.folder.sizes_and_versions(self.names)
        for index, (name, (size, version)) in enumerate(zip(self.names, found, strict=True)):
            sample, known = self.sample(index), name not in self.unreadable
            yield (sample.name, sample.label, size if known else None), version if known else None


def _archives(
    place: str,
    title: str,
    shards: Shards,
    found: File | Folder,
    labels: Mapping[str, str],
    preprocess: Preprocess | None,
) -> Source:
    entries = shards.entries
    tops = {name.split("/", 1)[0] if "/" in name else None for name, _, member in entries if member >= 0}
    if not tops:
        raise NoImagesError(_nothing(place, shards.ignored))
    if not shards.sequential:
        entries.sort(key=lambda entry: natural_key(shards.shown(entry)))
    shared = f"{top}/" if len(tops) == 1 and (top := next(iter(tops))) is not None else ""

    members = _Members(shards, shared, labels, preprocess)
    samples = Listing(members.sample, range(len(entries)))
    readers = None if shards.sequential else found.readers  # more would wait for one another
    description = _describe(_printable(title), len(entries), shards.ignored)
    return Source(description, samples, rows=members.rows, readers=readers, hurry=found.hurry)


@dataclass(frozen=True, slots=True)
class _Members:
    """The images in archives, in order; ``shared`` is the folder, with ``/``, that all of them are in."""

    shards: Shards
    shared: str
    labels: Mapping[str, str]
    preprocess: Preprocess | None

    def sample(self, index: int) -> Sample:
        entry = self.shards.entries[index]
        shown = _printable(self.shards.shown(entry))
        label = _label(_printable(entry[0].removeprefix(self.shared)), self.labels) if entry[2] >= 0 else None
        return Sample(shown, label, partial(_read, partial(self.shards.read, entry), shown, self.preprocess))

    def rows(self) -> Iterator[Row]:
        for index, entry in enumerate(self.shards.entries):
            sample = self.sample(index)
            yield (sample.name, sample.label, *self.shards.facts(entry)), None
        yield from (((), version) for version in self.shards.versions())


def _arrays(file: LocalFile | RemoteFile, labels: Mapping[str, str]) -> Source:
    array, marks, note = _load_arrays(file)
    if array.ndim not in (3, 4) or array.dtype.kind not in "buif":
        raise ImageError(
            f"{file.place}: an array of shape {array.shape} and type {array.dtype}; "
            "expected numbers of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if 0 in array.shape:
        raise NoImagesError(f"{file.place}: the array has shape {array.shape}, so there is no image in it")
    slices = _Slices(file, array, marks, labels)
    samples = Listing(slices.sample, range(len(array)))
    description = f"{_printable(file.title)} ({_images(len(array))}{note})"
    return Source(description, samples, rows=slices.rows, readers=file.readers, hurry=file.hurry)


@dataclass(frozen=True, slots=True)
class _Slices:
    """The images in an array, in order, and their labels."""

    file: LocalFile | RemoteFile
    array: NDArray[Any] | Rows
    marks: NDArray[Any] | None
    labels: Mapping[str, str]

    def sample(self, index: int) -> Sample:
        name = f"{_printable(self.file.name)}[{index}]"
        label = None if self.marks is None else _mark(self.marks[index])
        label = label if label is None else self.labels.get(label, label)
        return Sample(name, label, partial(_read_array, self.array, index, name))

    def rows(self) -> Iterator[Row]:
        yield ("array", self.array.shape, self.array.dtype.str, sampled_bytes(self.file)), self.file.version
        if self.marks is not None:
            yield from (((self.sample(index).label,), None) for index in range(len(self.array)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened anew where it is unpickled: a mapped array would go along as all of its values."""
        return _slices, (self.file, self.labels)


def _slices(file: LocalFile | RemoteFile, labels: Mapping[str, str]) -> _Slices:
    array, marks, _ = _load_arrays(file)
    return _Slices(file, array, marks, labels)


def _is_array(path: Path) -> bool:
    """Whether a file begins as NumPy writes one array; else it should be an archive of several."""
    with path.open("rb") as stream:
        return stream.read(6) == b"\x93NUMPY"


def _load_arrays(
    file: LocalFile | RemoteFile,
) -> tuple[NDArray[Any] | Rows, NDArray[Any] | None, str]:
    """Images, labels or None, and a remark for people."""
    path = file.place
    try:
        with quiet():
            if isinstance(file, RemoteFile) and file.name.lower().endswith(".npy"):
                return Rows(file), None, ""
            if isinstance(file, LocalFile) and _is_array(Path(file.path)):
                return np.load(file.path, mmap_mode="r", allow_pickle=False), None, ""
            # Opened here: np.load leaves the file open when it is no archive.
            opened: Any = Path(file.path).open("rb") if isinstance(file, LocalFile) else Opened(file)  # noqa: SIM115
            with opened, np.load(opened, allow_pickle=False) as loaded:
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
    except NoImagesError:
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


def _read_array(array: NDArray[Any] | Rows, index: int, name: str) -> Picture:
    """A picture (H, W, C) of integers 0–255 as uint8; real numbers as float32 in the axes that they have."""
    try:
        values = np.array(array[index])
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
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


def _let_go(array: NDArray[Any] | Rows, index: int) -> None:
    """Give back the memory that a row of a mapped file took; else a scan would end with all of the file in it."""
    mapped: Any = array.base if isinstance(array, np.memmap) else None
    if isinstance(array, np.memmap) and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        # With what the system has read around it.
        start = array.offset % mmap.ALLOCATIONGRANULARITY + index * array.strides[0]
        first = max(0, start - _READ_AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(len(mapped), start + array.strides[0] + _READ_AROUND)
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _read(read: Callable[[], bytes], name: str, preprocess: Preprocess | None) -> Picture:
    try:
        data = read()
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
