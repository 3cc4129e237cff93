"""One process at a time in a folder, or at a file: real processes, some of them killed."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onnxviz import locks
from onnxviz.errors import LockedError, OnnxvizError
from onnxviz.locks import lock_file, locked

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from onnxviz.locks import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('in', flush=True)\n"
    "    sys.stdin.read()\n"
)
RACE = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from onnxviz.errors import LockedError\n"
    "from onnxviz.locks import locked\n"
    "place, inside = Path(sys.argv[1]), sys.argv[2]\n"
    "end, held, refused = time.monotonic() + 2, 0, 0\n"
    "while time.monotonic() < end:\n"
    "    try:\n"
    "        with locked(place):\n"
    "            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))\n"
    "            time.sleep(0.0005)\n"
    "            os.unlink(inside)\n"
    "            held += 1\n"
    "    except LockedError:\n"
    "        refused += 1\n"
    "print(held, refused)\n"
)
"""Holds a lock again and again; a second holder at the same time would fail at a file that must not be there."""

PLACES = pytest.mark.parametrize("name", ["run", "part.atlas", "run/scan.atlas", "deep/er/run"])


@contextmanager
def _holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@PLACES
def test_a_second_process_is_refused_and_told_who_is_there(tmp_path, name):
    place = tmp_path / name
    with _holder(place) as process:
        with pytest.raises(LockedError) as caught, locked(place):
            pytest.fail("two were in")
        assert f"{place} is in use by process {process.pid} on {socket.gethostname()}, since 20" in str(
            caught.value
        )
        assert "Wait for it to end" in str(caught.value)
        process.communicate("")
        assert process.returncode == 0
    assert _files(tmp_path) == []
    with locked(place):
        assert lock_file(place).exists()
    assert _files(tmp_path) == []


@PLACES
def test_it_is_free_after_a_kill(tmp_path, name):
    place = tmp_path / name
    with _holder(place) as process:
        process.kill()
    assert lock_file(place).exists()
    with locked(place):
        pass
    assert not lock_file(place).exists()


def test_within_one_process_too(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(LockedError, match=f"process {os.getpid()} "):
        locked(tmp_path / "run").__enter__()
    with locked(tmp_path / "run"), locked(tmp_path / "other"), locked(tmp_path / "a.atlas"):
        pass


@pytest.mark.parametrize(("one", "other"), [("run", "run/scan.atlas"), ("run/scan.atlas", "run")])
def test_a_folder_and_its_scan_are_one_place(tmp_path, one, other):
    with locked(tmp_path / one), pytest.raises(LockedError, match=f"{re.escape(other)} is in use"):
        locked(tmp_path / other).__enter__()


def test_parts_in_one_folder_are_different_places(tmp_path):
    with locked(tmp_path / "1.atlas"), locked(tmp_path / "2.atlas"), locked(tmp_path):
        assert len(_files(tmp_path)) == 3
    assert _files(tmp_path) == []


def test_a_folder_whose_name_ends_in_atlas(tmp_path):
    (tmp_path / "x.atlas").mkdir()
    with locked(tmp_path / "x.atlas"):
        assert _files(tmp_path) == ["x.atlas", "x.atlas/.onnxviz.lock"]


def test_what_is_left_in_a_folder_stays(tmp_path):
    with locked(tmp_path / "a" / "b" / "run"):
        (tmp_path / "a" / "kept").write_text("")
        (tmp_path / "a" / "b" / "run").joinpath("result").write_text("")
    assert _files(tmp_path) == ["a", "a/b", "a/b/run", "a/b/run/result", "a/kept"]


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        pass
    assert _files(tmp_path) == ["run"]


def test_an_error_inside_gives_it_back(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "run"):
        raise ZeroDivisionError
    assert _files(tmp_path) == []


def test_a_folder_that_is_taken_away_meanwhile_does_no_harm(tmp_path):
    with locked(tmp_path / "run"):
        lock_file(tmp_path / "run").unlink()
        (tmp_path / "run").rmdir()
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b' {"process": 1', b" [1]", b' {"process": "x"}', b" \xff"]
)
def test_a_holder_that_does_not_tell_who_it_is(tmp_path, monkeypatch, content):
    with locked(tmp_path / "run"):
        lock_file(tmp_path / "run").write_bytes(content)
        with pytest.raises(LockedError, match="run is in use by another process"):
            locked(tmp_path / "run").__enter__()


@pytest.mark.parametrize("name", ["file/run", "file", "file/x.atlas", "file/deep/x.atlas"])
def test_below_a_file(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OnnxvizError, match="cannot be written to") as caught, locked(tmp_path / name):
        pytest.fail("locked")
    assert not isinstance(caught.value, LockedError)
    assert (tmp_path / "file").read_text() == "mine"
    assert _files(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["run", "part.atlas"])
def test_a_link_to_nowhere_in_the_place_of_the_lock(tmp_path, name):
    (tmp_path / "run").mkdir()
    lock_file(tmp_path / name).symlink_to(tmp_path / "no" / "where")
    with pytest.raises(OnnxvizError, match="cannot be written to"), locked(tmp_path / name):
        pytest.fail("locked")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks.os, "write", full)
    with pytest.raises(OnnxvizError, match="No space left"), locked(tmp_path / "run"):
        pytest.fail("locked")
    monkeypatch.undo()
    assert _files(tmp_path) == []
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    """It was there when it was to be made, and no longer when that was looked at."""
    mkdir, calls = Path.mkdir, []

    def made(path: Path, *arguments: object, **options: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", made)
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert len(calls) > 1


@pytest.mark.parametrize("name", ["run", "part.atlas"])
def test_there_are_never_two(tmp_path, name):
    """Also while the folder comes and goes with each of them."""
    command = [sys.executable, "-c", RACE, str(tmp_path / "new" / name), str(tmp_path / "inside")]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)
    ]
    held = refused = 0
    for racer in racers:
        stdout, stderr = racer.communicate(timeout=60)
        assert (racer.returncode, stderr) == (0, "")
        mine = [int(number) for number in stdout.split()]
        held, refused = held + mine[0], refused + mine[1]
    assert held > 50
    assert refused > 50
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
