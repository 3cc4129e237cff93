"""A report that is written while its pictures are drawn: it opens at any time, and says what it lacks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import onnxviz
from onnxviz import analyze
from onnxviz.errors import OutputError, UsageError
from onnxviz.images import render
from onnxviz.progress import Progress
from tests.model.nets import small, write

LAYERS = ["conv1", "relu1", "conv2", "fc1"]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("task")
    x = np.random.default_rng(4).normal(size=(12, 3, 12, 12)).astype(np.float32)
    np.save(folder / "x.npy", x)
    model = write(folder / "small.onnx", small())
    return {
        "model": model,
        "images": folder / "x.npy",
        "layers": LAYERS,
        "provider": "cpu",
        "preprocess": "raw",
    }


def run(task: dict, **options) -> onnxviz.Atlas:
    options = task | options
    return analyze(options.pop("model"), **options)


def broken(out: Path) -> tuple[set[str], set[str]]:
    """Pages, and pictures, that pages refer to and that are not there."""
    pages, pictures = set(), set()
    for page in out.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"]*)"', page.read_text(encoding="utf-8")):
            path = unquote(urlsplit(link).path)
            if path and not link.startswith("data:") and not (page.parent / path).exists():
                (pictures if "pictures/" in path else pages).add(link)
    return pages, pictures


def text_of(out: Path) -> str:
    return (out / "index.html").read_text(encoding="utf-8")


class Watcher(Progress):
    """Looks at the report at every step of drawing, or raises an error at one of them."""

    def __init__(self, out: Path, error: BaseException | None = None, at: tuple[str, int] = ("", 0)) -> None:
        self.out, self.error, self.at = out, error, at
        self.task, self.steps, self.seen, self.notes = "", 0, [], []

    def note(self, text):
        self.notes.append(text)

    def start(self, task, total, unit):
        self.task, self.steps = task, 0

    def advance(self, count=1):
        if not self.task.startswith("Projecting"):
            return
        self.steps += 1
        if self.error and self.at == (self.task.removeprefix("Projecting "), self.steps):
            raise self.error
        if (self.out / "index.html").exists():
            pages, pictures = broken(self.out)
            linked = set(re.findall(r'href="layers/([a-z0-9-]+)/index', text_of(self.out)))
            self.seen.append((self.task, pages, pictures, linked, "is being written" in text_of(self.out)))


def test_it_opens_at_any_time(task, tmp_path):
    out = tmp_path / "out"
    heard = Watcher(out)
    atlas = run(task, report=out, progress=heard)
    assert len(heard.seen) >= len(LAYERS)
    for _, pages, _, linked, unfinished in heard.seen:
        assert not pages
        assert linked and unfinished
    # One layer more at a time, and pictures that are still to come while one is drawn.
    assert sorted({len(linked) for *_, linked, _ in heard.seen}) == [1, 2, 3, 4]
    assert any(pictures for _, _, pictures, _, _ in heard.seen)
    assert broken(out) == (set(), set())
    assert "is being written" not in text_of(out)
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["provenance"]["notes"] == list(
        atlas.provenance.notes
    )
    assert onnxviz.Atlas.load(out).report_data() == atlas.report_data()


def test_it_is_the_report_that_is_written_at_the_end(task, tmp_path):
    """Byte for byte, but for the date."""
    own = run(task, report=tmp_path / "own", montage=True)
    later = run(task, folder=tmp_path / "later", montage=True)
    later.provenance = own.provenance
    later.publish(tmp_path / "later")
    files = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".atlas"}
        for out in (tmp_path / "own", tmp_path / "later")
    ]
    assert files[0].keys() == files[1].keys()
    assert [path for path in files[0] if files[0][path] != files[1][path] and path.suffix != ".npz"] == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), UsageError("stop"), OSError(28, "No space left on device")]
)
@pytest.mark.parametrize("at", [("conv1", 1), ("relu1", 1), ("relu1", 2), ("conv2", 2), ("dense1 (fc1)", 2)])
def test_a_run_that_is_broken_off_leaves_what_there_is(task, tmp_path, monkeypatch, error, at):
    monkeypatch.setattr("onnxviz.pictures._HITS_IN_MEMORY", 18)  # two channels at a time
    out = tmp_path / "out"
    former = run(task, report=out, layers=["relu2", "fc2"])  # of which nothing must be left
    files = {
        path: path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name[0] != "." and path.name != "scan.atlas"
    }
    heard = Watcher(out, error, at)
    with pytest.raises(type(error)):
        run(task, report=out, progress=heard)
    text, reached = text_of(out), LAYERS.index(at[0].partition(" ")[0].replace("dense1", "fc1"))
    if at == ("conv1", 1):  # nothing was drawn yet: the former report is as it was
        assert {path: path.read_bytes() for path in files} == files
        assert onnxviz.Atlas.load(out).report_data() == former.report_data()
        assert not any("shows what was drawn" in note for note in heard.notes)
        return
    assert broken(out) == (set(), set())
    assert "is being written" not in text and "The run was broken off" in text
    assert any("shows what was drawn" in note for note in heard.notes)
    atlas = onnxviz.Atlas.load(out)
    found = [one.layer.alias for one in atlas.layers]
    assert found == LAYERS[: reached + (at[1] > 1)]
    for one in atlas.layers[:-1]:
        assert len(one.pictured) == one.layer.channels
    assert {p.name for p in (out / "layers").iterdir()} == {one.slug for one in atlas.layers}
    for alias in LAYERS[len(found) :]:
        assert re.search(rf"{alias}\)? was not reached", text)
    again = run(task, report=out)
    assert broken(out) == (set(), set())
    assert "broken off" not in text_of(out)
    assert [one.layer.alias for one in again.layers] == LAYERS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
def test_a_failing_disk_leaves_no_half_pictures(task, tmp_path, monkeypatch):
    out, usual = tmp_path / "out", open

    def full(path: Path, mode: str) -> IO[bytes]:
        if "conv2" in str(path) and "all" not in path.name:
            path.write_bytes(b"half")
            return usual("/dev/full", mode)
        return usual(path, mode)

    monkeypatch.setattr("onnxviz.images.render.open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        run(task, report=out)
    monkeypatch.undo()
    assert broken(out) == (set(), set())
    atlas = onnxviz.Atlas.load(out)
    assert [one.layer.alias for one in atlas.layers] == ["conv1", "relu1", "conv2"]
    assert not any(not atlas.layers[-1].dead(channel) for channel in atlas.layers[-1].pictured)
    assert "conv2 shows 0 of 7 channels" in text_of(out)


def test_a_run_that_is_killed_leaves_a_report_that_opens(task, tmp_path):
    """No page that is linked is missing; a picture may be."""
    out = tmp_path / "out"
    script = (
        "import sys, time, onnxviz, onnxviz.pictures as p\n"
        "write = p._write\n"
        "def slow(*a):\n    time.sleep(0.05)\n    return write(*a)\n"
        "p._write = slow\n"
        "model, images, out = sys.argv[1:]\n"
        "onnxviz.analyze(model, layers=['conv1', 'conv2', 'fc1'], images=images, provider='cpu', report=out)\n"
    )
    arguments = [str(task["model"]), str(task["images"]), str(out)]
    with subprocess.Popen([sys.executable, "-c", script, *arguments]) as process:
        end = time.monotonic() + 60
        while not (out / "index.html").exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        process.kill()
    assert process.returncode == -9
    pages, _ = broken(out)
    assert not pages
    assert "is being written, or its run was cut off" in text_of(out)
    assert not (out / "atlas.json").exists()
    run(task, report=out)
    assert broken(out) == (set(), set())
    assert "cut off" not in text_of(out)


def test_pictures_and_report_have_one_folder(task, tmp_path):
    with pytest.raises(UsageError, match="not both"):
        run(task, report=tmp_path / "a", folder=tmp_path / "b")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
@pytest.mark.parametrize("side", [4, 400])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_is_written_whole_or_not_at_all(tmp_path, ending, side):
    (tmp_path / f".part-a.{ending}").symlink_to("/dev/full")
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    with pytest.raises(OutputError, match=rf"a\.{ending}: No space left on device\. Free some space"):
        render.save(picture, tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []


class Counter(Watcher):
    """Counts the projections that a former run had drawn."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.before = 0

    def resumed(self, count):
        if self.task.startswith("Projecting"):
            self.before += count


def _pictures(out: Path) -> dict[Path, bytes]:
    files = (path for path in (out / "pictures").rglob("*") if path.is_file())
    return {path.relative_to(out): path.read_bytes() for path in files}


@pytest.fixture
def two_at_a_time(monkeypatch):
    monkeypatch.setattr("onnxviz.pictures._HITS_IN_MEMORY", 18)


@pytest.mark.parametrize("at", [("relu1", 1), ("conv2", 2), ("dense1 (fc1)", 1)])
def test_a_run_goes_on_drawing_where_it_was_broken_off(task, tmp_path, two_at_a_time, at):
    whole = tmp_path / "whole"
    run(task, report=whole)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(task, report=out, progress=Watcher(out, KeyboardInterrupt(), at))
    kept = {path: (out / path).stat().st_mtime_ns for path in _pictures(out)}
    heard = Counter(out)
    run(task, report=out, progress=heard)
    assert heard.before > 0
    assert sum((out / path).stat().st_mtime_ns == time for path, time in kept.items()) > 0
    assert _pictures(out) == _pictures(whole)
    again = Counter(out)
    run(task, report=out, progress=again)
    assert again.before == 0  # a report that is whole is drawn anew


def test_a_run_goes_on_after_a_kill(task, tmp_path, two_at_a_time):
    """What is on the disk at any moment of drawing is copied, as a kill would leave it, and gone on from."""
    out, copies = tmp_path / "out", []

    class Copier(Watcher):
        def advance(self, count=1):
            super().advance(count)
            if self.task.startswith("Projecting") and self.steps % 2:
                copies.append(tmp_path / f"copy{len(copies)}")
                shutil.copytree(out, copies[-1])

    run(task, report=out, progress=Copier(out))
    assert len(copies) > 5
    for copy in copies[1::3]:
        heard = Counter(copy)
        run(task, report=copy, progress=heard)
        assert _pictures(copy) == _pictures(out)
    assert heard.before > 0


@pytest.mark.parametrize("change", [{"method": "guided"}, {"channels": "0-1"}, {"seed": "map"}, {"top": 3}])
def test_pictures_of_another_job_are_drawn_anew(task, tmp_path, two_at_a_time, change):
    out, other = tmp_path / "out", tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        run(task, report=out, progress=Watcher(out, KeyboardInterrupt(), ("conv2", 2)))
    heard = Counter(out)
    run(task, report=out, progress=heard, **change)
    run(task, report=other, **change)
    assert heard.before == 0
    assert _pictures(out) == _pictures(other)


def test_a_montage_is_drawn_whole(task, tmp_path, two_at_a_time):
    out, other = tmp_path / "out", tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        run(task, report=out, montage=True, progress=Watcher(out, KeyboardInterrupt(), ("conv2", 2)))
    atlases = [run(task, report=folder, montage=True) for folder in (out, other)]
    for one in atlases[0].layers:
        assert (out / one.montage).read_bytes() == (other / one.montage).read_bytes()
