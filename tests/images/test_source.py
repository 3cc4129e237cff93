"""Sources: names, order, labels and errors of folders, archives and array files."""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import random
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.images.source import index_labels, natural_key, open_source, read_labels


def png(value: int, height: int = 4, width: int = 3) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


WRITERS = {
    "zip": lambda path, files: write_zip(path / "a.zip", files),
    "tar": lambda path, files: write_tar(path / "a.tar", files, "w"),
    "tar.gz": lambda path, files: write_tar(path / "a.tar.gz", files, "w:gz"),
    "tgz": lambda path, files: write_tar(path / "a.tgz", files, "w:gz"),
    "tar.bz2": lambda path, files: write_tar(path / "a.tar.bz2", files, "w:bz2"),
    "tar.xz": lambda path, files: write_tar(path / "a.tar.xz", files, "w:xz"),
}
PETS = {
    "cat/2.png": png(2),
    "cat/10.png": png(10),
    "dog/big/1.PNG": png(7),
    "stray.png": png(1),
    "dog/notes.txt": b"bones",
    ".hidden.png": png(9),
    "cat/.thumbs/1.png": png(9),
}
PET_NAMES = ["cat/2.png", "cat/10.png", "dog/big/1.PNG", "stray.png"]


def facts(path: Path) -> list[tuple[str, str | None, int]]:
    return [(s.name, s.label, int(s.read()[0, 0, 0])) for s in open_source(path).samples]


PET_FACTS = list(zip(PET_NAMES, ["cat", "cat", "dog", None], [2, 10, 7, 1], strict=True))


def test_folder(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "pets", PETS))
    assert facts(tmp_path / "pets") == PET_FACTS
    assert source.description == "pets/ (4 images, 1 other files ignored)"
    assert source.classes == {"cat": 2, "dog": 1}
    assert not source.builtin


@pytest.mark.parametrize("kind", WRITERS)
def test_archive_reads_like_the_folder(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path, PETS)
    assert sorted(facts(path), key=lambda fact: natural_key(fact[0])) == PET_FACTS
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_with_random_access_are_sorted(tmp_path: Path, kind: str) -> None:
    shuffled = dict(sorted(PETS.items(), reverse=True))
    assert facts(WRITERS[kind](tmp_path, shuffled)) == PET_FACTS


def test_folder_shared_by_all_of_an_archive_is_no_label(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "a.zip", {"./pets/cat/1.png": png(1), "pets/dog/1.png": png(2), "pets/3.png": png(3)}
    )
    found = {s.name: s.label for s in open_source(path).samples}
    assert found == {"pets/3.png": None, "pets/cat/1.png": "cat", "pets/dog/1.png": "dog"}


def test_labels_rename_folders(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, PETS), labels={"cat": "tabby"})
    assert source.classes == {"dog": 1, "tabby": 2}


def test_slices_are_listings(tmp_path: Path) -> None:
    samples = open_source(write(tmp_path, PETS)).samples
    assert [s.name for s in samples[1:3]] == PET_NAMES[1:3]
    assert [s.name for s in samples[::-2]] == PET_NAMES[::-2]
    assert samples[-1].name == PET_NAMES[-1]
    with pytest.raises(IndexError):
        samples[4]


@pytest.mark.parametrize("seed", range(3))
def test_natural_order(seed: int) -> None:
    ordered = [
        "1.png",
        "02.png",
        "2.png",
        "10.png",
        "A/1",
        "a/2",
        "a2/1",
        "a10",
        "b",
        "ä",
        "9" * 5000 + ".png",
    ]
    ordered = sorted(ordered, key=natural_key)
    assert ordered[:4] == ["02.png", "1.png", "2.png", "10.png"] or ordered[:4] == [
        "1.png",
        "02.png",
        "2.png",
        "10.png",
    ]
    assert ordered.index("a2/1") < ordered.index("a10")
    assert ordered.index("A/1") < ordered.index("a/2")
    shuffled = random.Random(seed).sample(ordered, len(ordered))
    assert sorted(shuffled, key=natural_key) == ordered


def test_one_image(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {"one.png": png(5)}) / "one.png")
    assert [(s.name, s.label) for s in source.samples] == [("one.png", None)]
    assert source.samples[0].read().shape == (4, 3, 1)


def test_corrupt_image_fails_only_when_read(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {"a.png": png(1), "b.png": b"junk", "c.png": b""}))
    assert len(source.samples) == 3
    assert source.samples[0].read()[0, 0, 0] == 1
    with pytest.raises(ImageError, match=r"^b\.png: not an image"):
        source.samples[1].read()
    with pytest.raises(ImageError, match=r"^c\.png: .*empty"):
        source.samples[2].read()


def test_vanished_image(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {"a.png": png(1)}))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"^a\.png: cannot be read"):
        source.samples[0].read()


def test_links_that_loop_end(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1)})
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert {s.name for s in open_source(tmp_path).samples} >= {"a/1.png", "gone.png"}
    with pytest.raises(ImageError):
        next(s for s in open_source(tmp_path).samples if s.name == "gone.png").read()


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "far", {"1.png": png(1)})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cat").symlink_to(tmp_path / "far")
    assert facts(tmp_path / "here") == [("cat/1.png", "cat", 1)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_pipe_with_an_image_name_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (sample,) = open_source(tmp_path).samples
    with pytest.raises(ImageError, match=r"pipe\.png: neither a file"):
        sample.read()


@pytest.mark.skipif(os.name == "nt", reason="file names are always Unicode there")
def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png(4))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert facts(tmp_path) == [("caf�.png", None, 4)]


@pytest.mark.parametrize("kind", WRITERS)
def test_archive_in_threads(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    files = {}
    for number in range(150):
        file = io.BytesIO()
        noise = rng.integers(0, 256, (20, 20), dtype=np.uint8)
        noise[0, 0] = number
        Image.fromarray(noise).save(file, "PNG")
        files[f"{number}.png"] = file.getvalue()
    samples = open_source(WRITERS[kind](tmp_path, files)).samples
    order = random.Random(1).sample(range(150), 150)
    with ThreadPoolExecutor(8) as pool:
        forward = list(pool.map(lambda i: int(samples[i].read()[0, 0, 0]), range(150)))
        mixed = list(pool.map(lambda i: int(samples[i].read()[0, 0, 0]), order))
    assert forward == list(range(150))
    assert mixed == order


def test_compressed_tar_is_not_rewound_for_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS["tgz"](tmp_path, {f"{n}.png": png(n) for n in range(60)})
    samples = open_source(path).samples
    samples[0].read()
    rewinds = []
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda self: (rewinds.append(1), rewind(self)))
    for first in range(1, 57, 4):
        for number in (first + 3, first + 1, first, first + 2):
            assert samples[number].read()[0, 0, 0] == number
    assert rewinds == []
    assert samples[0].read()[0, 0, 0] == 0
    assert rewinds == [1]


def test_encrypted_or_damaged_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(ImageError, match=r"^a\.png: damaged"):
        source.samples[0].read()
    assert source.samples[1].read()[0, 0, 0] == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_archive(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).bytes(60_000)
    path = WRITERS[kind](tmp_path, {"a.png": noise, "b.png": noise[::-1]})
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(ImageError, match=r"a\.\w+"):
        open_source(path)


def test_text_named_zip(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not an archive that can be read"):
        open_source(write(tmp_path, {"a.zip": b"hello"}) / "a.zip")


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_source(tmp_path / "nowhere")


def test_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.txt holds no images"):
        open_source(write(tmp_path, {"a.txt": b"hello"}) / "a.txt")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NoImagesError, match="empty; give images"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_nothing_but_other_files(tmp_path: Path, kind: str) -> None:
    files = {"a.txt": b"1", "b/c.txt": b"2", "d.csv": b"3"}
    path = write(tmp_path / "x", files) if kind == "folder" else WRITERS[kind](tmp_path, files)
    with pytest.raises(
        NoImagesError, match=r"no images, only 3 other files \(2 \.txt, 1 \.csv\); give images"
    ):
        open_source(path)


RNG = np.random.default_rng(5)
GREYS = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
ARRAYS = {
    "N H W": (GREYS, GREYS[..., None]),
    "N H W 1": (GREYS[..., None], GREYS[..., None]),
    "N 1 H W": (GREYS[:, None], GREYS[..., None]),
    "N H W C": (COLOURS, COLOURS),
    "N C H W": (COLOURS.transpose(0, 3, 1, 2), COLOURS),
    "integers": (COLOURS.astype(np.int64), COLOURS),
    "booleans": (GREYS > 99, (GREYS > 99)[..., None] * np.uint8(255)),
    "float": (GREYS[:, None] / 255, (GREYS[:, None] / 255).astype(np.float32)),
}


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(("stored", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_arrays(tmp_path: Path, stored: np.ndarray, expected: np.ndarray, kind: str) -> None:
    path = tmp_path / f"photos.{kind}"
    np.save(path, stored) if kind == "npy" else np.savez(path, x=stored)
    source = open_source(path)
    assert [s.name for s in source.samples] == [f"photos.{kind}[{n}]" for n in range(6)]
    pictures = [s.read() for s in source.samples]
    assert all(picture.dtype == expected.dtype for picture in pictures)
    assert np.array_equal(np.stack(pictures), expected)
    assert source.classes == {}


@pytest.mark.parametrize(
    "marks", [np.arange(6), np.arange(6.0), np.array(list("012345")), np.array([b"0", b"1"] * 3)]
)
def test_array_labels(tmp_path: Path, marks: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", labels=marks, images=GREYS)
    source = open_source(tmp_path / "a.npz", labels=index_labels(["zero", "one"]))
    assert [s.label for s in source.samples[:2]] == ["zero", "one"]
    assert source.description == "a.npz (6 images)"


def test_labels_of_another_length_are_said_to_be_ignored(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GREYS, y=np.eye(6))
    source = open_source(tmp_path / "a.npz")
    assert source.classes == {}
    assert "y of shape (6, 6) is not one label an image, ignored" in source.description


def test_labels_that_are_no_array_are_said_to_be_ignored(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", _npy(GREYS))
        archive.writestr("y.npy", b"no array")
    source = open_source(tmp_path / "a.npz")
    assert source.classes == {}
    assert "y of shape () is not one label an image, ignored" in source.description


def test_first_array_that_can_hold_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weights=np.ones(4), faces=GREYS, y=np.arange(6))
    assert len(open_source(tmp_path / "a.npz").samples) == 6


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("/should-never-exist-onnxviz",))


def save_object(path: Path) -> None:
    np.save(path, np.array([Trap()] * 3, dtype=object), allow_pickle=True)


BAD_ARRAYS = {
    "pickle": (save_object, "cannot be read as a NumPy array file"),
    "junk": (lambda path: path.write_bytes(b"junk"), "cannot be read as a NumPy array file"),
    "truncated": (lambda path: path.write_bytes(_npy(GREYS)[:-20]), "cannot be read as a NumPy array file"),
    "flat": (
        lambda path: np.save(path, np.ones((6, 784))),
        r"shape \(6, 784\).*expected numbers of shape \(N, H, W\)",
    ),
    "complex": (lambda path: np.save(path, np.ones((2, 3, 4), complex)), "type complex128"),
}


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(("spoil", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_array_files(tmp_path: Path, spoil: object, message: str) -> None:
    spoil(tmp_path / "a.npy")
    with pytest.raises(ImageError, match=message):
        open_source(tmp_path / "a.npy")
    assert not Path("/should-never-exist-onnxviz").exists()


def test_npz_without_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    with pytest.raises(NoImagesError, match=r"only w \(3,\)"):
        open_source(tmp_path / "a.npz")


def test_array_without_a_row(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREYS[:0])
    with pytest.raises(NoImagesError):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize(("value", "message"), [(300, "300"), (-1, "-1")])
def test_integers_out_of_range(tmp_path: Path, value: int, message: str) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3, 4), value))
    with pytest.raises(ImageError, match=rf"a\.npy\[1\]: .*{message}.*0 to 255"):
        open_source(tmp_path / "a.npy").samples[1].read()


def test_nan_is_an_image_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3, 4), np.nan))
    with pytest.raises(ImageError, match="NaN"):
        open_source(tmp_path / "a.npy").samples[0].read()


LABELS = {
    "lines": ("n01 tench, Tinca tinca\ngoldfish\n\n", ("n01 tench, Tinca tinca", "goldfish")),
    "byte order mark": ("\ufefftench\r\ngoldfish", ("tench", "goldfish")),
    "list": (json.dumps(["a", "b"]), ("a", "b")),
    "object": (json.dumps({"1": "b", "0": "a"}), ("a", "b")),
    "keras": (json.dumps({"0": ["n01", "tench"]}), ("n01 tench",)),
}


@pytest.mark.parametrize(("text", "names"), LABELS.values(), ids=LABELS)
def test_read_labels(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "labels") == names


BAD_LABELS = {
    "empty": (b"\n\n", "no class names"),
    "gap": (b"a\n\nb\n", "line 2 is empty"),
    "not UTF-8": (b"caf\xe9\n", "UTF-8"),
    "broken JSON": (b"[1,", "not valid JSON"),
    "numbers": (b"[1, 2]", "class 0 is 1, not a name"),
    "hole": (b'{"0": "a", "2": "c"}', "no class 1 among 2"),
    "empty list": (b"[]", "no class names"),
}


@pytest.mark.parametrize(("data", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_missing_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory in use")
@pytest.mark.parametrize("size", [40, 256], ids=["many-in-a-page", "several-pages"])
def test_reading_an_array_file_does_not_keep_it_in_memory(tmp_path, size):
    path = tmp_path / "x.npy"
    count = (48 << 20) // (size * size)
    values = np.random.default_rng(0).integers(0, 255, (count, size, size), np.uint8)
    np.save(path, values)

    def mapped() -> int:
        text = Path("/proc/self/smaps").read_text()
        part = text[text.index(str(path)) :]
        return int(part[part.index("Rss:") + 4 :].split()[0]) << 10

    source = open_source(path)
    for index, sample in enumerate(source.samples):
        if index % 997 == 0:
            np.testing.assert_array_equal(sample.read()[..., 0], values[index])
        else:
            sample.read()
    assert mapped() < 8 << 20


class _Evil:
    """What is unpickled makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["npy", "npz", "a bare pickle", "npz beside images"])
def test_objects_in_arrays_are_refused_and_not_run(tmp_path, kind):
    import pickle

    mark = tmp_path / "run"
    objects = np.array([_Evil(mark)] * 3, dtype=object)
    path = tmp_path / ("x.npy" if kind in ("npy", "a bare pickle") else "x.npz")
    if kind == "npy":
        np.save(path, objects, allow_pickle=True)
    elif kind == "npz":
        np.savez(path, x=objects)
    elif kind == "a bare pickle":
        path.write_bytes(pickle.dumps(_Evil(mark)))
    else:
        np.savez(path, x=np.zeros((3, 4, 4), np.uint8), y=objects)
    with pytest.raises(ImageError, match="Python objects, which could run code") as error:
        open_source(path)
    assert "load it" not in str(error.value)
    assert not mark.exists()


def test_what_is_no_array_in_an_archive_of_arrays(tmp_path):
    import io
    import zipfile

    array = io.BytesIO()
    np.save(array, np.zeros((3, 4, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.txt", b"text")
        archive.writestr("x.npy", array.getvalue())
        archive.writestr("y.npy", b"no array")
    source = open_source(tmp_path / "x.npz")
    assert len(source.samples) == 3
    assert source.samples[0].label is None
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.txt", b"text")
    with pytest.raises(NoImagesError):
        open_source(tmp_path / "x.npz")


def test_a_broken_header_is_quiet_and_its_file_is_closed(tmp_path):
    for name in ("x.npy", "x.npz"):
        header = b"{'descr': '\\q', 'fortran_order': False, 'shape': (96L,), }\n"
        (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError):
                open_source(tmp_path / name)
            gc.collect()
