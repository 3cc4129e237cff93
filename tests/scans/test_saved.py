"""Scans in files: the same content in the same bytes, and everything else is refused, never read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxviz import files
from onnxviz.errors import AtlasError, DamagedError
from onnxviz.forward.part import Part
from onnxviz.scans.saved import Origin, SavedScan, versions
from tests.scans import synthetic

VALUES = synthetic.activations(np.random.default_rng(3), 40)
FEEDS = {"scale": np.array(2.0, np.float32), "sizes": np.arange(6, dtype=">i8").reshape(2, 3)[:, ::-1]}


def _whole(**options: Any) -> SavedScan:
    return synthetic.saved(synthetic.job(40), VALUES, broken=(3, 17), **options)


WHOLE = _whole().to_bytes()


def _same(one: SavedScan, other: SavedScan) -> None:
    """Fields one by one: arrays by value, type and layout, everything else by ==."""
    for name, array in one.part.arrays().items():
        np.testing.assert_array_equal(array, other.part.arrays()[name], err_msg=name, strict=True)
    bare = [replace(x, part=Part.empty((), 1), origin=replace(x.origin, feeds={})) for x in (one, other)]
    assert [(x.job, x.origin, x.range, x.versions, x.shard) for x in bare[:1]] == [
        (x.job, x.origin, x.range, x.versions, x.shard) for x in bare[1:]
    ]
    for name in ("done", "skipped", "notes"):
        assert getattr(one.part, name) == getattr(other.part, name)
    assert one.part.responses.every == other.part.responses.every
    assert one.origin.feeds.keys() == other.origin.feeds.keys()
    for name, value in one.origin.feeds.items():
        np.testing.assert_array_equal(value, other.origin.feeds[name], strict=True)


ORIGINS = {
    "plain": synthetic.ORIGIN,
    "samples": Origin("net.onnx", None),
    "labels": Origin("/m/net.onnx", "/data", ("cat", "d\N{LATIN SMALL LETTER O WITH DIAERESIS}g", "\ud800")),
    "no-labels": Origin("/m/net.onnx", "/data", ()),
}


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=ORIGINS)
@pytest.mark.parametrize("shard", [None, (1, 3)], ids=["whole", "shard"])
def test_it_comes_back_as_it_was(tmp_path, origin, shard):
    there = _whole(origin=origin, shard=shard)
    there.write(tmp_path / "new" / "x.atlas")
    back = SavedScan.read(tmp_path / "new" / "x.atlas")
    _same(there, back)
    assert back.finished
    assert back.whole
    assert back.part.images == 38
    assert back.to_bytes() == there.to_bytes() == (tmp_path / "new" / "x.atlas").read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["x.atlas"]


def test_values_of_other_inputs_come_back():
    from onnxviz.scans.job import fed

    job = synthetic.job(40, feeds=fed(FEEDS))
    there = synthetic.saved(job, VALUES, origin=replace(synthetic.ORIGIN, feeds=FEEDS))
    _same(there, SavedScan.from_bytes(there.to_bytes(), "x"))


def test_a_scan_that_has_just_begun():
    job = synthetic.job(40)
    there = SavedScan(job, synthetic.ORIGIN, (0, 40), Part.empty(job.layers, job.top), ())
    back = SavedScan.from_bytes(there.to_bytes(), "x")
    _same(there, back)
    assert back.todo == ((0, 40),)
    assert not back.finished


def test_what_is_left_to_do():
    job = synthetic.job(40)
    one = synthetic.saved(job, VALUES, 8, 16, range_=(8, 24), shard=(2, 3))
    assert one.todo == ((16, 24),)
    assert not one.finished
    done = synthetic.saved(job, VALUES, 8, 24, shard=(2, 3))
    assert done.finished
    assert not done.whole


def test_the_same_content_makes_the_same_bytes_whatever_its_layout_in_memory():
    there = _whole()

    def turned(array: Any) -> Any:
        return np.asfortranarray(array)

    part = there.part
    other = replace(
        part,
        topk=type(part.topk)(**{name: turned(a) for name, a in part.topk.arrays().items()}),
        responses=replace(part.responses, largest=turned(part.responses.largest)),
    )
    assert other.topk.score.flags.f_contiguous
    assert replace(there, part=other).to_bytes() == WHOLE


def test_no_clock_and_no_machine_is_in_it(monkeypatch):
    import platform
    import time

    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert _whole().to_bytes() == WHOLE
    names = zipfile.ZipFile(io.BytesIO(WHOLE.split(b"\n", 2)[2])).infolist()
    assert {one.date_time for one in names} == {(1980, 1, 1, 0, 0, 0)}


def test_versions_are_noted_once():
    there = _whole(versions=("onnxviz 0",))
    assert there.told.notes == ()
    now = there.now(there.part).now(there.part)
    assert now.versions == tuple(sorted(["onnxviz 0", versions()]))
    (note,) = now.told.notes
    assert note.startswith("The scan was made with different versions: ")


# Secrets

URLS = [
    "s3://key:secret@bucket/photos",
    "https://user:secret@host/val.zip?token=secret",
    "https://host/val.zip?X-Amz-Signature=secret&x=1",
    "zip://cats/*.jpg::https://host/val.zip?token=secret",
]


@pytest.mark.parametrize("url", URLS)
def test_secrets_of_urls_are_not_in_the_file(url):
    there = _whole(origin=replace(synthetic.ORIGIN, images=url))
    assert b"secret" not in there.to_bytes()
    assert "***" in (SavedScan.from_bytes(there.to_bytes(), "x").origin.images or "")
    assert SavedScan.from_bytes(there.to_bytes(secrets=True), "x").origin.images == url


# Damage


def _refused(data: bytes) -> str:
    """It is damage, and said in a line that names the file."""
    with pytest.raises(DamagedError) as caught:
        SavedScan.from_bytes(data, "x.atlas")
    message = str(caught.value)
    assert message.startswith("x.atlas: ")
    assert "\n" not in message
    return message


PLACES = sorted({*range(100), *range(0, len(WHOLE), 97), len(WHOLE) - 1})


@pytest.mark.parametrize("length", [*PLACES[:-1:5], len(WHOLE) - 1])
def test_cut_short(length):
    _refused(WHOLE[:length])


def test_a_flipped_bit_anywhere():
    for place in PLACES:
        for bit in (1, 16, 128):
            flipped = bytearray(WHOLE)
            flipped[place] ^= bit
            _refused(bytes(flipped))


FOREIGN = {
    "empty": b"",
    "zeros": bytes(5000),
    "text": b"these are notes\n" * 9,
    "page": b"4.png\nsize: 64,64\nfilter: Linear\n",
    "head-only": b"onnxviz scan 1",
    "two-lines": b"onnxviz scan 1\n\n",
    "more": WHOLE + b"\0",
    "twice": WHOLE + WHOLE,
    "an-archive": WHOLE.split(b"\n", 2)[2],
    "crlf": WHOLE.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_scan(data):
    _refused(data)


def _sealed(body: bytes, number: bytes = b"1") -> bytes:
    """A file whose checksum fits."""
    head = b"onnxviz scan " + number
    return b"\n".join((head, hashlib.sha256(head + body).hexdigest().encode(), body))


BODY = WHOLE.split(b"\n", 2)[2]


def test_the_seal_of_these_tests_is_that_of_the_file():
    assert _sealed(BODY) == WHOLE


@pytest.mark.parametrize("number", [b"2", b"0", b"11", b"", b"1 ", b"\xff" * 100])
def test_another_format_is_told_from_damage(number):
    with pytest.raises(AtlasError, match="this version of onnxviz reads format 1") as caught:
        SavedScan.from_bytes(_sealed(BODY, number), "x.atlas")
    assert not isinstance(caught.value, DamagedError)


def _arrays() -> dict[str, Any]:
    with np.load(io.BytesIO(BODY)) as file:
        return {name: file[name] for name in file.files}


def _facts() -> dict[str, Any]:
    return json.loads(_arrays()["facts"].tobytes())


def _packed(arrays: dict[str, Any], *, pickled: bool = False, compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, allow_pickle=pickled, **arrays)
    return _sealed(stream.getvalue())


def _with_facts(facts: Any) -> bytes:
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return _packed(_arrays() | {"facts": np.frombuffer(text, np.uint8)})


def test_what_is_repacked_unchanged_is_read():
    """So the damage below is in what is changed, and not in how it is packed."""
    _same(SavedScan.from_bytes(WHOLE, "x"), SavedScan.from_bytes(_with_facts(_facts()), "x"))


ARRAYS = sorted(name for name in _arrays() if name != "facts")
CHANGES: dict[str, Callable[[Any], Any]] = {
    "one-row-less": lambda a: a[:-1],
    "one-more-axis": lambda a: a[None],
    "flat": lambda a: a.ravel() if a.ndim > 1 else a.reshape(-1, 1),
    "half-precision": lambda a: a.astype(np.float16),
    "bytes-turned": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "text": lambda a: a.astype("U8"),
    "complex": lambda a: a.astype(np.complex64),
    "nothing": lambda a: a[:0],
    "scalar": lambda a: np.array(1, a.dtype),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ARRAYS)
def test_another_shape_or_type_behind_a_right_checksum(name, change):
    arrays = _arrays()
    assert "damaged" in _refused(_packed(arrays | {name: change(arrays[name])}))


@pytest.mark.parametrize("name", ["facts", *ARRAYS])
def test_a_missing_array(name):
    arrays = _arrays()
    del arrays[name]
    _refused(_packed(arrays))


def _put(name: str, *where_and_value: Any) -> bytes:
    arrays = _arrays()
    array = arrays[name].copy()
    array[where_and_value[:-1]] = where_and_value[-1]
    return _packed(arrays | {name: array})


VALUES_OUT_OF_RANGE = {
    "image-beyond-the-last": ("topk/image", 0, 3, 40),
    "image-below-0": ("topk/image", 0, 0, -1),
    "image-twice-in-another-order": ("topk/score", 0, 0, -100.0),
    "score-nan": ("topk/score", 1, 1, np.nan),
    "no-image-with-a-score": ("topk/image", 0, 3, np.iinfo(np.int64).max),
    "place-outside-of-the-map": ("topk/x", 0, 0, 12),
    "place-outside-of-a-vector": ("topk/x", 4, 0, 1),
    "place-below-0": ("topk/x", 0, 0, -1),
    "row-in-a-flat-map": ("topk/y", 0, 0, 1),
    "place-of-all-channels": ("overall/x", 0, 0, 1),
    "image-of-all-channels": ("overall/image", 1, 0, 1 << 40),
    "counted-more-than-there-are": ("stats/images", 0, 41),
    "counted-less-than-none": ("stats/not_finite", 1, -1),
    "active-more-than-there-are": ("stats/active_images", 1, 41),
    "sample-twice": ("responses/image", 1, 0),
    "sample-beyond": ("responses/image", -1, 40),
    "sample-below-0": ("responses/image", 0, -1),
}


@pytest.mark.parametrize("change", VALUES_OUT_OF_RANGE.values(), ids=VALUES_OUT_OF_RANGE)
def test_values_that_cannot_be_behind_a_right_checksum(change):
    assert "damaged (ValueError" in _refused(_put(*change))


def _at(facts: Any, path: str, value: Any) -> Any:
    *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
    inner = facts
    for key in way:
        inner = inner[key]
    inner[last] = value
    return facts


FACTS_OUT_OF_RANGE = {
    "top-0": ("job.top", 0),
    "top-text": ("job.top", "4"),
    "top-bool": ("job.top", True),
    "top-huge": ("job.top", 1 << 62),
    "rank": ("job.rank", "best"),
    "size-of-one": ("job.size", [12]),
    "size-0": ("job.size", [0, 12]),
    "size-float": ("job.size", [12.5, 12]),
    "size-huge": ("job.size", [1 << 40, 12]),
    "images-more-than-there-are": ("job.images", 41),
    "images-negative": ("job.images", -40),
    "layers-none": ("job.layers", []),
    "layers-text": ("job.layers", "conv1"),
    "channels-text": ("job.layers.0.channels", "2"),
    "channels-huge": ("job.layers.0.channels", 1 << 61),
    "channels-negative": ("job.layers.0.channels", -2),
    "map-of-0": ("job.layers.0.size", [0, 4]),
    "field-unknown": ("job.layers.0.colour", "red"),
    "preprocess-none": ("job.preprocess", None),
    "preprocess-mean": ("job.preprocess.mean", [0.5]),
    "preprocess-resize": ("job.preprocess.resize", "no"),
    "preprocess-unknown": ("job.preprocess.colour", 1),
    "data-none": ("job.data", None),
    "data-number": ("job.data.content", 7),
    "feeds-that-are-not-there": ("job.feeds", [["scale", "0" * 64]]),
    "origin-none": ("origin", None),
    "origin-labels-number": ("origin.labels", 7),
    "origin-feeds": ("origin.feeds", ["scale"]),
    "range-beyond": ("range", [0, 41]),
    "range-below-0": ("range", [-1, 40]),
    "range-turned": ("range", [40, 0]),
    "range-of-other-images": ("range", [0, 8]),
    "range-of-three": ("range", [0, 20, 40]),
    "done-beyond": ("done", [[0, 41]]),
    "done-text": ("done", "all"),
    "done-fewer-than-counted": ("done", [[0, 3]]),
    "every-3": ("every", 3),
    "every-0": ("every", 0),
    "every-none": ("every", None),
    "every-of-fewer": ("every", 4),
    "skipped-beyond": ("skipped", [[40, "x.png", "cut"]]),
    "skipped-of-two": ("skipped", [[3, "x.png"]]),
    "notes-number": ("notes", 7),
    "versions-none": ("versions", None),
    "shard-of-one": ("shard", [1]),
}


@pytest.mark.parametrize("change", FACTS_OUT_OF_RANGE.values(), ids=FACTS_OUT_OF_RANGE)
def test_facts_that_cannot_be_behind_a_right_checksum(change):
    assert "damaged (" in _refused(_with_facts(_at(_facts(), *change)))


TEXTS = {
    "no-json": b"{",
    "no-text": b"\xff\xfe\x00",
    "empty": b"",
    "a-list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "long-number": b'{"job": %s}' % (b"9" * 5000),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_facts_that_are_none(text):
    _refused(_with_facts(text))


class _Trap:
    """Runs something where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["facts", "topk/score", "responses/largest", "feeds/0", "other"])
def test_pickles_run_nothing(tmp_path, name):
    data = _packed(_arrays() | {name: np.array([_Trap(tmp_path / "ran")], object)}, pickled=True)
    if name == "feeds/0":
        job = _at(_facts(), "origin.feeds", ["scale"])
        arrays = _arrays() | {"feeds/0": np.array([_Trap(tmp_path / "ran")], object)}
        data = _packed(arrays | {"facts": np.frombuffer(json.dumps(job).encode(), np.uint8)}, pickled=True)
    assert "damaged" in _refused(data)
    assert not (tmp_path / "ran").exists()
    np.load(io.BytesIO(data.split(b"\n", 2)[2]), allow_pickle=True)[name]  # the trap works
    assert (tmp_path / "ran").exists()


def test_an_archive_that_is_far_larger_than_the_file_is_not_unpacked():
    data = _packed(_arrays() | {"other": np.zeros(1 << 24, np.uint8)}, compressed=True)
    assert len(data) < 1 << 20
    assert "larger than the file" in _refused(data)


def test_an_array_that_says_it_is_larger_than_all_memory():
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(BODY)) as old, zipfile.ZipFile(stream, "w") as new:
        for one in old.infolist():
            data = old.read(one)
            if one.filename == "topk/score.npy":
                data = data.replace(b"'shape': (5, 4)", b"'shape': (5, 1000000000000)")
                length = len(data) - 5 * 4 * 8 - 10
                data = data[:8] + length.to_bytes(2, "little") + data[10:]
            new.writestr(one, data)
    _refused(_sealed(stream.getvalue()))


# What nobody thought of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(1 << 70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _paths(facts: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = (
        facts.items() if isinstance(facts, dict) else enumerate(facts) if isinstance(facts, list) else ()
    )
    for key, value in entries:
        yield (*at, key)
        yield from _paths(value, (*at, key))


PATHS = sorted(_paths(_facts()), key=str)


def _use(data: bytes) -> None:
    """It is damage and said to be, or a scan that can be gone on with in every way."""
    try:
        there = SavedScan.from_bytes(data, "x.atlas")
    except AtlasError as error:
        assert str(error).startswith("x.atlas: ")
        return
    again = SavedScan.from_bytes(there.to_bytes(), "x")
    assert (again.todo, again.finished, again.whole, again.told.notes) == (
        there.todo,
        there.finished,
        there.whole,
        there.told.notes,
    )
    assert again.job.differences(there.job, in_place=True) == ()
    found = there.part.scan(there.job.layers)
    for one in found.layers:
        height, width = one.layer.grid
        for channel in range(one.layer.channels):
            for hit in one.topk.hits(channel):
                assert 0 <= hit.image < there.job.images
                assert (0 <= hit.y < height) and (0 <= hit.x < width)
        assert one.stats.total.shape == (one.layer.channels,)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(PATHS), JSON, st.booleans())
def test_any_facts_behind_a_right_checksum(path, value, gone):
    facts = _facts()
    *way, last = path
    inner = facts
    for key in way:
        inner = inner[key]
    if gone:
        del inner[last]
    else:
        inner[last] = value
    _use(_with_facts(json.dumps(facts).encode()))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(ARRAYS), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_any_values_behind_a_right_checksum(name, place, content):
    arrays = _arrays()
    array = arrays[name].copy()
    data = bytearray(array.tobytes())
    at = place % len(data)
    data[at : at + len(content)] = content
    array = np.frombuffer(bytes(data[: array.nbytes]), array.dtype).reshape(array.shape)
    _use(_packed(arrays | {name: array}))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, len(BODY) - 1), st.binary(min_size=1, max_size=8))
def test_any_bytes_behind_a_right_checksum(place, content):
    body = BODY[:place] + content + BODY[place + len(content) :]
    _use(_sealed(body))


# Files


def test_there_is_none(tmp_path):
    with pytest.raises(AtlasError, match=r"x\.atlas: there is no such scan"):
        SavedScan.read(tmp_path / "x.atlas")


def test_a_folder_in_its_place_cannot_be_read_and_is_no_damage(tmp_path):
    with pytest.raises(AtlasError, match="cannot be read") as caught:
        SavedScan.read(tmp_path)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_former_file(tmp_path, monkeypatch, step):
    path = tmp_path / "x.atlas"
    _whole().write(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        usual = Path.open

        def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = usual(self, mode, *arguments, buffering=0, **options)
            if "w" not in mode:
                return file
            file.write(b"onnxviz scan")
            return _Full(file)

        monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(AtlasError, match=r"No space left on device.*kept"):
        synthetic.saved(synthetic.job(40), VALUES, 0, 8).write(path)
    monkeypatch.undo()
    assert path.read_bytes() == WHOLE
    assert [one.name for one in tmp_path.iterdir()] == ["x.atlas"]


class _Full:
    """A file on a disk that is full after the first bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting takes root on Linux")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    path = small_disk / "x.atlas"
    assert len(WHOLE) < 16_000
    _whole().write(path)
    (small_disk / "others").write_bytes(bytes(60_000 - (len(WHOLE) + 4095) // 4096 * 4096))
    large = synthetic.saved(
        synthetic.job(40), VALUES, origin=replace(synthetic.ORIGIN, labels=("x" * 60_000,))
    )
    with pytest.raises(AtlasError, match="No space left on device"):
        large.write(path)
    assert path.read_bytes() == WHOLE
    assert sorted(one.name for one in small_disk.iterdir()) == ["others", "x.atlas"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        steps.append("name")
        return rename(self, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    _whole().write(tmp_path / "x.atlas")
    assert steps == (
        ["file", "name", "folder"] if Path("/proc/self/fd").exists() else ["file", "name", "file"]
    )
