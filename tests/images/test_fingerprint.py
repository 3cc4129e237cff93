"""Fingerprints of data sets: the same for a copy elsewhere, another for whatever changes."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxviz.images import fingerprint as module
from onnxviz.images.files import LocalFile
from onnxviz.images.fingerprint import Fingerprint, sampled_bytes
from onnxviz.images.samples import builtin_source
from onnxviz.images.source import Sample, Source, open_source

FILES = {"cat/2.png": b"two", "cat/10.png": b"ten", "dog/1.png": b"one", "stray.png": b"s", "notes.txt": b"n"}
HOUR = 3600 * 10**9


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
        os.utime(path / name, ns=(HOUR, HOUR))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path.with_suffix(".tgz"), "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path.with_suffix(".tgz")


def write_array(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.array([np.full((2, 2), data[0]) for data in files.values()], np.uint8)
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


def write_labelled_arrays(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.array([np.full((2, 2), data[0]) for data in files.values()], np.uint8)
    np.savez(path.with_suffix(".npz"), x=x, y=[name.split("/")[0] for name in files])
    return path.with_suffix(".npz")


def write_one(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".png").write_bytes(repr(files).encode())
    return path.with_suffix(".png")


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": write_folder,
    "zip": write_zip,
    "tgz": write_tar,
    "npy": write_array,
    "npz": write_labelled_arrays,
    "image": write_one,
}
NAMED = ("folder", "zip", "tgz")
LABELLED = (*NAMED, "npz")
CHANGES: dict[str, tuple[tuple[str, ...], Callable[[dict[str, bytes]], dict[str, bytes]]]] = {
    "one more": (tuple(WRITERS), lambda files: {**files, "dog/2.png": b"x"}),
    "one less": (tuple(WRITERS), lambda files: {n: d for n, d in files.items() if n != "cat/2.png"}),
    "another size": (NAMED, lambda files: {**files, "cat/2.png": b"twoo"}),
    "another name": (NAMED, lambda files: {n.replace("10", "11"): d for n, d in files.items()}),
    "another label": (LABELLED, lambda files: {n.replace("dog", "fox"): d for n, d in files.items()}),
    "other bytes": (("zip", "npy", "npz", "image"), lambda files: {**files, "cat/2.png": b"owt"}),
}


def taken(path: Path) -> Fingerprint:
    return open_source(path).fingerprint()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_copy_elsewhere_has_the_same_content_and_other_times(tmp_path: Path, kind: str) -> None:
    here = WRITERS[kind](tmp_path / "here", FILES)
    there = WRITERS[kind](tmp_path / "far" / "there", FILES)
    for file in [there, *there.rglob("*")] if there.is_dir() else [there]:
        os.utime(file, ns=(5 * HOUR, 5 * HOUR))
    one, other = taken(here), taken(there)
    assert one == taken(here)
    assert one.content == other.content
    assert one.times is not None and one.times != other.times


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for change, (kinds, _) in CHANGES.items() for kind in kinds]
)
def test_changes_are_noticed(tmp_path: Path, kind: str, change: str) -> None:
    changed = CHANGES[change][1]
    before = taken(WRITERS[kind](tmp_path / "a", FILES))
    assert taken(WRITERS[kind](tmp_path / "b", changed(FILES))).content != before.content


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_replaced_by_one_of_the_same_size_has_another_time(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / "a", FILES)
    file = path / "dog/1.png" if path.is_dir() else path
    os.utime(file, ns=(HOUR, HOUR))
    before = taken(path)
    os.utime(file, ns=(HOUR + 1000, HOUR + 1000))
    after = taken(path)
    assert after.content == before.content
    assert after.times != before.times


def test_a_folder_and_an_archive_of_it_are_told_apart_by_nothing_but_checksums(tmp_path: Path) -> None:
    assert (
        taken(write_folder(tmp_path / "a", FILES)).content != taken(write_zip(tmp_path / "a", FILES)).content
    )


def test_other_files_do_not_count(tmp_path: Path) -> None:
    before = taken(write_folder(tmp_path / "a", FILES))
    (tmp_path / "a" / "notes.txt").write_text("more")
    (tmp_path / "a" / "readme").write_text("new")
    assert taken(tmp_path / "a") == before


def test_it_is_of_the_files_as_they_are_now(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "a", FILES))
    before = source.fingerprint()
    (tmp_path / "a" / "cat" / "2.png").write_bytes(b"longer than before")
    assert source.fingerprint().content != before.content


def test_unreadable_files_count_as_such(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", FILES)
    source = open_source(tmp_path / "a")
    whole = source.fingerprint()
    (tmp_path / "a" / "dog" / "1.png").unlink()
    gone = source.fingerprint()
    assert gone.content != whole.content and gone.times != whole.times
    (tmp_path / "a" / "dog" / "1.png").symlink_to("nowhere")
    assert source.fingerprint() == gone
    assert taken(tmp_path / "a").content != whole.content


@pytest.mark.parametrize("kind", ["image", "npy"])
def test_a_vanished_file_is_no_error(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / "a", FILES)
    source = open_source(path)
    before = source.fingerprint()
    path.unlink()
    after = source.fingerprint()
    assert after.content != before.content and after.times is None


def test_labels_that_are_renamed_count(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", FILES)
    renamed = open_source(tmp_path / "a", labels={"cat": "tabby"})
    assert renamed.fingerprint().content != taken(tmp_path / "a").content


@pytest.mark.skipif(os.name == "nt", reason="file names are always Unicode there")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    before = taken(tmp_path)
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert taken(tmp_path).content != before.content


def test_threads_and_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_folder(tmp_path / "a", {f"{n}.png": b"x" * (n % 9) for n in range(300)}))
    expected = source.fingerprint()
    asked: set[str] = set()
    ask = module._size_and_time

    def noted(path: str) -> tuple[int | None, int | None]:
        asked.add(threading.current_thread().name)
        return ask(path)

    monkeypatch.setattr(module, "_CHUNK", 7)
    monkeypatch.setattr(module, "_THREADS", 3)
    monkeypatch.setattr(module, "_SLOW", -1)
    monkeypatch.setattr(module, "_size_and_time", noted)
    assert source.fingerprint() == expected
    assert any(name.startswith("onnxviz-sizes") for name in asked)


def test_opening_asks_for_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> tuple[int | None, int | None]:
        raise AssertionError(path)

    write_folder(tmp_path / "a", FILES)
    monkeypatch.setattr(module, "_size_and_time", refuse)
    open_source(tmp_path / "a")


BLOCK, BLOCKS = module._BLOCK, module._BLOCKS


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 5, BLOCKS * BLOCK])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, size: int, place: float) -> None:
    data = bytearray(np.random.default_rng(0).bytes(size))
    (tmp_path / "a").write_bytes(data)
    before = sampled_bytes(LocalFile(tmp_path / "a"))
    data[round(place * (size - 1))] ^= 1
    (tmp_path / "a").write_bytes(data)
    assert sampled_bytes(LocalFile(tmp_path / "a")) != before
    assert before is not None and before[0] == size


def test_of_a_large_file_a_bounded_part_is_read_from_start_to_end(tmp_path: Path) -> None:
    path, size = tmp_path / "a", 3 << 30
    with path.open("wb") as file:
        file.truncate(size)  # a hole: no disk is used
    before = sampled_bytes(LocalFile(path))
    for place in (0, (size - BLOCK) * 40 // (BLOCKS - 1), size - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
            file.flush()
            assert sampled_bytes(LocalFile(path)) != before
            file.seek(place)
            file.write(b"\0")
    assert sampled_bytes(LocalFile(path)) == before


def test_empty_file_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert sampled_bytes(LocalFile(tmp_path / "a")) is not None
    assert sampled_bytes(LocalFile(tmp_path / "b")) is None


def made(*pairs: tuple[str, str | None]) -> Source:
    return Source("mine", tuple(Sample(name, label, lambda: np.zeros((1, 1, 1))) for name, label in pairs))


def test_a_source_made_in_python_is_known_by_names_and_labels() -> None:
    plain = made(("a", None), ("b", "x")).fingerprint()
    assert plain == made(("a", None), ("b", "x")).fingerprint()
    assert plain.times is None
    others = [
        made(("b", "x"), ("a", None)),
        made(("a", None), ("b", "y")),
        made(("a", "None"), ("b", "x")),
        made(("a", None)),
        made(("a", None), ("b", "x"), ("b", "x")),
        made(),
    ]
    assert len({plain.content, *(other.fingerprint().content for other in others)}) == 7


def test_built_in_samples() -> None:
    digits, photographs = builtin_source(1, 28, 28).fingerprint(), builtin_source(3, 96, 96).fingerprint()
    assert digits == builtin_source(1, 28, 28).fingerprint()
    assert digits.content != photographs.content
    assert digits.times is None and photographs.times is None


def test_the_digest_does_not_change_from_version_to_version(tmp_path: Path) -> None:
    """Scans saved by one version must be known again by the next."""
    source = open_source(write_folder(tmp_path / "a", {"é/1.png": b"12", "\U0001f600.png": b"1"}))
    assert source.fingerprint().content == PINNED


PINNED = "dc7d4e43dcc309ec783ab1f500003f8359148cc70209a25c63bb3db23cae9605"
