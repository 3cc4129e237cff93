"""Images behind URLs: the same as from this disk, read in parts, in spite of failures, without their secrets."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.images import remote, store, streamed
from onnxviz.images.remote import find_remote
from onnxviz.images.source import Source, open_source
from onnxviz.images.urls import is_url, masked
from tests.images.bucket import Bucket
from tests.images.serving import Served, serving
from tests.images.test_source import PETS, png, write, write_tar, write_zip

pytest.importorskip("aiohttp")

SPLIT = 2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses, and no proxy between here and here."""
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.01, 0.01))
    monkeypatch.setattr(store, "FIRST_PAUSES", (0.0, 0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pets as files, as archives, and as shards."""
    folder = tmp_path_factory.mktemp("stored")
    shards = [dict(list(PETS.items())[start::SPLIT]) for start in range(SPLIT)]
    archives = {
        "pets.zip": write_zip(folder / "a.zip", PETS),
        "pets.tar": write_tar(folder / "a.tar", PETS, "w"),
        "pets.tgz": write_tar(folder / "a.tgz", PETS, "w:gz"),
        **{f"tars/p-{n:02}.tar": write_tar(folder / f"{n}.tar", s, "w") for n, s in enumerate(shards)},
        **{f"zips/p-{n:02}.zip": write_zip(folder / f"{n}.zip", s) for n, s in enumerate(shards)},
        **{f"tgzs/p-{n:02}.tar.gz": write_tar(folder / f"{n}.tgz", s, "w:gz") for n, s in enumerate(shards)},
    }
    return {
        **{f"pets/{name}": data for name, data in PETS.items()},
        **{name: path.read_bytes() for name, path in archives.items()},
        "one.png": png(9),
        "picture": png(8),
    }


@pytest.fixture
def served(stored: dict[str, bytes]) -> Iterator[Served]:
    with serving(stored) as server:
        yield server


@pytest.fixture
def memory(stored: dict[str, bytes]) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, data in stored.items():
        system.pipe(f"/bucket/{name}", data)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def bucket(stored: dict[str, bytes]) -> Iterator[str]:
    Bucket.objects.update({f"bucket/{name}": data for name, data in stored.items()})
    # The empty objects that some tools write for folders.
    Bucket.objects.update({"bucket/pets/": b"", "bucket/pets/cat/": b"", "bucket/tars/": b""})
    yield "fake://bucket"
    for kept in (Bucket.objects, Bucket.failures, Bucket.asked):
        kept.clear()


@pytest.fixture
def local(tmp_path: Path, stored: dict[str, bytes]) -> str:
    write(tmp_path / "bucket", stored)
    return f"file://{tmp_path}/bucket"


def facts(source: Source) -> list[tuple[str, str | None, list[int]]]:
    return [(sample.name, sample.label, sample.read().ravel().tolist()) for sample in source.samples]


PLACES = (
    "pets/", "pets.zip", "pets.tar", "tars/p-{00..01}.tar", "tars/p-0[01].tar", "tars/*", "tars/", "zips/p-{00,01}.zip",
    "zips/", "pets/**", "pets/*",
)  # fmt: skip


@pytest.mark.parametrize("base", ["served", "memory", "bucket", "local"])
@pytest.mark.parametrize("place", PLACES)
def test_the_same_as_from_a_folder_here(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, place: str
) -> None:
    expected = facts(open_source(write(tmp_path / "pets", PETS)))
    found = request.getfixturevalue(base)
    source = open_source(f"{found.url if isinstance(found, Served) else found}/{place}")
    assert facts(source) == expected
    assert source.classes == {"cat": 2, "dog": 1}
    assert source.readers == (None if base == "local" else remote.READERS)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda s: s.read().ravel().tolist(), source.samples)) == [x[2] for x in expected]


@pytest.mark.parametrize("base", ["served", "memory", "bucket", "local"])
@pytest.mark.parametrize("place", ["pets.tgz", "tgzs/", "tgzs/p-{00..01}.tar.gz"])
def test_compressed_tars_keep_their_own_order(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, place: str
) -> None:
    found = request.getfixturevalue(base)
    source = open_source(f"{found.url if isinstance(found, Served) else found}/{place}")
    expected = facts(open_source(write(tmp_path / "pets", PETS)))
    assert sorted(facts(source)) == sorted(expected)
    assert {sample.name for sample in source.samples[:1]} == {"cat/2.png"}


CHAINS = {
    "zip://cat/*.png::{}/pets.zip": ["cat/2.png", "cat/10.png"],
    "zip://**/*.PNG::{}/pets.zip": ["dog/big/1.PNG"],
    "zip://dog::{}/pets.zip": ["dog/big/1.PNG"],
    "zip://::{}/pets.zip": ["cat/2.png", "cat/10.png", "dog/big/1.PNG", "stray.png"],
    "tar://*.png::{}/pets.tar": ["stray.png"],
    "tar://cat::{}/tars/p-{{00..01}}.tar": ["cat/2.png", "cat/10.png"],
    "tar://cat/[12].png::{}/tars/": ["cat/2.png"],
}


@pytest.mark.parametrize("base", ["served", "memory", "bucket", "local"])
@pytest.mark.parametrize("chain", CHAINS)
def test_members_of_an_archive(request: pytest.FixtureRequest, base: str, chain: str) -> None:
    found = request.getfixturevalue(base)
    source = open_source(chain.format(found.url if isinstance(found, Served) else found))
    assert [sample.name for sample in source.samples] == CHAINS[chain]
    for sample in source.samples:
        sample.read()


def test_members_of_an_archive_at_a_plain_path(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", PETS)
    assert len(open_source(f"zip://cat/*::{path}").samples) == 2
    with pytest.raises(NoImagesError):
        open_source(f"zip://cow/*::{path}")


def test_chains_that_fsspec_resolves(memory: str) -> None:
    assert len(open_source(f"simplecache::{memory}/pets.zip").samples) == 4
    assert len(open_source(f"dir://cat::{memory}/pets").samples) == 2


@pytest.mark.parametrize("name", ["one.png", "picture"])
def test_one_image(served: Served, tmp_path: Path, name: str) -> None:
    source = open_source(f"{served.url}/{name}")
    assert [(sample.name, sample.label) for sample in source.samples] == [(name, None)]
    expected = write(tmp_path, {"a.png": served.files[name]}) / "a.png"
    assert np.array_equal(source.samples[0].read(), open_source(expected).samples[0].read())
    assert source.fingerprint().content == open_source(expected).fingerprint().content
    assert source.fingerprint().times is not None


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("base", ["served", "memory", "bucket"])
def test_arrays(request: pytest.FixtureRequest, tmp_path: Path, base: str, kind: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 30, 20, 3), dtype=np.uint8)
    path = tmp_path / f"x.{kind}"
    np.save(path, x) if kind == "npy" else np.savez(path, x=x, y=np.arange(40) % 3)
    if base == "served":
        served = request.getfixturevalue("served")
        served.files[f"x.{kind}"] = path.read_bytes()
        url = f"{served.url}/x.{kind}"
    elif base == "memory":
        url = f"{request.getfixturevalue('memory')}/x.{kind}"
        fsspec.filesystem("memory").pipe(f"/bucket/x.{kind}", path.read_bytes())
    else:
        url = f"{request.getfixturevalue('bucket')}/x.{kind}"
        Bucket.objects[f"bucket/x.{kind}"] = path.read_bytes()
    source, expected = open_source(url), open_source(path)
    assert facts(source) == facts(expected)
    assert source.fingerprint().content == expected.fingerprint().content
    assert source.description == f"{url} (40 images)"


BAD_ARRAYS = {
    "junk": (b"junk", "not a NumPy array file"),
    "short": (b"", "fewer than the 6 rows"),
    "objects": (b"", "holds Python objects"),
    "columns first": (b"", "Fortran order"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_array_files(served: Served, tmp_path: Path, kind: str) -> None:
    data, message = BAD_ARRAYS[kind]
    x = np.zeros((6, 4, 5), np.uint8)
    if kind == "objects":
        np.save(tmp_path / "x.npy", np.array([{}] * 3, object), allow_pickle=True)
    elif kind != "junk":
        np.save(tmp_path / "x.npy", np.asfortranarray(x) if kind == "columns first" else x)
    if not data:
        data = (tmp_path / "x.npy").read_bytes()
    served.files["x.npy"] = data[:-20] if kind == "short" else data
    with pytest.raises(ImageError, match=message):
        open_source(f"{served.url}/x.npy")


@pytest.mark.parametrize("place", ["pets/", "pets.zip", "pets.tar", "pets.tgz", "tars/", "zips/"])
def test_fingerprints_know_the_same_data_here_and_there(
    memory: str, local: str, tmp_path: Path, place: str
) -> None:
    one, other = open_source(f"{memory}/{place}").fingerprint(), open_source(f"{local}/{place}").fingerprint()
    assert one.content == other.content
    assert one.times is not None and one.times != other.times
    assert open_source(f"{memory}/{place}").fingerprint() == one


def test_another_version_behind_the_same_url_is_noticed(served: Served, memory: str) -> None:
    urls = [f"{served.url}/pets.tar", f"{memory}/pets.tar", f"{memory}/pets"]
    before = [open_source(url).fingerprint() for url in urls]
    data = served.files["pets.tar"]
    served.files["pets.tar"] = data.replace(png(2), png(3))
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/pets.tar", served.files["pets.tar"])
    system.pipe("/bucket/pets/cat/2.png", png(3))
    after = [open_source(url).fingerprint() for url in urls]
    for old, new in zip(before, after, strict=True):
        assert new.content == old.content and new.times != old.times


def noise(seed: int, size: int = 100) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Archives of about 24 MB, of 40 images of 30 kB with as many files of 600 kB between them."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    files = {}
    for number in range(40):
        files[f"{number:03}.png"] = noise(number)
        files[f"{number:03}.bin"] = rng.bytes(570_000)
    return {
        "a.zip": write_zip(folder / "a.zip", files).read_bytes(),
        "a.tar": write_tar(folder / "a.tar", files, "w").read_bytes(),
    }


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_member_of_a_large_archive_is_one_request_of_its_own_size(
    large: dict[str, bytes], name: str
) -> None:
    with serving(large) as served:
        source = open_source(f"{served.url}/{name}")
        indexed = served.sent[name]
        served.forget()
        member = source.samples[27]
        assert member.name == "027.png"
        picture = member.read()
        assert len(served.requests) == 1
        assert served.sent[name] < len(noise(27)) + 1000
    assert np.array_equal(picture, np.random.default_rng(27).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    size = len(large[name])
    if name == "a.zip":
        assert indexed < 200_000  # the directory, at the end
    else:
        assert indexed < 1.1 * size  # one pass, no more


def test_the_index_of_a_tar_leaps_over_large_members(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {f"{n}.png" if n % 2 else f"{n}.bin": rng.bytes(3_000_000) for n in range(10)}
    with serving({"a.tar": write_tar(tmp_path / "a.tar", files, "w").read_bytes()}) as served:
        assert len(open_source(f"{served.url}/a.tar").samples) == 5
        assert served.sent["a.tar"] < 3_000_000


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_no_request_is_for_much(large: dict[str, bytes], name: str) -> None:
    """Whatever is asked for at once is in memory at once."""
    with serving(large) as served:
        for sample in open_source(f"{served.url}/{name}").samples:
            sample.read()
        spans = [re.fullmatch(r"bytes=(\d+)-(\d+)", part) for _, _, part in served.requests if part]
        assert all(command == "HEAD" or part for command, _, part in served.requests)
    assert max(int(span[2]) - int(span[1]) for span in spans if span) <= remote.RemoteFile.ahead


FAILURES = {
    "503": [503],
    "429 and 500": [429, 500],
    "half a body": ["cut"],
    "no answer": ["drop", "drop"],
    "all sorts": [503, "cut", "drop"],
}


@pytest.mark.parametrize("failures", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("place", ["pets/", "pets.zip", "pets.tar", "pets.tgz"])
def test_failures_in_passing_are_tried_again(served: Served, place: str, failures: list[int | str]) -> None:
    source = open_source(f"{served.url}/{place}")
    expected = facts(source)
    failing = "pets/cat/2.png" if place == "pets/" else place
    for _ in range(2):
        served.failures[failing] = list(failures)
        assert facts(source) == expected
        assert served.failures[failing] == ([] if place != "pets.tgz" else served.failures[failing])


@pytest.mark.parametrize("failures", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("place", ["pets/", "pets.zip", "pets.tar", "pets.tgz"])
def test_opening_goes_on_after_failures(served: Served, place: str, failures: list[int | str]) -> None:
    served.failures[place] = list(failures)
    assert len(open_source(f"{served.url}/{place}").samples) == 4
    assert served.failures[place] == []


def test_what_fails_for_long_is_one_bad_image(served: Served) -> None:
    source = open_source(f"{served.url}/pets/")
    served.failures["pets/cat/2.png"] = [503] * 100
    with pytest.raises(
        ImageError, match=r"^cat/2\.png: cannot be read \(503 Service Unavailable, tried 4 times\)$"
    ):
        source.samples[0].read()
    assert len(served.failures["pets/cat/2.png"]) == 96
    assert source.samples[1].read()[0, 0, 0] == 10


def test_what_is_gone_is_not_asked_for_again(served: Served) -> None:
    source = open_source(f"{served.url}/pets/")
    del served.files["pets/cat/2.png"]
    served.forget()
    with pytest.raises(ImageError, match=r"^cat/2\.png: cannot be read \(no such file or folder\)$"):
        source.samples[0].read()
    assert len(served.requests) == 1


def test_a_body_that_always_ends_early_is_no_picture(served: Served) -> None:
    source = open_source(f"{served.url}/pets.tar")
    served.failures["pets.tar"] = ["cut"] * 100
    with pytest.raises(ImageError, match=r"^cat/2\.png: cannot be read \(.*tried 4 times\)"):
        source.samples[0].read()


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "access denied"), (401, "access denied"), (410, "410 Gone"), (404, "no such file")],
)
@pytest.mark.parametrize("place", ["pets/", "pets.zip", "tars/p-{00..01}.tar"])
def test_refusals_are_errors_of_the_call(served: Served, place: str, status: int, message: str) -> None:
    failing = place.replace("{00..01}", "01")
    served.failures[failing] = [status] * 9
    served.refused.add(failing)
    with pytest.raises(UsageError, match=message) as raised:
        open_source(f"{served.url}/{place}")
    assert place.partition("{")[0] in str(raised.value)
    assert len(served.requests) <= 8


def test_nobody_at_the_address() -> None:
    with serving({}) as served:
        url = served.url
    with pytest.raises(ImageError, match=r"a\.zip: cannot be reached \(Cannot connect.*, tried 4 times\)"):
        open_source(f"{url}/a.zip")


MISSING = {
    "memory://nowhere": (UsageError, "no such file or folder"),
    "memory://bucket/nothing.zip": (UsageError, "no such file or folder"),
    "memory://bucket/*.gif": (UsageError, "no file matches"),
    "memory://bucket/tars/p-{00..07}.tar": (UsageError, r"p-0[2-7]\.tar: no such file"),
    "memory://bucket/pets/dog/notes.txt": (UsageError, r"\.txt holds no images"),
    "memory://bucket/pets/dog/*.txt": (UsageError, r"\.txt holds no images"),
    "quux://bucket/photos": (UsageError, "Protocol not known: quux"),
    "memory://bucket/{0..999999}.png": (UsageError, "more than 100,000 names"),
}


@pytest.mark.parametrize("url", MISSING)
def test_mistakes(memory: str, url: str) -> None:
    kind, message = MISSING[url]
    with pytest.raises(kind, match=message) as raised:
        open_source(url)
    assert url.partition("{")[0] in str(raised.value)


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://bucket/photos", "s3fs"), ("gs://bucket/photos", "gcsfs"), ("abfs://c/photos", "adlfs")],
)
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for known in ("s3", "gs", "abfs"):
        sys.modules["fsspec.registry"]._registry.pop(known, None)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"{re.escape(url)}: .*pip install {package}$"):
        open_source(url)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"need fsspec; pip install 'onnxviz\[remote\]'"):
        open_source("memory://bucket/photos")


def test_local_paths_do_not_load_fsspec(tmp_path: Path) -> None:
    write(tmp_path / "a", PETS)
    write_zip(tmp_path / "a.zip", PETS)
    code = (
        "import sys; from onnxviz.images.source import open_source; "
        f"open_source({str(tmp_path / 'a')!r}).samples[0].read(); open_source({str(tmp_path / 'a.zip')!r}); "
        f"open_source('file://{tmp_path}/a/*'); print('fsspec' in sys.modules, 'aiohttp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("said", [False, True], ids=["silent", "said"])
@pytest.mark.parametrize("failures", [[], [503, "cut"]], ids=["no failures", "failures"])
@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_server_that_gives_no_parts_is_read_from_start_to_end(
    large: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    failures: list[int | str],
    said: bool,
) -> None:
    monkeypatch.setattr(streamed, "KEPT", 6 << 20)
    (tmp_path / name).write_bytes(large[name])
    expected = [sample.read().tobytes() for sample in open_source(tmp_path / name).samples]
    with serving(large) as served:
        served.ranges, served.says_no_ranges = False, said
        source = open_source(f"{served.url}/{name}")
        assert [sample.name for sample in source.samples] == [f"{n:03}.png" for n in range(40)]
        served.forget()
        served.failures[name] = list(failures)
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, 40, 8):  # neighbours at once, as in a scan
                read = pool.map(lambda sample: sample.read().tobytes(), source.samples[start : start + 8])
                assert list(read) == expected[start : start + 8]
        assert served.failures[name] == []
        assert served.sent[name] <= (1 + len(failures) / 2) * len(large[name])


def test_single_images_need_no_parts(served: Served, tmp_path: Path) -> None:
    served.ranges = served.sizes = False
    assert facts(open_source(f"{served.url}/pets/")) == facts(open_source(write(tmp_path / "p", PETS)))
    assert open_source(f"{served.url}/one.png").samples[0].read()[0, 0, 0] == 9


def test_servers_that_tell_no_size(served: Served) -> None:
    served.sizes = False
    with pytest.raises(ImageError, match=r"pets\.zip: .*does not tell its size"):
        open_source(f"{served.url}/pets.zip")


SECRETS = {
    "http://me:pw@host/a.zip": "http://***@host/a.zip",
    "https://me:p@w@host:80/a.zip": "https://***@host:80/a.zip",
    "s3://bucket/photos": "s3://bucket/photos",
    "https://host/a.zip?X-Amz-Signature=abc&x=1": "https://host/a.zip?***",
    "zip://cat::https://me@host/a.zip?key=1": "zip://cat::https://***@host/a.zip?***",
    "could not get https://host/a?key=1: no": "could not get https://host/a?***: no",
    "ClientError(url=URL('http://h/a?k=v'), 404)": "ClientError(url=URL('http://h/a?***'), 404)",
    "(https://h/a?k=v)": "(https://h/a?***)",
    "https://h/a?t=1::x": "https://h/a?***::x",
    "is it a@b.c?d": "is it a@b.c?d",
}


@pytest.mark.parametrize("text", SECRETS)
def test_masked(text: str) -> None:
    assert masked(text) == SECRETS[text]


@pytest.mark.parametrize(
    "place",
    [
        "pets.zip?key=s3cr3t",
        "one.png?key=s3cr3t",
        "pets/cat/{2,10}.png?key=s3cr3t",
        "tars/p-{00..01}.tar?s3cr3t",
    ],
)
def test_secrets_are_sent_and_never_shown(served: Served, place: str) -> None:
    url = f"{served.url}/{place}".replace("http://", "http://s3cr3t-user:s3cr3t-word@")
    source = open_source(url)
    shown = [source.description, repr(source), *(f"{s.name} {s.label}" for s in source.samples)]
    for sample in source.samples:
        sample.read()
    assert all("s3cr3t" in path for _, path, _ in served.requests)
    sent = base64.b64encode(b"s3cr3t-user:s3cr3t-word").decode()
    assert served.authorizations == {f"Basic {sent}"}
    for name in served.files:
        served.failures[name] = [403] * 9
        served.refused.add(name)
    with pytest.raises(ImageError) as unreadable:
        source.samples[0].read()
    with pytest.raises(UsageError) as refused:
        open_source(url)
    shown += [str(unreadable.value), str(refused.value)]
    assert not [text for text in shown if "s3cr3t" in text]


def test_an_object_store_is_asked_for_many_at_once_and_once_for_each(bucket: str) -> None:
    for number in range(64):
        Bucket.objects[f"bucket/many/{number:02}.png"] = png(number)
    source = open_source(f"{bucket}/many")
    Bucket.asked.clear()
    Bucket.most = 0
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda s: int(s.read()[0, 0, 0]), source.samples)) == list(range(64))
    assert len(Bucket.asked) == 64
    assert Bucket.most > 4


def test_failures_of_an_object_store(bucket: str) -> None:
    source = open_source(f"{bucket}/pets")
    Bucket.failures["bucket/pets/cat/2.png"] = [OSError("SlowDown"), HttpError(503), TimeoutError()]
    assert source.samples[0].read()[0, 0, 0] == 2
    Bucket.failures["bucket/pets/cat/2.png"] = [PermissionError("Access Denied"), OSError("never")]
    with pytest.raises(ImageError, match=r"^cat/2\.png: cannot be read \(access denied"):
        source.samples[0].read()
    assert len(Bucket.failures["bucket/pets/cat/2.png"]) == 1
    Bucket.objects["bucket/pets/cat/10.png"] = png(10)[:-9]
    with pytest.raises(
        ImageError, match=r"^cat/10\.png: cannot be read \(63 of 72 bytes came, tried 4 times\)"
    ):
        source.samples[1].read()


def test_who_hurries_does_not_wait_for_further_tries(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSES", (60.0, 60.0))
    source = open_source(f"{served.url}/pets/")
    assert source.hurry is not None
    served.failures["pets/cat/2.png"] = [503]
    served.failures["pets/cat/10.png"] = [503]
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        reads = [pool.submit(sample.read) for sample in source.samples[:2]]
        while any(served.failures.values()):
            time.sleep(0.01)
        time.sleep(0.1)
        assert not any(read.done() for read in reads)
        source.hurry()
        for read in reads:
            with pytest.raises(ImageError, match=r"503 Service Unavailable, given up"):
                read.result(10)
    assert time.perf_counter() - began < 20
    assert source.samples[0].read()[0, 0, 0] == 2


class ClientError(Exception):
    """As botocore raises it."""

    response = {"ResponseMetadata": {"HTTPStatusCode": 404}}  # noqa: RUF012


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int) -> None:
        super().__init__("words")
        self.code = code


RAISED = {
    "bucket": (ClientError("The specified bucket does not exist"), 1, UsageError, "no such bucket"),
    "busy": (HttpError(429), 3, ImageError, "429 Too Many Requests, tried 3 times"),
    "bad": (HttpError(400), 1, UsageError, "400 Bad Request"),
    "odd status": (HttpError(599), 3, ImageError, "status 599, tried 3 times"),
    "denied": (PermissionError("Forbidden"), 1, UsageError, "access denied"),
    "lost": (ConnectionResetError(104, "reset by peer"), 3, ImageError, "reset by peer, tried 3 times"),
    "late": (TimeoutError(), 3, ImageError, "TimeoutError, tried 3 times"),
    "mistake": (TypeError("of ours"), 1, UsageError, "of ours"),
}


@pytest.mark.parametrize("kind", RAISED)
def test_what_other_file_systems_raise(memory: str, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    error, tries, expected, message = RAISED[kind]
    calls: list[str] = []
    waits: list[float] = []

    def pause(self: object, seconds: float, begun: int) -> bool:
        waits.append(seconds)
        return False

    def info(self: object, path: str, **_: object) -> None:
        calls.append(path)
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", info)
    monkeypatch.setattr(store, "FIRST_PAUSES", (2.0, 8.0))
    monkeypatch.setattr(store.Store, "_pause", pause)
    with pytest.raises(expected, match=message) as raised:
        open_source(f"{memory}/pets.zip")
    monkeypatch.undo()
    assert type(raised.value) is expected
    assert len(calls) == tries
    assert len(waits) == tries - 1
    assert all(0.7 * wanted < wait < 1.3 * wanted for wait, wanted in zip(waits, (2.0, 8.0), strict=False))


def test_a_folder_behind_a_query(served: Served) -> None:
    with pytest.raises(UsageError, match=r"/pets/\?\*\*\*: a folder behind a query cannot be listed"):
        open_source(f"{served.url}/pets/?token=1")


def test_names_are_decoded_and_links_elsewhere_ignored(served: Served) -> None:
    served.files["odd/a b/ü#1.png"] = png(5)
    served.files["odd/100%.png"] = png(6)
    source = open_source(f"{served.url}/odd/")
    assert [(s.name, s.label, int(s.read()[0, 0, 0])) for s in source.samples] == [
        ("100%.png", None, 6),
        ("a b/ü#1.png", "a b", 5),
    ]


def test_urls_that_differ_in_their_queries_are_different_images(served: Served) -> None:
    source = open_source(f"{served.url}/one.png?id={{1..3}}")
    assert len({sample.name for sample in source.samples}) == 3


def test_a_folder_that_cannot_be_listed_is_not_passed_over(served: Served) -> None:
    served.failures["pets/dog/"] = [500] * 50
    with pytest.raises(ImageError, match="500 Internal Server Error"):
        open_source(f"{served.url}/pets/")


def test_readers_share_no_connection_of_a_system_that_has_but_one(memory: str) -> None:
    """MemoryFileSystem hands the same open file to all."""
    folder = find_remote(f"{memory}/pets")
    assert isinstance(folder, remote.RemoteFolder)
    lock = folder.store._lock
    assert isinstance(lock, type(threading.Lock()))


@pytest.mark.parametrize(
    ("place", "expected"),
    [("s3://b/x", True), ("zip://*::a.zip", True), ("simplecache::https://h/x", True), ("C:/photos", False),
     ("photos", False), ("C://photos", False), ("a/b://c", False), (Path("photos"), False), ("C:\\photos", False)],
)  # fmt: skip
def test_is_url(place: object, expected: bool) -> None:
    assert is_url(place) is expected
