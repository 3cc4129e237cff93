"""Scans that go on where they stopped, are refused where they would not fit, and are put together from parts."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import onnxviz
from onnxviz.errors import AtlasError, UsageError
from onnxviz.forward.part import Part
from onnxviz.forward.responses import Responses, capacity, taken
from onnxviz.forward.topk import ChannelStats, TopK
from onnxviz.images.fingerprint import Fingerprint
from onnxviz.progress import Progress
from onnxviz.scans.job import Job
from onnxviz.scans.runs import Run, merge_parts, scan_file
from onnxviz.scans.saved import SavedScan
from tests.model.nets import build, conv_weights, node, small, write
from tests.scans import synthetic

OPTIONS: dict[str, Any] = {"layers": ["conv1", "relu2", "fc1"], "top": 4, "provider": "cpu", "batch_size": 4}


class Told(Progress):
    """Hears what is said, and breaks the scan off after so many images."""

    def __init__(self, most: int | None = None) -> None:
        self.notes: list[str] = []
        self.names: list[str] = []
        self.done, self.before, self._most = 0, 0, most

    def note(self, text: str) -> None:
        self.notes.append(text)

    def skipped(self, name: str, reason: str) -> None:
        self.names.append(name)

    def resumed(self, count: int) -> None:
        self.before += count

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self._most is not None and self.done >= self._most:
            raise KeyboardInterrupt


def _photos(folder: Path, count: int = 40, *, broken: tuple[int, ...] = (7,)) -> Path:
    rng = np.random.default_rng(5)
    folder.mkdir()
    for index in range(count):
        path = folder / f"{index:02}.png"
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """small.onnx, forty photos of which one is broken, and their scan, finished and half done."""
    base = tmp_path_factory.mktemp("runs")
    write(base / "small.onnx", small())
    _photos(base / "photos")
    _scan(base, base / "whole.atlas")
    with pytest.raises(KeyboardInterrupt):
        _scan(base, base / "half.atlas", progress=Told(most=20))
    return base


def _scan(base: Path, out: Path, **changes: Any) -> SavedScan:
    options = {"model": base / "small.onnx", "images": base / "photos"} | OPTIONS | changes
    return onnxviz.scan(options.pop("model"), out, **options)


@pytest.fixture
def half(base, tmp_path):
    shutil.copy(base / "half.atlas", tmp_path / "x.atlas")
    return tmp_path / "x.atlas"


@pytest.fixture
def whole(base, tmp_path):
    shutil.copy(base / "whole.atlas", tmp_path / "x.atlas")
    return tmp_path / "x.atlas"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Going on


def test_it_goes_on_to_the_same_bytes(base, half, tmp_path):
    before = SavedScan.read(half)
    assert not before.finished
    told = Told()
    _scan(base, half, progress=told)
    done = sum(stop - start for start, stop in before.part.done)
    assert (told.before, told.done) == (done, 40 - done)
    assert f"Goes on from {half}: {done} of 40 images are done." in told.notes
    assert told.names == ["07.png"]
    assert half.read_bytes() == (base / "whole.atlas").read_bytes()
    assert _names(tmp_path) == ["x.atlas"]


def test_a_finished_one_is_not_scanned_again(base, whole, monkeypatch):
    def never(*_: object, **__: object) -> None:
        pytest.fail("it was scanned again")

    monkeypatch.setattr("onnxviz.setup.Scanner", never)
    told = Told()
    before = whole.stat().st_mtime_ns
    found = _scan(base, whole, progress=told)
    assert found.whole
    assert f"Scanned before: 40 images, from {whole}." in told.notes
    assert whole.stat().st_mtime_ns == before


def test_restart_starts_over(base, half, tmp_path):
    told = Told()
    _scan(base, half, progress=told, restart=True)
    assert (told.before, told.done) == (0, 40)
    assert half.read_bytes() == (base / "whole.atlas").read_bytes()
    _scan(base, half, restart=True, top=2)
    assert SavedScan.read(half).job.top == 2
    assert _names(tmp_path) == ["x.atlas"]


def test_broken_off_again_and_again(base, tmp_path):
    """Every few images, and the end is the same."""
    for _ in range(20):
        try:
            _scan(base, tmp_path / "run", progress=Told(most=5))
        except KeyboardInterrupt:
            continue
        break
    assert (tmp_path / "run" / "scan.atlas").read_bytes() == (base / "whole.atlas").read_bytes()
    assert _names(tmp_path / "run") == ["scan.atlas"]


@pytest.mark.parametrize("batch", [1, 3, 7, 40])
def test_a_scan_goes_on_with_another_batch_size(base, half, batch):
    """Products of matrices of another height may round the last bit differently: that is the exception."""
    _scan(base, half, batch_size=batch)
    one, other = SavedScan.read(half).part, SavedScan.read(base / "whole.atlas").part
    for name, array in one.arrays().items():
        if name != "stats/sums":
            np.testing.assert_allclose(array, other.arrays()[name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(one.stats.total, other.stats.total, rtol=1e-5)
    np.testing.assert_array_equal(one.topk.image, other.topk.image)
    assert (one.done, one.skipped) == (other.done, other.skipped)


@pytest.mark.parametrize("batch", [1, 3, 5, 40])
def test_the_batch_size_does_not_show_where_nothing_rounds(tmp_path, batch):
    """Whole numbers, of which sums are exact: all bytes are the same."""
    weights = {
        "w": np.random.default_rng(0).integers(-2, 3, (4, 3, 3, 3)).astype(np.float32),
        "v": np.random.default_rng(1).integers(-2, 3, (6, 4)).astype(np.float32),
    }
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("ReduceMax", "c", "m", "m", axes=[2, 3], keepdims=0),
        node("Gemm", "m v", "g", "fc1", transB=1),
    ]
    write(tmp_path / "whole.onnx", build(nodes, weights))
    np.save(tmp_path / "x.npy", np.random.default_rng(2).integers(0, 3, (40, 12, 12, 3)).astype(np.uint8))
    for size in (batch, 8):
        onnxviz.scan(
            tmp_path / "whole.onnx",
            tmp_path / f"{size}.atlas",
            layers=["conv1", "fc1"],
            images=tmp_path / "x.npy",
            batch_size=size,
            preprocess="raw",
            provider="cpu",
        )
    assert (tmp_path / f"{batch}.atlas").read_bytes() == (tmp_path / "8.atlas").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen so on Linux only")
def test_the_number_of_cores_does_not_matter(base, tmp_path, monkeypatch):
    """Nor do threads that finish in another order."""
    for count in (1, 2, 5):
        monkeypatch.setattr("onnxviz.forward.scan.cores", lambda count=count: count)
        _scan(base, tmp_path / f"{count}.atlas", batch_size=None)
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


# What does not fit

CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"layers": ["conv1"]}, "the layers were conv1, relu2, dense1 (fc1) (now conv1)"),
    "top": ({"top": 5}, "--top was 4 (now 5)"),
    "rank": ({"rank": "sum"}, "--rank was max (now sum)"),
    "limit": ({"limit": 8}, "40 images were to be scanned (now 8)"),
    "preprocess": ({"preprocess": "raw"}, "the preprocessing was "),
    "mean": ({"mean": [0.5, 0.5, 0.5]}, "the preprocessing was "),
    "bgr": ({"bgr": True}, "the preprocessing was "),
    "shard": ({"shard": (1, 2)}, "it was for images 0 to 39 (now 0 to 19)"),
}


@pytest.mark.parametrize(("change", "message"), CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("state", ["half", "whole"])
def test_another_job_is_refused_and_what_differs_is_named(base, request, state, change, message):
    path = request.getfixturevalue(state)
    before = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        _scan(base, path, **change)
    text = str(caught.value)
    assert f"{path} holds another scan: {message}" in text
    assert "--restart replaces it; another place keeps both." in text
    assert path.read_bytes() == before
    assert _names(path.parent) == ["x.atlas"]


def test_another_model_is_refused(base, half, tmp_path):
    write(tmp_path / "small.onnx", small(seed=1))
    with pytest.raises(UsageError, match=r"the model was another \(small\.onnx, SHA-256 [0-9a-f]{12}…; now "):
        _scan(base, half, model=tmp_path / "small.onnx")


def test_the_same_model_elsewhere_is_the_same(base, half, tmp_path):
    shutil.copy(base / "small.onnx", tmp_path / "other name.onnx")
    assert _scan(base, half, model=tmp_path / "other name.onnx").whole


def _add(folder: Path) -> None:
    shutil.copy(folder / "00.png", folder / "99.png")


def _grow(folder: Path) -> None:
    with (folder / "20.png").open("ab") as file:
        file.write(b"\0")


def _touch(folder: Path) -> None:
    os.utime(folder / "20.png", ns=(1, 1))


DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (_add, "the images or their labels were others"),
    "removed": (lambda folder: (folder / "39.png").unlink(), "the images or their labels were others"),
    "renamed": (
        lambda folder: (folder / "39.png").rename(folder / "40.png"),
        "the images or their labels were others",
    ),
    "larger": (_grow, "the images or their labels were others"),
    "touched": (_touch, "image files have changed since"),
}


@pytest.mark.parametrize(("change", "message"), DATA.values(), ids=DATA)
def test_a_changed_data_set_is_refused(base, tmp_path, change, message):
    shutil.copytree(base / "photos", tmp_path / "photos")
    with pytest.raises(KeyboardInterrupt):
        _scan(base, tmp_path / "x.atlas", images=tmp_path / "photos", progress=Told(most=8))
    change(tmp_path / "photos")
    with pytest.raises(UsageError, match=message):
        _scan(base, tmp_path / "x.atlas", images=tmp_path / "photos")
    told = Told()
    _scan(base, tmp_path / "x.atlas", images=tmp_path / "photos", restart=True, progress=told)
    assert told.before == 0


def test_a_copy_of_the_images_is_the_same_data_set(base, half, tmp_path):
    shutil.copytree(base / "photos", tmp_path / "copy", copy_function=shutil.copyfile)
    assert _scan(base, half, images=tmp_path / "copy").whole


def test_another_size_is_refused(tmp_path):
    weights = {"w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3)}
    write(tmp_path / "any.onnx", build([node("Conv", "x w", "c", "conv1")], weights, x=("N", 3, "H", "W")))
    _photos(tmp_path / "photos", 4)
    options = {"layers": "conv1", "images": tmp_path / "photos", "provider": "cpu"}
    onnxviz.scan(tmp_path / "any.onnx", tmp_path / "run", size=(12, 16), **options)
    with pytest.raises(UsageError, match=r"the size of images was 12×16 \(now 16×12\)"):
        onnxviz.scan(tmp_path / "any.onnx", tmp_path / "run", size=(16, 12), **options)


def test_another_value_of_another_input_is_refused(tmp_path):
    weights = {"w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3)}
    nodes = [node("Mul", "x scale", "m", "mul1"), node("Conv", "m w", "c", "conv1")]
    more = [helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])]
    write(tmp_path / "fed.onnx", build(nodes, weights, more_inputs=more))
    _photos(tmp_path / "photos", 4)
    options = {"layers": "conv1", "images": tmp_path / "photos", "provider": "cpu"}

    def scanned(scale: float) -> SavedScan:
        feeds = {"scale": np.array(scale)}
        return onnxviz.scan(tmp_path / "fed.onnx", tmp_path / "run", feeds=feeds, **options)

    scanned(0.5)
    assert scanned(0.5).whole
    with pytest.raises(UsageError, match="values fed to other inputs were others"):
        scanned(0.25)


JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "digest": (
        {"digest": "e" * 64},
        "the model was another (net.onnx, SHA-256 dddddddddddd…; now eeeeeeeeeeee…)",
    ),
    "image": ({"image": "y"}, "the image input was x (now y)"),
    "size": ({"size": (12, 14)}, "the size of images was 12×12 (now 12×14)"),
    "provider": ({"provider": "cuda"}, "the provider was cpu (now cuda)"),
    "layers": ({"layers": synthetic.LAYERS[:1]}, "the layers were conv1, fc1 (now conv1)"),
    "layers-order": ({"layers": synthetic.LAYERS[::-1]}, "the layers were conv1, fc1 (now fc1, conv1)"),
    "layers-size": (
        {"layers": (synthetic.layer("conv1", 2, (4, 3)), synthetic.VECTOR)},
        "the layers' sizes were others",
    ),
    "top": ({"top": 5}, "--top was 4 (now 5)"),
    "rank": ({"rank": "first"}, "--rank was max (now first)"),
    "images": ({"images": 4}, "8 images were to be scanned (now 4)"),
    "content": (
        {"data": Fingerprint("f" * 64, "t" * 64), "data_set": "cats"},
        "the images or their labels were others (photos (8 images); now cats)",
    ),
    "times": ({"data": Fingerprint("c" * 64, "f" * 64)}, "image files have changed since"),
    "feeds": ({"feeds": (("scale", "0"),)}, "values fed to other inputs were others"),
    "preprocess": (
        {"preprocess": replace(synthetic.RECIPE, mean=(0.5, 0.4, 0.31))},
        "the preprocessing was ",
    ),
    "resize": ({"preprocess": replace(synthetic.RECIPE, resize="pad")}, "the preprocessing was "),
}


@pytest.mark.parametrize(("change", "message"), JOBS.values(), ids=JOBS)
def test_every_part_of_a_job_counts(change, message):
    one = synthetic.job(8)
    other = replace(one, **change)
    found = one.differences(other, in_place=True)
    assert len(found) == 1
    assert found[0].startswith(message)
    assert other.differences(one, in_place=True)


def test_no_part_of_a_job_was_forgotten():
    names = {"model", "data_set", "of"}  # names for people, and what the data set's content says, too
    tried = {name for change, _ in JOBS.values() for name in change}
    assert tried | names == set(Job.__dataclass_fields__)
    one = synthetic.job(8)
    assert one.differences(replace(one, model="x", data_set="y"), in_place=True) == ()
    assert one.differences(replace(one, preprocess=replace(one.preprocess, origin="z")), in_place=True) == ()


def test_times_count_only_where_the_images_lay():
    one = synthetic.job(8)
    moved = replace(one, data=replace(one.data, times="f" * 64))
    assert one.differences(moved, in_place=False) == ()


# Finished scans of another job, damage


def _begin(path: Path, job: Job, **options: Any) -> tuple[SavedScan, list[str]]:
    notes: list[str] = []
    return Run(path).begin(job, synthetic.ORIGIN, note=notes.append, **options), notes


VALUES = synthetic.activations(np.random.default_rng(8), 64)


def test_a_finished_scan_of_another_job_gives_way_where_it_may(tmp_path):
    other = synthetic.job(64, top=3)
    synthetic.saved(synthetic.job(64), VALUES).write(tmp_path / "run" / "scan.atlas")
    with pytest.raises(UsageError, match=r"--top was 4 \(now 3\)"):
        _begin(tmp_path / "run", other)
    found, notes = _begin(tmp_path / "run", other, replace_finished=True)
    assert found.part.done == ()
    assert notes == [f"The finished scan in {tmp_path / 'run'} is replaced: --top was 4 (now 3)."]


@pytest.mark.parametrize("shard", [None, (1, 2)], ids=["unfinished", "a-part"])
def test_an_unfinished_one_gives_way_to_nothing(tmp_path, shard):
    range_ = (0, 32) if shard else (0, 64)
    synthetic.saved(synthetic.job(64), VALUES, 0, 32, range_=range_, shard=shard).write(
        tmp_path / "scan.atlas"
    )
    with pytest.raises(UsageError, match=r"--top was 4 \(now 3\)"):
        _begin(tmp_path, synthetic.job(64, top=3), replace_finished=True)


def test_a_damaged_one_is_set_aside_and_the_one_before_it_taken(tmp_path):
    run = Run(tmp_path)
    job = synthetic.job(64)
    run.begin(job, synthetic.ORIGIN, note=print)
    run.save(synthetic.counted(job, VALUES, 0, 16))
    run.save(synthetic.counted(job, VALUES, 0, 32))
    assert _names(tmp_path) == [".scan.atlas.before", "scan.atlas"]
    data = bytearray((tmp_path / "scan.atlas").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "scan.atlas").write_bytes(data)
    found, notes = _begin(tmp_path, job)
    assert found.part.done == ((0, 16),)
    assert len(notes) == 2
    assert "scan.atlas: the scan is damaged: its checksum does not fit" in notes[0]
    assert notes[0].endswith("It was set aside as scan.atlas.damaged-1.")
    assert "16 of 64 images are done" in notes[1]
    assert (tmp_path / "scan.atlas.damaged-1").read_bytes() == bytes(data)
    assert SavedScan.read(tmp_path / "scan.atlas").part.done == ((0, 16),)


def test_when_both_are_damaged_it_starts_over(tmp_path):
    for name in ("scan.atlas", ".scan.atlas.before", "scan.atlas.damaged-1"):
        (tmp_path / name).write_text(name)
    found, notes = _begin(tmp_path, synthetic.job(64))
    assert found.part.done == ()
    assert len(notes) == 2
    assert {name: (tmp_path / name).read_text() for name in _names(tmp_path)} == {
        "scan.atlas.damaged-1": "scan.atlas.damaged-1",
        "scan.atlas.damaged-2": "scan.atlas",
        "scan.atlas.damaged-3": ".scan.atlas.before",
    }


def test_a_damaged_one_is_never_lost_to_a_kill(tmp_path, monkeypatch):
    """The one before it has the name of the scan before anything is written."""
    job = synthetic.job(64)
    synthetic.saved(job, VALUES, 0, 16, range_=(0, 64)).write(tmp_path / ".scan.atlas.before")
    (tmp_path / "scan.atlas").write_bytes(b"onnxviz scan 1\n")
    run = Run(tmp_path)
    run.begin(job, synthetic.ORIGIN, note=lambda _: None)

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("onnxviz.scans.saved.write_durably", killed)
    with pytest.raises(SystemExit):
        run.save(synthetic.counted(job, VALUES, 0, 32))
    assert SavedScan.read(tmp_path / "scan.atlas").part.done == ((0, 16),)


@pytest.mark.parametrize("kind", ["folder", "newer"])
def test_what_cannot_be_read_is_not_taken_for_damage(tmp_path, kind):
    path = tmp_path / "scan.atlas"
    if kind == "folder":
        path.mkdir()
    else:
        import hashlib

        head, body = b"onnxviz scan 2", b"of the future"
        path.write_bytes(b"\n".join((head, hashlib.sha256(head + body).hexdigest().encode(), body)))
    with pytest.raises(AtlasError, match=r"cannot be read|has format 2"):
        _begin(tmp_path, synthetic.job(64))
    assert _names(tmp_path) == ["scan.atlas"]


def test_what_killed_ones_left_does_not_pile_up(tmp_path):
    job = synthetic.job(64)
    for name in (".scan.atlas.part", ".scan.atlas.before"):
        (tmp_path / name).write_bytes(b"cut off")
    synthetic.saved(job, VALUES, 0, 32, range_=(0, 64)).write(tmp_path / "scan.atlas")
    run = Run(tmp_path)
    run.begin(job, synthetic.ORIGIN, note=lambda _: None)
    run.save(synthetic.counted(job, VALUES, 0, 64))
    assert _names(tmp_path) == ["scan.atlas"]
    (tmp_path / ".scan.atlas.before").write_bytes(b"cut off")
    _begin(tmp_path, job)
    assert _names(tmp_path) == ["scan.atlas"]


def test_a_scan_without_a_readable_image_leaves_nothing(base, tmp_path):
    _photos(tmp_path / "bad", 3, broken=(0, 1, 2))
    for name in ("x.atlas", "run"):
        with pytest.raises(onnxviz.OnnxvizError, match="not one image could be read"):
            _scan(base, tmp_path / name, images=tmp_path / "bad")
    assert _names(tmp_path) == ["bad"]


def test_other_versions_are_told(tmp_path):
    synthetic.saved(synthetic.job(64), VALUES, 0, 32, range_=(0, 64)).write(tmp_path / "x.atlas")
    _, notes = _begin(tmp_path / "x.atlas", synthetic.job(64))
    assert notes[1].startswith("It was made with onnxviz 0, numpy 0; here is onnxviz ")


def test_the_file_of_a_scan(tmp_path):
    (tmp_path / "folder.atlas").mkdir()
    assert scan_file(tmp_path / "run") == tmp_path / "run" / "scan.atlas"
    assert scan_file(tmp_path / "x.atlas") == tmp_path / "x.atlas"
    assert scan_file(tmp_path / "folder.atlas") == tmp_path / "folder.atlas" / "scan.atlas"


@pytest.mark.parametrize("name", ["scan.atlas", "x.atlas"])
def test_a_disk_that_fills_up_ends_the_scan_and_keeps_what_was_saved(base, tmp_path, monkeypatch, name):
    usual, synced = os.fsync, []

    def filling(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 4:  # a file and its folder, each time
            raise OSError(28, "No space left on device")
        usual(descriptor)

    monkeypatch.setattr("onnxviz.files.os.fsync", filling)
    told = Told()
    with pytest.raises(AtlasError, match=r"the scan cannot be saved .No space left on device.; .* is kept"):
        _scan(base, tmp_path / name, save_every=0, progress=told)
    assert told.done < 40
    monkeypatch.undo()
    assert SavedScan.read(tmp_path / name).part.done == ((0, 8),)
    _scan(base, tmp_path / name)
    assert (tmp_path / name).read_bytes() == (base / "whole.atlas").read_bytes()
    assert _names(tmp_path) == [name]


# Secrets of URLs


def test_images_behind_a_url_go_on_and_leave_no_secret(base, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    import zipfile

    from tests.images.serving import serving

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted((base / "photos").iterdir()):
            file.write(path, path.name)
    with serving({"photos.zip": (tmp_path / "photos.zip").read_bytes()}) as served:
        url = f"{served.url}/photos.zip?token=sesame17"
        with pytest.raises(KeyboardInterrupt):
            _scan(base, tmp_path / "x.atlas", images=url, progress=Told(most=12))
        assert b"sesame17" not in (tmp_path / "x.atlas").read_bytes()
        told = Told()
        saved = _scan(base, tmp_path / "x.atlas", images=url, progress=told)
        assert told.before >= 12
        data = (tmp_path / "x.atlas").read_bytes()
        assert b"sesame17" not in data
        assert b"photos.zip?***" in data
        assert saved.part.skipped[0][1] == "07.png"
        with pytest.raises(
            UsageError, match=r"secrets are not kept with a scan\. Name the URL with --images"
        ):
            onnxviz.draw(tmp_path / "x.atlas", tmp_path / "r")
        onnxviz.draw(tmp_path / "x.atlas", tmp_path / "r", layers="fc1", images=url)
    for path in (tmp_path / "r").rglob("*"):
        assert not path.is_file() or b"sesame17" not in path.read_bytes(), path
    for name in ("topk/image", "topk/score", "stats/sums"):
        whole = SavedScan.read(base / "whole.atlas").part.arrays()[name]
        np.testing.assert_array_equal(saved.part.arrays()[name], whole)


# Merging


@pytest.fixture(scope="module")
def parts(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for number in range(1, 6):
        _scan(base, folder / f"{number}.atlas", shard=(number, 5))
    return folder


def _paths(folder: Path, *numbers: int) -> list[Path]:
    return [folder / f"{number}.atlas" for number in numbers]


@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (3, 1, 5, 2, 4)], ids=str)
def test_merged_parts_have_the_bytes_of_one_scan(base, parts, tmp_path, order):
    onnxviz.merge(_paths(parts, *order), tmp_path / "run")
    assert (tmp_path / "run" / "scan.atlas").read_bytes() == (base / "whole.atlas").read_bytes()
    assert _names(tmp_path / "run") == ["scan.atlas"]


@pytest.mark.parametrize("of", [1, 2, 3, 10, 37, 50])
def test_any_number_of_shards(base, tmp_path, of):
    """Also one of no images, where there are more shards than images."""
    for number in range(1, of + 1):
        _scan(base, tmp_path / f"{number}.atlas", shard=(number, of), batch_size=1)
    _scan(base, tmp_path / "whole", batch_size=1)
    onnxviz.merge(_paths(tmp_path, *range(1, of + 1)), tmp_path / "run")
    assert (tmp_path / "run/scan.atlas").read_bytes() == (tmp_path / "whole/scan.atlas").read_bytes()


def test_every_grouping_of_parts_is_the_same():
    job = synthetic.job(64)
    ends = [0, 5, 20, 33, 64]
    pieces = [synthetic.counted(job, VALUES, *ends[i : i + 2], broken=(4, 40)) for i in range(4)]
    found = set()
    for a, b, c, d in itertools.permutations(pieces):
        for part in (
            a.merge(b).merge(c).merge(d),
            a.merge(b).merge(c.merge(d)),
            a.merge(b.merge(c).merge(d)),
        ):
            found.add(SavedScan(job, synthetic.ORIGIN, (0, 64), part, ()).to_bytes())
    found.add(synthetic.saved(job, VALUES, broken=(4, 40), versions=()).to_bytes())
    assert len(found) == 1


def test_the_first_images_part_says_where_all_was(tmp_path):
    job = synthetic.job(64)
    for number in range(4):
        origin = replace(synthetic.ORIGIN, images=f"/machine{number}/photos")
        one = synthetic.saved(
            job, VALUES, 16 * number, 16 * number + 16, shard=(number + 1, 4), origin=origin
        )
        one.write(tmp_path / f"{number}.atlas")
    wholes = [merge_parts(_paths(tmp_path, *order)) for order in itertools.permutations(range(4))]
    assert {one.origin.images for one in wholes} == {"/machine0/photos"}
    assert len({one.to_bytes() for one in wholes}) == 1


WRONG: dict[str, tuple[Callable[[Path, Path], list[Path]], str]] = {
    "a-missing-one": (
        lambda p, _: _paths(p, 1, 2, 4, 5),
        r"Images 16 to 23 of 40 are in no part; missing: shard 3/5",
    ),
    "two-missing": (
        lambda p, _: _paths(p, 5, 1, 3),
        r"Images 8 to 15, 24 to 31 of 40 are in no part; missing: shard 2/5, 4/5",
    ),
    "a-double": (
        lambda p, _: _paths(p, 1, 2, 3, 2, 4, 5),
        r"Images 8 to 15 are both in \S+2\.atlas and in \S+2\.atlas",
    ),
    "whole-and-part": (
        lambda p, base: [base / "whole.atlas", *_paths(p, 4)],
        r"Images 24 to 31 are both in \S+whole\.atlas and in \S+4\.atlas\. Leave one out",
    ),
    "not-there": (lambda p, _: _paths(p, 1, 7), r"7\.atlas: there is no such scan"),
    "unfinished": (
        lambda _, base: [base / "half.atlas"],
        r"Images \d+ to 39 of 40 are in no part; \S+half\.atlas is not finished \(\d+ images to go\): run its",
    ),
    "no-scan": (lambda _, base: [base / "photos"], r"photos/scan\.atlas: there is no such scan"),
    "foreign": (lambda _, base: [base / "foreign.atlas"], r"foreign\.atlas: not a scan of onnxviz"),
}


@pytest.mark.parametrize(("which", "message"), WRONG.values(), ids=WRONG)
def test_parts_that_make_no_whole(base, parts, tmp_path, which, message):
    (base / "foreign.atlas").write_text("4.png\n")
    with pytest.raises(AtlasError, match=message):
        onnxviz.merge(which(parts, base), tmp_path / "new" / "run")
    assert _names(tmp_path) == []


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "top": ({"top": 5}, r"--top was 4 \(now 5\)"),
    "layers": ({"layers": "conv1"}, r"the layers were conv1, relu2, dense1 \(fc1\) \(now conv1\)"),
    "limit": ({"limit": 20}, r"40 images were to be scanned \(now 20\)"),
    "preprocess": ({"preprocess": "raw"}, "the preprocessing was "),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_part_of_another_scan(base, parts, tmp_path, change, message):
    _scan(base, tmp_path / "2.atlas", shard=(2, 5), **change)
    with pytest.raises(AtlasError, match=rf"2\.atlas is of another scan than \S+1\.atlas: {message}"):
        onnxviz.merge([parts / "1.atlas", tmp_path / "2.atlas", *_paths(parts, 3, 4, 5)], tmp_path / "run")


def test_no_parts(tmp_path):
    with pytest.raises(UsageError, match="nothing to merge"):
        onnxviz.merge([], tmp_path / "run")
    assert _names(tmp_path) == []


def test_the_whole_takes_the_place_of_nothing(base, parts, tmp_path):
    place = tmp_path / "run"
    _scan(base, place, top=2)
    before = (place / "scan.atlas").read_bytes()
    all_parts = _paths(parts, 1, 2, 3, 4, 5)
    with pytest.raises(UsageError, match=r"run holds a scan already\. .*--restart"):
        onnxviz.merge(all_parts, place)
    with pytest.raises(AtlasError, match="missing: shard 1/5"):
        onnxviz.merge(all_parts[1:], place, restart=True)
    assert (place / "scan.atlas").read_bytes() == before
    onnxviz.merge(all_parts, place, restart=True)
    assert (place / "scan.atlas").read_bytes() == (base / "whole.atlas").read_bytes()
    with pytest.raises(UsageError, match="is one of the parts"):
        onnxviz.merge([*all_parts, place], place, restart=True)
    assert (place / "scan.atlas").read_bytes() == (base / "whole.atlas").read_bytes()


def test_a_full_disk_leaves_what_was_there(base, parts, tmp_path, monkeypatch):
    shutil.copy(base / "half.atlas", tmp_path / "x.atlas")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxviz.files.os.fsync", full)
    with pytest.raises(AtlasError, match="No space left"):
        onnxviz.merge(_paths(parts, 1, 2, 3, 4, 5), tmp_path / "x.atlas", restart=True)
    assert (tmp_path / "x.atlas").read_bytes() == (base / "half.atlas").read_bytes()
    assert _names(tmp_path) == ["x.atlas"]


def test_parts_of_several_versions_are_noted(tmp_path):
    job = synthetic.job(64)
    synthetic.saved(job, VALUES, 0, 32, shard=(1, 2), versions=("numpy 1",)).write(tmp_path / "1.atlas")
    synthetic.saved(job, VALUES, 32, 64, shard=(2, 2), versions=("numpy 2",)).write(tmp_path / "2.atlas")
    merged = merge_parts(_paths(tmp_path, 2, 1))
    assert merged.versions == ("numpy 1", "numpy 2")
    assert merged.told.notes == ("The scan was made with different versions: numpy 1; numpy 2.",)


def test_parts_may_be_made_anywhere(base, tmp_path):
    """Copies of the model and the images, in other folders and with other times."""
    for number in (1, 2):
        place = tmp_path / f"machine{number}"
        shutil.copytree(base / "photos", place / "photos", copy_function=shutil.copyfile)
        shutil.copy(base / "small.onnx", place / "net.onnx")
        _scan(place, tmp_path / f"{number}.atlas", model=place / "net.onnx", shard=(number, 2))
    whole = onnxviz.merge(_paths(tmp_path, 2, 1), tmp_path / "whole.atlas")
    assert whole.to_bytes() == (tmp_path / "whole.atlas").read_bytes()
    for name, array in whole.part.arrays().items():
        np.testing.assert_array_equal(array, SavedScan.read(base / "whole.atlas").part.arrays()[name])


# Many parts

IMAGES, SHARDS = 10_000_000, 1_000
MERGE = (
    "import re, sys\n"
    "import onnxviz\n"
    "from pathlib import Path\n"
    "onnxviz.merge(sorted(Path(sys.argv[1]).iterdir()), sys.argv[2])\n"
    "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
)
"""Merges, and prints the most memory that it had; getrusage would count what its parent had when it was forked."""


def _part_of(job: Job, values: np.ndarray[Any, Any], start: int) -> Part:
    """What a scan would have found in images of two channels of one unit, without counting one by one."""
    numbers = np.arange(start, start + len(values))
    order = np.stack([np.lexsort((numbers, -values[:, c]))[: job.top] for c in (0, 1)])
    score = np.take_along_axis(values.T, order, 1)
    none = np.zeros(score.shape, np.int32)
    together = np.maximum(values, 0).sum(1)
    best = np.lexsort((numbers, -together))[None, : job.top]
    topk = TopK(score.astype(np.float64), score, numbers[order], none, none)
    overall = TopK(together[best].astype(np.float64), together[best], numbers[best], none[:1], none[:1])
    stats = ChannelStats.of_batch({"max": values, "sum": values}, 0)
    return Part(((start, start + len(values)),), topk, overall, stats, Responses(1, numbers, values), (), ())


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
def test_ten_million_images_in_a_thousand_parts(tmp_path):
    """Within 1 GiB, to what a plain sort of all values gives; ties go to the first image."""
    values = np.random.default_rng(1).integers(-(1 << 19), 1 << 20, (IMAGES, 2)) / np.float32(1024)
    values = values.astype(np.float32)
    job = synthetic.job(IMAGES, [synthetic.layer("fc1", 2)], top=9)
    (tmp_path / "parts").mkdir()
    size = IMAGES // SHARDS
    names = list(range(SHARDS))
    random.Random(0).shuffle(names)
    for number, name in enumerate(names):
        start = number * size
        part = _part_of(job, values[start : start + size], start)
        one = SavedScan(job, synthetic.ORIGIN, (start, start + size), part, ("v",), (number + 1, SHARDS))
        (tmp_path / "parts" / f"{name:04}.atlas").write_bytes(one.to_bytes())
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MERGE, str(tmp_path / "parts"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seconds = time.monotonic() - begun
    assert (done.returncode, done.stderr) == (0, "")
    peak = int(done.stdout) * 1024
    print(f"{SHARDS:,} parts of {IMAGES:,} images: {seconds:.1f} s, at most {peak >> 20} MiB")
    assert peak < 1 << 30
    merged = SavedScan.read(tmp_path / "run" / "scan.atlas")
    assert merged.whole
    assert merged.part.images == IMAGES
    for channel in (0, 1):
        column = values[:, channel]
        near = np.flatnonzero(column >= np.partition(column, -200)[-200])
        expected = sorted((-float(column[i]), int(i)) for i in near)[:9]
        hits = merged.part.topk.hits(channel)
        assert [(-hit.score, hit.image) for hit in hits] == expected
    together = np.maximum(values, 0).sum(1)
    near = np.flatnonzero(together >= np.partition(together, -200)[-200])
    expected = sorted((-float(together[i]), int(i)) for i in near)[:9]
    assert [(-hit.score, hit.image) for hit in merged.part.overall.hits(0)] == expected
    stats = merged.part.stats
    np.testing.assert_array_equal(stats.total, np.rint(values * 1024).astype(np.int64).sum(0) / 1024)
    np.testing.assert_array_equal(stats.active_images, (values > 0).sum(0))
    np.testing.assert_array_equal(stats.largest, values.max(0))
    sample = merged.part.responses
    fits = [2**e for e in range(30) if taken(np.arange(IMAGES), 2**e).sum() <= capacity(2)]
    assert sample.every == fits[0] > 1
    np.testing.assert_array_equal(sample.image, np.flatnonzero(taken(np.arange(IMAGES), sample.every)))
    np.testing.assert_array_equal(sample.largest, values[sample.image])


def test_those_parts_are_as_a_scan_would_make_them():
    """The parts of the test above, against the code that counts images."""
    from onnxviz.forward.part import BatchResult, Tally

    values = np.random.default_rng(2).integers(-9, 99, (3000, 2)).astype(np.float32)
    job = synthetic.job(5000, [synthetic.layer("fc1", 2)], top=9)
    tally = Tally(job.layers, job.rank, Part.empty(job.layers, job.top))
    for first in range(0, 3000, 100):
        rows = np.arange(first, first + 100)
        tally.add(BatchResult((1000 + first, 1100 + first), {"fc1:0:vector": values[rows]}, 1000 + rows))
    made = [
        SavedScan(job, synthetic.ORIGIN, (1000, 4000), part, ()).to_bytes()
        for part in (tally.part(), _part_of(job, values, 1000))
    ]
    assert made[0] == made[1]
