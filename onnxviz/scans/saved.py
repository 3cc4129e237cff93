"""A scan, or a part of one, in a file: what it is of, what is known by now, and where its model and images were.

The file is a line that names the format, a line with the SHA-256 of all but itself, and NumPy arrays (npz), one of
which is JSON. It holds no time and no name of a machine: the same work makes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import AtlasError, DamagedError
from onnxviz.files import write_durably
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.forward.responses import Responses, taken
from onnxviz.forward.topk import ChannelStats, TopK
from onnxviz.images.urls import masked
from onnxviz.scans.job import Job, fed

__all__ = ["SUFFIX", "Origin", "SavedScan", "versions"]

Array: TypeAlias = NDArray[Any]

SUFFIX = ".atlas"
FORMAT = 1
_HEAD = b"onnxviz scan "
_LARGEST = 1 << 34  # bytes


@dataclass(frozen=True)
class Origin:
    """Where the model and the images of a scan were, and what else it takes to open them again.

    ``images`` is a path or a URL, or None for the built-in samples. ``labels`` are class names, where some were given.
    """

    model: str
    images: str | None
    labels: tuple[str, ...] | None = None
    feeds: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedScan:
    """What a file holds. ``range`` are the images that this file is for: all, or those of ``shard`` (number, of)."""

    job: Job
    origin: Origin
    range: Range
    part: Part
    versions: tuple[str, ...]
    shard: tuple[int, int] | None = None

    @property
    def todo(self) -> tuple[Range, ...]:
        """The images of its range that are neither counted nor skipped yet."""
        return ranges.missing(self.part.done, self.range)

    @property
    def finished(self) -> bool:
        """Whether all images of its range are done."""
        return not self.todo

    @property
    def whole(self) -> bool:
        """Whether all images of the job are done."""
        return not ranges.missing(self.part.done, (0, self.job.images))

    @property
    def told(self) -> Part:
        """What is known, with a note if different versions found it."""
        if len(self.versions) < 2:
            return self.part
        note = f"The scan was made with different versions: {'; '.join(self.versions)}."
        return replace(self.part, notes=(*self.part.notes, note))

    def now(self, part: Part) -> SavedScan:
        """With what is known by now, found by these versions."""
        return replace(self, part=part, versions=tuple(sorted({*self.versions, versions()})))

    def to_bytes(self, *, secrets: bool = False) -> bytes:
        """The file's content; ``secrets``: with those of the images' URL, for what never gets into a file."""
        part, origin = self.part, self.origin
        facts = {
            "job": self.job.facts(),
            "origin": {
                "model": origin.model,
                "images": origin.images if secrets or origin.images is None else masked(origin.images),
                "labels": origin.labels,
                "feeds": list(origin.feeds),
            },
            "range": self.range,
            "shard": self.shard,
            "done": part.done,
            "every": part.responses.every,
            "skipped": part.skipped,
            "notes": part.notes,
            "versions": self.versions,
        }
        text = json.dumps(facts, ensure_ascii=True, sort_keys=True).encode("ascii")
        arrays = {"facts": np.frombuffer(text, np.uint8), **part.arrays()}
        arrays |= {f"feeds/{number}": value for number, value in enumerate(origin.feeds.values())}
        stream = io.BytesIO()
        # in one order in memory, which else shows in the file
        ordered = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        np.savez(stream, **ordered)  # type: ignore[arg-type]
        head, body = b"%s%d" % (_HEAD, FORMAT), stream.getvalue()
        return b"\n".join((head, _checksum(head, body), body))

    def kit(self) -> bytes:
        """The job alone, and by which versions it is to be done, for whoever scans a part of it: not for a file."""
        empty = Part.empty(self.job.layers, self.job.top)
        return replace(self, part=empty, versions=(versions(),)).to_bytes(secrets=True)

    def write(self, path: Path) -> None:
        """Write the file; it is on the disk when this returns, and what was there before is kept until then.

        Raises:
            AtlasError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, self.to_bytes())
        except OSError as error:
            # Where it came through `files.writing`, the system's own word is behind it.
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            raise AtlasError(
                f"{path}: the scan cannot be saved ({reason}); what was saved before is kept."
            ) from error

    @classmethod
    def read(cls, path: Path) -> SavedScan:
        """Read a file.

        Raises:
            DamagedError: it is damaged, or not of onnxviz.
            AtlasError: there is none, it cannot be read, or another version of onnxviz wrote it.
        """
        try:
            size = path.stat().st_size
            if size > _LARGEST:
                raise AtlasError(f"{path}: {size:,} bytes are too many for a scan.")
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise AtlasError(f"{path}: there is no such scan.") from error
        except OSError as error:
            raise AtlasError(f"{path}: the scan cannot be read ({error.strerror or error}).") from error
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> SavedScan:
        """Read a file's content; ``name`` is what errors call it.

        Raises:
            DamagedError: it is damaged, or not of onnxviz.
            AtlasError: another version of onnxviz wrote it.
        """
        head, _, rest = data.partition(b"\n")
        if not head.startswith(_HEAD):
            raise DamagedError(f"{name}: not a scan of onnxviz, or its beginning is damaged.")
        digest, _, body = rest.partition(b"\n")
        if _checksum(head, body) != digest:
            raise DamagedError(f"{name}: the scan is damaged: its checksum does not fit.")
        if (found := head.removeprefix(_HEAD)) != str(FORMAT).encode():
            shown = found[:20].decode("ascii", "replace")
            raise AtlasError(
                f"{name}: the scan has format {shown}; this version of onnxviz reads format {FORMAT}."
            )
        try:
            with zipfile.ZipFile(io.BytesIO(body)) as file:
                if any(one.file_size > len(body) for one in file.infolist()):
                    raise ValueError("arrays are larger than the file")
            # pickles are refused: a file from anywhere must run nothing
            with np.load(io.BytesIO(body), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            return _read(arrays)
        except Exception as error:  # the readers of zip, of headers and of JSON raise what they stumble over
            reason = str(error).split("\n", 1)[0][:200]
            raise DamagedError(f"{name}: the scan is damaged ({type(error).__name__}: {reason}).") from error


def _checksum(head: bytes, body: bytes) -> bytes:
    digest = hashlib.sha256(head)
    digest.update(body)
    return digest.hexdigest().encode("ascii")


def versions() -> str:
    """What computes here, as far as it may round differently: onnxviz, onnxruntime, NumPy, Pillow and the processor's
    kind.
    """
    found = []
    for name in ("onnxviz", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join((*found, platform.machine()))


def _read(arrays: Mapping[str, Array]) -> SavedScan:
    facts = json.loads(arrays["facts"].tobytes())
    job = Job.from_facts(facts["job"])
    units = np.array([math.prod(layer.size) for layer in job.layers for _ in range(layer.channels)])
    where = facts["origin"]
    feeds = {str(name): arrays[f"feeds/{number}"] for number, name in enumerate(where["feeds"])}
    if job.feeds != fed(feeds):
        raise ValueError("values fed to inputs are not those of the job")
    whole, done = _range(facts["range"]), ranges.joined(_range(one) for one in facts["done"])
    if not 0 <= whole[0] <= whole[1] <= job.images or ranges.missing([whole], _hull(done)):
        raise ValueError("it counts images that it is not for")
    part = Part(
        done=done,
        topk=_topk("topk", arrays, job, units),
        overall=_topk("overall", arrays, job, np.ones(len(job.layers), np.int64)),
        stats=_stats(arrays, len(units), ranges.count(done)),
        responses=_responses(arrays, int(facts["every"]), len(units), job.images),
        skipped=tuple((int(index), str(name), str(reason)) for index, name, reason in facts["skipped"]),
        notes=tuple(map(str, facts["notes"])),
    )
    if not all(ranges.overlaps(done, [(index, index + 1)]) for index, *_ in part.skipped):
        raise ValueError("it skipped images that it did not count")
    labels = where["labels"]
    origin = Origin(
        str(where["model"]),
        None if where["images"] is None else str(where["images"]),
        None if labels is None else tuple(map(str, labels)),
        feeds,
    )
    shard = None if facts["shard"] is None else _range(facts["shard"])
    return SavedScan(job, origin, whole, part, tuple(map(str, facts["versions"])), shard)


def _range(entry: Sequence[Any]) -> Range:
    start, stop = entry
    return int(start), int(stop)


def _hull(done: Sequence[Range]) -> Range:
    return (done[0][0], done[-1][1]) if done else (0, 0)


def _array(arrays: Mapping[str, Array], name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
    found = arrays[name]
    if found.dtype != dtype or found.shape != shape:
        raise ValueError(f"{name} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {shape}")
    return found


def _topk(group: str, arrays: Mapping[str, Array], job: Job, units: Array) -> TopK:
    """Hits of rows whose maps have so many ``units``."""
    kinds = {"score": np.float64, "activation": np.float32, "image": np.int64, "y": np.int32, "x": np.int32}
    shape = len(units), job.top
    topk = TopK(**{name: _array(arrays, f"{group}/{name}", kind, shape) for name, kind in kinds.items()})
    empty = TopK.empty(*shape)
    there = topk.image != empty.image
    score, image = topk.score, topk.image
    ordered = (score[:, :-1] > score[:, 1:]) | (
        (score[:, :-1] == score[:, 1:]) & ((image[:, :-1] < image[:, 1:]) | ~there[:, 1:])
    )
    good = (
        there
        & (image >= 0)
        & (image < job.images)
        & (topk.y == 0)
        & (topk.x >= 0)
        & (topk.x < units[:, None])
    )
    good |= ~there & (score == empty.score)
    if not (good.all() and ordered.all()):
        raise ValueError(f"{group} has hits that there cannot be")
    return topk


def _stats(arrays: Mapping[str, Array], channels: int, done: int) -> ChannelStats:
    empty = ChannelStats.empty(channels, 0)
    found = {
        name: _array(arrays, f"stats/{name}", like.dtype, like.shape) for name, like in empty.arrays().items()
    }
    for name in ("images", "active_images", "not_finite"):
        if ((found[name] < 0) | (found[name] > done)).any():
            raise ValueError(f"stats/{name} counts more images than there are")
    return ChannelStats(0, **found)


def _responses(arrays: Mapping[str, Array], every: int, channels: int, images: int) -> Responses:
    if every < 1 or every & (every - 1):
        raise ValueError(f"a sample of one in {every}")
    image = arrays["responses/image"]
    image = _array(arrays, "responses/image", np.int64, image.shape[:1])
    if (np.diff(image, prepend=-1, append=images) < 1).any() or not taken(image, every).all():
        raise ValueError("a sample of other images")
    largest = _array(arrays, "responses/largest", np.float32, (*image.shape, channels))
    return Responses(every, image, largest)
