"""Several processes at one scan: what they scan, and a Dask cluster of them on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnxviz import analysis
from onnxviz.scans.saved import SavedScan
from tests.model.nets import small, write

ROOT = Path(__file__).parents[2]
BATCH = 4
IMAGES, BROKEN = 160, (5, 101)
SLOW = """
import sys, time
if "resource_tracker" not in " ".join(sys.orig_argv):
    import onnxviz.forward.scan as scan
    plain = scan._batch
    def slow(*arguments):
        time.sleep({seconds})
        return plain(*arguments)
    scan._batch = slow
"""
"""Found by Python when it starts: batches take a while to read."""


def data(folder: Path, images: int, broken: tuple[int, ...] = ()) -> None:
    """A model, small.onnx, and photos/ of its size; some of them cannot be read."""
    write(folder / "small.onnx", small())
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        path = folder / "photos" / f"{number:04}.png"
        if number in broken:
            path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        else:
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(path)


def scan(folder: Path, out: Path, images: object = "photos", **options: Any) -> SavedScan:
    """A scan of `data` in this process; ``images``: a path in the folder, or a URL."""
    where = str(images) if "://" in str(images) else folder / str(images)
    return analysis.scan(
        folder / "small.onnx",
        out,
        images=where,
        layers=["conv1", "conv2"],
        provider="cpu",
        batch_size=BATCH,
        **options,
    )


def environment(folder: Path | None = None, slow: float | str | None = None, **more: str) -> dict[str, str]:
    """Of a process that finds onnxviz; a ``slow`` one takes so many seconds to read a batch, or runs a text first."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}
    if folder is not None and slow is not None:
        place = folder / f"first-{abs(hash(slow))}"
        place.mkdir(exist_ok=True)
        text = slow if isinstance(slow, str) else SLOW.format(seconds=slow)
        (place / "sitecustomize.py").write_text(text)
        found["PYTHONPATH"] = os.pathsep.join([str(place), found["PYTHONPATH"]])
    return found


class Command:
    """``onnxviz scan`` of the data in a folder, as a process."""

    def __init__(self, folder: Path, out: Path, *options: str, env: dict[str, str], **more: Any) -> None:
        arguments = [*("scan", "small.onnx", "-l", "conv1", "-l", "conv2", "--provider", "cpu")]
        arguments += [*("--batch-size", str(BATCH), "--json-progress", "-o", str(out)), *options]
        if "--images" not in options:
            arguments += ["--images", "photos"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "onnxviz", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=env,
            **more,
        )
        self.events: list[dict[str, Any]] = []

    def until(self, done: int) -> None:
        """Wait until so many images are done, or the end."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == "progress" and self.events[-1]["done"] >= done:
                return

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for the end: exit code, and what it wrote to standard error."""
        out, errors = self.process.communicate(timeout=seconds)
        self.events += map(json.loads, out.splitlines())
        return self.process.returncode, errors

    def said(self, event: str, field: str = "text") -> list[Any]:
        """A field of all events of a kind."""
        return [one[field] for one in self.events if one["event"] == event]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still are."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """A Dask scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        self.log = (folder / "cluster.log").open("w")
        place = [*("--host", "127.0.0.1", "--port", "0"), *("--scheduler-file", str(self.file))]
        self.scheduler = self._started("scheduler", *place, "--no-dashboard")
        until(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        self.workers: list[subprocess.Popen[bytes]] = []

    def _started(
        self, command: str, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", command, *arguments],
            cwd=self.folder,
            env=env or self.env,
            stdout=self.log,
            stderr=self.log,
        )

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(json.loads(self.file.read_text())["address"])

    def add(
        self, *options: str, nanny: bool = False, threads: int = 1, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """One more worker."""
        more = ["--nthreads", str(threads), "--nanny" if nanny else "--no-nanny", "--no-dashboard"]
        more += ["--local-directory", str(self.folder / f"worker{len(self.workers)}"), *options]
        one = self._started("worker", "--scheduler-file", str(self.file), *more, env=env)
        self.workers.append(one)
        return one

    def joined(self, count: int) -> None:
        """Wait until the scheduler has so many workers."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=20)

    def kill(self, one: subprocess.Popen[bytes]) -> None:
        """Kill a worker; one with a nanny is begun anew by it."""
        inner = children(one.pid)
        for pid in inner or [one.pid]:
            os.kill(pid, signal.SIGKILL)
        if not inner:
            one.wait()

    def end(self) -> None:
        """Nothing is left of it."""
        for one in (*self.workers, self.scheduler):
            inner = children(one.pid)
            one.kill()
            one.wait()
            for pid in inner:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
        self.log.close()


@contextmanager
def cluster(folder: Path, env: dict[str, str]) -> Iterator[Cluster]:
    """A cluster without workers yet, until the block ends."""
    found = Cluster(folder, env)
    try:
        yield found
    finally:
        found.end()
