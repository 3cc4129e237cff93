"""A scan by several processes: the bytes of one, whatever happens to them; and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.progress import Progress
from onnxviz.scans import workers
from onnxviz.scans.saved import SavedScan
from onnxviz.scans.workers import Pieces, scan_in_processes
from onnxviz.setup import open_setup
from tests.model.nets import small, write
from tests.scans.fleet import (
    BATCH,
    BROKEN,
    IMAGES,
    Command,
    alive,
    children,
    data,
    environment,
    scan,
    until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")


class Heard(Progress):
    """All that was told."""

    def __init__(self) -> None:
        self.done, self.notes, self.lost = 0, [], []

    def resumed(self, count):
        self.done += count

    def advance(self, count=1):
        assert count > 0
        self.done += count

    def note(self, text):
        self.notes.append(text)

    def skipped(self, name, reason):
        self.lost.append(name)


@pytest.fixture(scope="module")
def slow(folder):
    return environment(folder, 0.03)


def start(folder, out, env, *options, count=2):
    return Command(folder, out, "--workers", str(count), *options, env=env)


@pytest.mark.parametrize("count", [1, 3])
def test_it_is_what_one_process_finds(folder, expected, tmp_path, count):
    heard, before = Heard(), set(children(os.getpid()))
    scan(folder, tmp_path / "it.atlas", workers=count, progress=heard)
    assert (tmp_path / "it.atlas").read_bytes() == expected
    assert heard.done == IMAGES
    assert sorted(heard.lost) == [f"{number:04}.png" for number in BROKEN]
    assert set(children(os.getpid())) <= before


def test_killed_processes_are_replaced(folder, expected, slow, tmp_path):
    run = start(folder, tmp_path / "it.atlas", slow)
    for done in (20, 60, 100):
        run.until(done)
        os.kill(until(lambda: children(run.process.pid))[-1], signal.SIGKILL)
    assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected
    lost = [text for text in run.said("note") if text.startswith("A worker process ended (signal 9")]
    assert len(lost) == 3
    assert run.said("progress", "done")[-1] == IMAGES
    assert run.said("progress", "done") == sorted(run.said("progress", "done"))
    assert len(run.said("skipped", "name")) == len(BROKEN)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_all_and_the_same_command_goes_on(folder, expected, tmp_path, name, code):
    run = start(folder, tmp_path / "it.atlas", environment(folder, 0.1))
    run.until(40)
    there = children(run.process.pid)
    assert len(there) == 2
    run.process.send_signal(getattr(signal, name))
    assert run.end() == (code, "Interrupted.\n" if name == "SIGINT" else "Terminated.\n")
    assert not any(map(alive, there))
    saved = SavedScan.read(tmp_path / "it.atlas")
    # What was not given yet is asked for: nothing is lost.
    assert run.said("progress", "done")[-1] <= ranges.count(saved.part.done) < IMAGES
    run = start(folder, tmp_path / "it.atlas", environment())
    assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected


def test_ctrl_c_at_a_terminal_reaches_them_all_and_harms_none(folder, slow, tmp_path):
    """It goes to all processes of the group."""
    run = Command(folder, tmp_path / "it.atlas", "--workers", "2", env=slow, process_group=0)
    run.until(8)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() == (130, "Interrupted.\n")
    assert SavedScan.read(tmp_path / "it.atlas").part.done


def test_they_end_with_the_process_that_started_them(folder, expected, tmp_path):
    file = tmp_path / "it.atlas"
    run = start(folder, file, environment(folder, 0.1), "--save-every", "0.3")
    until(lambda: file.exists() and SavedScan.read(file).part.done)
    there = children(run.process.pid)
    run.process.kill()
    assert run.end()[1] == ""
    until(lambda: not any(map(alive, there)))
    assert SavedScan.read(tmp_path / "it.atlas").part.done
    run = start(folder, tmp_path / "it.atlas", environment())
    assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected


def test_processes_that_always_end_are_given_up(folder, tmp_path):
    env = environment(folder, "import os, sys\nif '-P' in sys.orig_argv: os.kill(os.getpid(), 9)\n")
    run = start(folder, tmp_path / "it.atlas", env)
    code, errors = run.end()
    assert code == 1
    assert errors == (
        "Error: The worker processes end again and again (signal 9, often a lack of memory). Use fewer --workers or "
        "a smaller --batch-size.\n"
    )


BUG = """
import sys
if "-P" in sys.orig_argv:
    import warnings, onnxviz.forward.scan as scan
    plain = scan._batch
    def odd(items, piece):
        warnings.warn("look at this", UserWarning)
        if piece[0] == 60:
            raise RuntimeError("a bug")
        return plain(items, piece)
    scan._batch = odd
"""


def test_a_failure_is_told_in_a_line_and_what_was_found_is_kept(folder, tmp_path):
    run = start(folder, tmp_path / "it.atlas", environment(folder, BUG), "--log-file", str(tmp_path / "log"))
    code, errors = run.end()
    assert (code, errors) == (1, "Error: A worker process failed: RuntimeError: a bug\n")
    assert SavedScan.read(tmp_path / "it.atlas").part.done
    assert "in odd" in (tmp_path / "log").read_text()  # the traceback
    assert any("look at this" in text for text in run.said("warning"))


def job(folder, tmp_path):
    """A job whose model and images can be spoiled."""
    data(tmp_path, 8)
    setup = open_setup(
        tmp_path / "small.onnx",
        layers=["conv1"],
        images=tmp_path / "photos",
        provider="cpu",
        progress=Progress(),
    )
    empty = Part.empty(setup.layers, setup.top)
    return SavedScan(setup.job, setup.origin, (0, setup.total), empty, ())


def other_model(base: Path) -> None:
    write(base / "small.onnx", small(seed=1))


def no_model(base: Path) -> None:
    (base / "small.onnx").unlink()


def fewer_images(base: Path) -> None:
    (base / "photos" / "0003.png").unlink()


def no_images(base: Path) -> None:
    (base / "photos").rename(base / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_model, r"small\.onnx is not the model that was scanned .*content differs"),
        (no_model, r"small\.onnx: (no such file|there is no)"),
        (fewer_images, r"photos .*7 images.* are not the images that were scanned .*8 images"),
        (no_images, r"photos: no such file or folder"),
    ],
    ids=["another-model", "no-model", "fewer-images", "no-images"],
)
def test_what_is_not_there_any_more_is_named(folder, tmp_path, spoil, message):
    saved, before = job(folder, tmp_path), set(children(os.getpid()))
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        scan_in_processes(saved, 1, BATCH, progress=Progress(), save=None, every=60)
    assert set(children(os.getpid())) <= before


def test_a_program_need_not_be_importable(folder, expected, tmp_path):
    """Not even one that scans when it is imported."""
    program = tmp_path / "program.py"
    program.write_text(
        "from onnxviz.analysis import scan\n"
        f"scan('small.onnx', r'{tmp_path / 'it.atlas'}', images='photos', layers=['conv1', 'conv2'], "
        f"provider='cpu', batch_size={BATCH}, workers=2)\n"
    )
    command = [sys.executable, str(program)]
    subprocess.run(command, cwd=folder, env=environment(), check=True, timeout=60)
    assert (tmp_path / "it.atlas").read_bytes() == expected


def test_there_are_no_more_processes_than_batches(folder, tmp_path, monkeypatch):
    started = []
    start = workers._Pool._start
    monkeypatch.setattr(
        workers._Pool, "_start", lambda pool, index: started.append(index) or start(pool, index)
    )
    scan(folder, tmp_path / "it.atlas", workers=50, limit=6)
    assert started == [0, 1]


def test_a_process_that_cannot_be_started_is_told(folder, tmp_path, monkeypatch):
    def none(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none)
    with pytest.raises(
        OnnxvizError, match=r"^Worker process 1 cannot be started \(Resource .*Use fewer --workers"
    ):
        scan(folder, tmp_path / "it.atlas", workers=2)


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 2, "cluster": "tcp://x:1"}], ids=["none", "both"]
)
def test_a_wrong_call(folder, tmp_path, options):
    with pytest.raises(UsageError, match="workers"):
        scan(folder, tmp_path / "it.atlas", **options)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1"]), ("", ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])],
    ids=["not-set", "empty", "numbers", "names"],
)
def test_gpus_are_those_that_this_process_may_use(monkeypatch, visible, expected):
    monkeypatch.setattr(workers, "gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers._gpu_names() == expected


@pytest.mark.parametrize(("count", "shares"), [(1, [4]), (2, [2, 2]), (3, [2, 1, 1]), (6, [1] * 6)])
def test_cores_are_shared_out(monkeypatch, count, shares):
    monkeypatch.setattr(workers, "cores", lambda: 4)
    assert workers._shares(count) == shares


@pytest.mark.parametrize("rate", [None, 3, 1000], ids=["unknown", "slow", "fast"])
@pytest.mark.parametrize(
    "todo", [[(0, 1000)], [(3, 10), (64, 65), (100, 777)], [(7, 8)], []], ids=["all", "rest", "one", "none"]
)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_image_is_handed_out_once(rate, todo, count):
    pieces = Pieces(todo, 8, 10)
    if rate:
        pieces.measured(rate * 5, 5)
    found = []
    while pieces:
        found.append(pieces.take(count))
    assert ranges.joined(found) == ranges.joined(todo)
    assert ranges.count(found) == ranges.count(todo)
    ends = {stop for _, stop in todo}
    assert all(stop % 8 == 0 or stop in ends for _, stop in found)


def test_pieces_take_so_long_and_get_smaller_towards_the_end():
    pieces = Pieces([(0, 10_000)], 8, 10)
    assert pieces.take(2) == (0, 8)  # nothing is known yet
    pieces.measured(500, 10)
    sizes = []
    while pieces:
        start, stop = pieces.take(2)
        sizes.append(stop - start)
    assert sizes[0] == 496  # ten seconds, in batches
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-3:] == [8, 8, 8]


def test_lost_pieces_come_next():
    pieces = Pieces([(0, 64)], 8, 10)
    first, second = pieces.take(1), pieces.take(1)
    pieces.put_back([first])
    assert (first, second) == ((0, 8), (8, 16))
    assert [pieces.take(1), pieces.take(1)] == [(0, 8), (16, 24)]
