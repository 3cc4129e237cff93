"""Data sets that are sent to other processes with their listing: the same there, without listing or indexing anew."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.source import Source, open_source
from tests.images.bucket import Bucket
from tests.images.serving import serving
from tests.images.test_source import PETS, png, write, write_tar, write_zip

pytest.importorskip("aiohttp")


def facts(source: Source) -> list[tuple[str, str | None, bytes]]:
    return [(sample.name, sample.label, sample.read().tobytes()) for sample in source.samples]


def everything(source: Source) -> tuple[object, ...]:
    return source.description, facts(source), source.fingerprint(), source.classes, source.readers


@pytest.fixture(scope="module")
def other() -> Iterator[ProcessPoolExecutor]:
    """A process that has nothing of this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    write(folder / "pets", {**PETS, "broken.png": b"", "dog/gone.png": b""})
    (folder / "pets" / "dog" / "gone.png").unlink()
    (folder / "pets" / "dog" / "gone.png").symlink_to("nowhere")
    write_zip(folder / "a.zip", PETS)
    write_tar(folder / "a.tar", PETS, "w")
    write_tar(folder / "a.tgz", PETS, "w:gz")
    for number in range(2):
        members = dict(list(PETS.items())[number::2])
        write_tar(folder / f"s-{number}.tar", members, "w")
        write_tar(folder / f"z-{number}.tgz", members, "w:gz")
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 7, 3), dtype=np.uint8)
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", x=x, y=np.arange(9) % 2)
    (folder / "one.png").write_bytes(png(7))
    return folder


PLACES = (
    "a.zip",
    "a.tar",
    "a.tgz",
    "s-{0..1}.tar",
    "z-{0..1}.tgz",
    "x.npy",
    "x.npz",
    "one.png",
    "pets/cat/{2,10}.png",
)


@pytest.mark.parametrize("place", [*PLACES, "s-*.tar", "pets/cat/*"])
def test_the_same_in_another_process(places: Path, other: ProcessPoolExecutor, place: str) -> None:
    source = open_source(places / place)
    sent = pickle.dumps(source)
    assert other.submit(everything, pickle.loads(sent)).result(60) == everything(source)


def test_unreadable_files_stay_unreadable(places: Path) -> None:
    source = open_source(places / "pets")
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint()
    for one, same in zip(source.samples, again.samples, strict=True):
        told = []
        for sample in (one, same):
            try:
                told.append(sample.read().tobytes())
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}".encode())
        assert told[0] == told[1]


def test_prepared_for_a_network(places: Path) -> None:
    recipe = resolve_preprocess(channels=3, height=8, width=8)
    source = open_source(places / "a.zip", {"cat": "tabby"}, recipe)
    assert facts(pickle.loads(pickle.dumps(source))) == facts(source)
    assert source.classes == {"dog": 1, "tabby": 2}


@pytest.mark.parametrize("ranges", [True, False], ids=["parts", "whole files"])
@pytest.mark.parametrize("place", [*PLACES, "pets/"])
def test_the_same_from_afar(places: Path, other: ProcessPoolExecutor, place: str, ranges: bool) -> None:
    files = {p.relative_to(places).as_posix(): p.read_bytes() for p in places.rglob("*.*") if p.is_file()}
    files.pop("pets/broken.png")
    with serving(files) as served:
        served.ranges = ranges
        source = open_source(f"{served.url}/{place}")
        expected = everything(source)
        sent = pickle.dumps(source)
        served.forget()
        assert other.submit(facts, pickle.loads(sent)).result(60) == expected[1]
        asked = [path for command, path, part in served.requests if command == "HEAD" or path.endswith("/")]
        assert asked == []
        if ranges and place in ("a.zip", "a.tar", "s-{0..1}.tar"):
            assert len(served.requests) == len(source.samples)
        assert other.submit(everything, pickle.loads(sent)).result(60) == expected


def test_object_stores(places: Path) -> None:
    Bucket.objects.update({f"b/pets/{name}": data for name, data in PETS.items()})
    Bucket.objects["b/a.tar"] = (places / "a.tar").read_bytes()
    try:
        for place in ("pets", "a.tar"):
            source = open_source(f"fake://b/{place}")
            Bucket.asked.clear()
            again = pickle.loads(pickle.dumps(source))
            assert Bucket.asked == []
            assert everything(again) == everything(source)
            assert again.hurry is not None
            again.hurry()
    finally:
        Bucket.objects.clear()
        Bucket.asked.clear()


def test_a_sent_listing_is_small(tmp_path: Path) -> None:
    names = {f"class{n % 10}/image{n:05}.png": b"" for n in range(2000)}
    source = open_source(write(tmp_path / "many", names))
    assert len(pickle.dumps(source)) < 50 * len(names)
    source = open_source(write_tar(tmp_path / "a.tar", names, "w"))
    assert len(pickle.dumps(source)) < 100 * len(names)
