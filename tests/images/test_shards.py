"""Several archives as one data set, and patterns of files of this machine."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.images import files, shards
from onnxviz.images.archive import open_archive
from onnxviz.images.files import LocalFile, Opened
from onnxviz.images.folder import LocalFolder
from onnxviz.images.source import open_source
from tests.images.test_source import PET_FACTS, PETS, facts, png, write, write_tar, write_zip


def value(number: int) -> bytes:
    return png(number % 256)


def write_shards(folder: Path, count: int, each: int, mode: str = "w") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ending = ".tar" if mode == "w" else ".tar.gz"
    for shard in range(count):
        members = {f"{n % 3}/{n:04}.png": value(n) for n in range(shard * each, (shard + 1) * each)}
        write_tar(folder / f"s-{shard:02}{ending}", members, mode)
    return folder


@pytest.mark.parametrize("place", ["", "*.tar", "s-{00..02}.tar", "s-0[0-2].tar", "s-{00,01,02}.tar", "**"])
def test_shards_are_one_data_set(tmp_path: Path, place: str) -> None:
    folder = write_shards(tmp_path / "shards", 3, 5)
    source = open_source(folder / place)
    expected = sorted((f"{n % 3}/{n:04}.png", str(n % 3), n) for n in range(15))
    assert [(s.name, s.label, int(s.read()[0, 0, 0])) for s in source.samples] == expected
    assert source.description == f"{place or 'shards/'} (15 images)"


def test_other_files_beside_archives_do_not_matter(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", 2, 3)
    (folder / "index.json").write_text("{}")
    (folder / "names.txt.gz").write_bytes(gzip.compress(b"cat"))
    assert len(open_source(folder).samples) == 6


def test_images_beside_archives_are_the_data_set(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", 2, 3)
    (folder / "a.png").write_bytes(png(1))
    source = open_source(folder)
    assert [sample.name for sample in source.samples] == ["a.png"]
    assert source.description == "shards/ (1 image, 2 other files ignored)"


def test_names_that_several_archives_hold_are_told_apart(tmp_path: Path) -> None:
    for number in range(2):
        write_zip(tmp_path / f"{number}.zip", {"cat/a.png": png(number), "dog/b.png": png(number)})
    found = [(s.name, s.label, int(s.read()[0, 0, 0])) for s in open_source(tmp_path).samples]
    assert found == [
        ("0.zip/cat/a.png", "cat", 0),
        ("0.zip/dog/b.png", "dog", 0),
        ("1.zip/cat/a.png", "cat", 1),
        ("1.zip/dog/b.png", "dog", 1),
    ]


@pytest.mark.parametrize("spoil", ["junk", "short", "unreadable"])
def test_a_damaged_archive_among_others_is_one_bad_image(tmp_path: Path, spoil: str) -> None:
    folder = write_shards(tmp_path / "shards", 3, 5)
    damaged = folder / "s-01.tar"
    if spoil == "junk":
        damaged.write_bytes(b"junk" * 1000)
    elif spoil == "short":
        damaged.write_bytes(damaged.read_bytes()[:1900])
    else:
        damaged.unlink()
        damaged.symlink_to("nowhere")
    source = open_source(folder)
    assert len(source.samples) == 11
    (bad,) = [sample for sample in source.samples if sample.name == "s-01.tar"]
    assert bad.label is None
    with pytest.raises(
        ImageError, match=r"^s-01\.tar: (not an archive|damaged archive|cannot be read|neither)"
    ):
        bad.read()
    assert source.classes == {"0": 3, "1": 4, "2": 3}
    assert source.fingerprint().content != open_source(folder / "s-{00,02}.tar").fingerprint().content


def test_what_cannot_be_listed_beside_archives_is_one_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "shards", 2, 3)
    walk = LocalFolder.walk
    monkeypatch.setattr(
        LocalFolder, "walk", lambda self: [*walk(self), ("closed/", "the folder cannot be read")]
    )
    (bad,) = [sample for sample in open_source(folder).samples if sample.name == "closed/"]
    with pytest.raises(ImageError, match=r"^closed/: the folder cannot be read"):
        bad.read()


def test_nothing_but_damaged_archives(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": b"junk", "b.zip": b"junk"})
    with pytest.raises(ImageError, match=r"a\.tar: not an archive"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_without_images(tmp_path: Path, kind: str) -> None:
    for number in range(2):
        (write_zip if kind == "zip" else lambda p, f: write_tar(p, f, "w"))(
            tmp_path / f"{number}.{kind}", {"a.txt": b"1"}
        )
    with pytest.raises(NoImagesError, match=r"no images, only 2 other files \(2 \.txt\)"):
        open_source(tmp_path)


def test_the_fingerprint_does_not_depend_on_how_images_are_shared_out(tmp_path: Path) -> None:
    one, other = (write_shards(tmp_path / str(count), count, 12 // count) for count in (2, 4))
    assert open_source(one).fingerprint().content == open_source(other).fingerprint().content


def test_compressed_shards_in_threads_keep_few_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "shards", 6, 40, "w:gz")
    source = open_source(folder)
    opened: list[object] = []
    rewinds: list[object] = []
    rewind = gzip._GzipReader._rewind  # type: ignore[attr-defined]
    monkeypatch.setattr(
        gzip._GzipReader,
        "_rewind",
        lambda self: (rewinds.append(1), rewind(self)),  # type: ignore[attr-defined]
    )
    tar_open = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: (opened.append(1), tar_open(*a, **k))[1])
    with ThreadPoolExecutor(8) as pool:
        found = [
            number
            for start in range(0, 240, 16)  # as far as a scan runs ahead
            for number in pool.map(lambda s: int(s.read()[0, 0, 0]), source.samples[start : start + 16])
        ]
    assert found == list(range(240))
    assert len(opened) == 6
    assert rewinds == []
    reading = source.samples[0].read.args[0].func.__self__._reading  # type: ignore[attr-defined]
    assert len(reading) == shards.KEPT_OPEN
    held = [one for one in source.samples[0].read.args[0].func.__self__._archives if one._tar is not None]  # type: ignore[attr-defined]
    assert len(held) <= shards.KEPT_OPEN


PATTERNS = {
    "pets/*/*.png": ["cat/2.png", "cat/10.png"],
    "pets/cat/*.png": ["2.png", "10.png"],
    "pets/{cat,dog}": ["cat/2.png", "cat/10.png", "dog/big/1.PNG"],
    "pets/**/*.PNG": ["1.PNG"],
    "pets/[cd]*": ["cat/2.png", "cat/10.png", "dog/big/1.PNG"],
    "pets/**": ["cat/2.png", "cat/10.png", "dog/big/1.PNG", "stray.png"],
    "pets/cat/{2,10}.png": ["2.png", "10.png"],
    "pets/stra?.png": ["stray.png"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, absolute: bool) -> None:
    write(tmp_path / "pets", PETS)
    monkeypatch.chdir(tmp_path)
    source = open_source(str(tmp_path / pattern) if absolute else pattern)
    assert [sample.name for sample in source.samples] == PATTERNS[pattern]
    for sample in source.samples:
        sample.read()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("pets/*.gif", "no file or folder matches"), ("pets/cat/{2,3}.png", r"cat/3\.png: no such file"),
     ("pets/{0..999999}", "more than 100,000")],
)  # fmt: skip
def test_patterns_that_stand_for_nothing(tmp_path: Path, pattern: str, message: str) -> None:
    write(tmp_path / "pets", PETS)
    with pytest.raises(UsageError, match=message):
        open_source(tmp_path / pattern)


def test_a_pattern_longer_than_a_name_can_be(tmp_path: Path) -> None:
    write(tmp_path / "pets", PETS)
    pattern = f"{tmp_path}/pets/{{{','.join(['stray', 'cat/2', 'cat/10'])}{',cat/2' * 100}}}.png"
    assert [sample.name for sample in open_source(pattern).samples] == [
        "cat/2.png",
        "cat/10.png",
        "stray.png",
    ]


@pytest.mark.parametrize("place", ["", "x" * 5000, "a\0b", "file://", "file:///no/where"])
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(UsageError, match=r"no such file or folder|No place"):
        open_source(place)


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "pets [2]{1,2}", PETS)
    assert facts(tmp_path / "pets [2]{1,2}") == PET_FACTS


@pytest.mark.parametrize("method", ["stored", "deflated", "bzip2", "lzma"])
def test_every_method_of_zip(tmp_path: Path, method: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", getattr(zipfile, f"ZIP_{method.upper()}")) as archive:
        for number in range(20):
            archive.writestr(f"{number:02}.png", value(number))
    samples = open_source(tmp_path / "a.zip").samples
    order = random.Random(0).sample(range(20), 20)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: int(samples[n].read()[0, 0, 0]), order)) == order


def test_a_zip_behind_other_data_and_with_long_extra_fields(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            info = zipfile.ZipInfo(f"{number}.png")
            info.extra = b"\xfe\xca" + (200).to_bytes(2, "little") + bytes(200)
            archive.writestr(info, value(number))
    data = file.getvalue().replace(b"PK\3\4", b"PK\3\4")
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 50 + data)
    assert [int(s.read()[0, 0, 0]) for s in open_source(tmp_path / "a.zip").samples] == [0, 1, 2]


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(magic) + offset] |= 1
    path.write_bytes(data)
    samples = open_source(path).samples
    with pytest.raises(ImageError, match=r"^a\.png: .*encrypted"):
        samples[0].read()
    assert samples[1].read()[0, 0, 0] == 2


@pytest.mark.parametrize("claim", [10, 10**9])
def test_a_member_of_another_size_than_it_claims(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(50_000_000))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2") + 24
    data[place : place + 4] = claim.to_bytes(4, "little")
    path.write_bytes(data)
    sample = open_source(path).samples[0]
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"^a\.png: damaged"):
        sample.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if claim == 10:  # what it claims bounds what is unpacked
        assert peak < 1_000_000


def test_a_sparse_file_in_a_tar(tmp_path: Path) -> None:
    """As GNU tar writes it: an extended header that says where the data belongs."""
    image = Image.fromarray(np.zeros((50, 50), np.uint8))
    file = io.BytesIO()
    image.save(file, "BMP")
    content = file.getvalue()
    cut = len(content) - 1000
    member = tarfile.TarInfo("a.bmp")
    stored = content[:cut]
    listed = f"1\n0\n{cut}\n".encode().ljust(512, b"\0")
    member.size = len(listed) + len(stored)
    member.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.bmp",
        "GNU.sparse.realsize": str(len(content)),
    }  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(listed + stored))
    with tarfile.open(tmp_path / "a.tar") as witness:
        assert witness.extractfile("a.bmp").read() == content  # type: ignore[union-attr]
    assert np.array_equal(open_source(tmp_path / "a.tar").samples[0].read()[..., 0], np.zeros((50, 50)))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_index_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """Names, places and sizes; objects of zipfile and tarfile would take a kilobyte each."""
    count, path = 5000, tmp_path / f"a.{kind}"
    members = {f"folder/{n:06}.png": b"" for n in range(count)}
    write_zip(path, members) if kind == "zip" else write_tar(path, members, "w:gz" if "gz" in kind else "w")
    open_archive(LocalFile(path))  # what is loaded once
    tracemalloc.start()
    archive = open_archive(LocalFile(path))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert archive is not None and len(archive.names) == count
    assert kept < 200 * count
    if kind != "zip":  # zipfile makes its objects first
        assert peak < 200 * count + 1_000_000


class Counted:
    """Bytes as a file that counts what is asked of it."""

    ahead, readers, sequential, version, place, title, name = 1 << 20, None, False, None, "x", "x", "x"

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.asked: list[tuple[int, int]] = []

    def read(self, start: int, length: int) -> bytes:
        assert start >= 0 and start + length <= self.size and length > 0
        self.asked.append((start, length))
        return self.data[start : start + length]

    def whole(self) -> bytes:
        return self.data

    def release(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(4))
def test_an_opened_file_reads_as_any_other(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(files.Opened, "LEAST", 64)
    rng = random.Random(seed)
    file = Counted(rng.randbytes(5000))
    file.ahead = 512
    opened, witness = Opened(file), io.BytesIO(file.data)
    for _ in range(400):
        whence = rng.choice([0, 1, 2])
        offset = rng.randint(-300, 300) if whence else rng.randint(0, 5200)
        try:
            expected: int | None = witness.seek(
                max(0, witness.tell() + offset) if whence == 1 else offset, 0 if whence == 1 else whence
            )
        except (ValueError, OSError):
            continue
        assert opened.seek(expected) == expected
        size = rng.choice([-1, 0, 1, 10, 100, 1000])
        assert opened.read(size) == witness.read(size)
        assert opened.tell() == witness.tell()
    assert io.BufferedReader(Opened(file)).read() == file.data


def test_reading_on_takes_ever_larger_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Counted(bytes(20 << 20))
    opened = Opened(file)
    while opened.read(10_000):
        pass
    assert len(file.asked) < 30
    assert max(length for _, length in file.asked) == file.ahead


def test_leaps_take_little(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Counted(bytes(20 << 20))
    opened = Opened(file)
    for place in range(0, 18 << 20, 2 << 20):
        opened.seek(place)
        opened.read(512)
    assert {length for _, length in file.asked} == {Opened.LEAST}
