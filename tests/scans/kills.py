"""``python -m tests.scans.kills``: end real runs at random moments, let them go on, and compare with one left alone."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxviz.forward import ranges
from onnxviz.scans.saved import SavedScan
from tests.model.nets import small, write

ROOT = Path(__file__).parents[2]
CODES = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}
INTERVAL = 0.1
"""Seconds between two times that a scan is saved."""
_SLACK = 1.0
"""Seconds that saving itself, and telling how far a scan is, may take on a busy machine."""
_KEPT = {"scan.atlas", ".scan.atlas.before"}
_LEFT = {*_KEPT, ".scan.atlas.part", ".onnxviz.lock"}
"""What there may be of an unfinished scan; and after a kill."""


@dataclass(frozen=True)
class End:
    """How a run ended: in which phase, with which exit code, and how many images were saved by then."""

    phase: str
    code: int
    saved: int


class Trial:
    """Runs of one command on one data set.

    Args:
        folder: for everything.
        command: ``scan`` or ``analyze``.
        options: more of the command line.
    """

    def __init__(self, folder: Path, command: str, images: int, options: Sequence[str] = ()) -> None:
        self._folder, self._command, self._options = folder, command, options
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "small.onnx", small())
        np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 255, (images, 12, 12, 3), np.uint8))
        self._homes = 0
        whole = self.home()
        begun = time.monotonic()
        process = self._start(whole, stdout=subprocess.PIPE)
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
        self.seconds = float(list(_events(stdout))[-1]["elapsed"])
        self.start = time.monotonic() - begun - self.seconds
        self.whole = _contents(whole / "out")

    def home(self) -> Path:
        """A new folder to run in: the command line is the same in each."""
        self._homes += 1
        home = self._folder / f"{self._homes}"
        home.mkdir()
        return home

    def ended(self, home: Path, name: str, after: float, *, early: bool) -> End:
        """Start the command, or let it go on, and send it a signal so many seconds after it has said something.

        Args:
            early: after it was started instead, which is only for SIGKILL: at others Python itself has other exit codes
                while it starts.

        Raises:
            AssertionError: it ended as it must not, or more is lost than may be.
        """
        with (home / "events").open("w+") as events:
            process = self._start(home, stdout=events)
            if not early:
                while not (home / "events").stat().st_size and process.poll() is None:
                    time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
            process.send_signal(getattr(signal, name))
            _, stderr = process.communicate(timeout=60)
            events.seek(0)
            told = list(_events(events.read()))
        code = process.returncode
        if (name, code) == ("SIGINT", -2):
            # A KeyboardInterrupt inside of exec(), as in what defines a dataclass: then Python ends by SIGINT whatever
            # the exit code was. A shell shows 130 for both.
            code = 130
        if told and told[-1]["event"] == "result" and code != -9:
            code = 0  # it was over, and only Python was still to end
            stderr = ""
        assert "Traceback" not in stderr, stderr
        assert code in (0, CODES[name]), (code, stderr, told[-4:])
        last = told[-1] if told else {}
        phase = str(next((one["phase"] for one in reversed(told) if "phase" in one), "before opening"))
        out = home / "out"
        file = out / "scan.atlas"
        if self._command == "scan" and out.exists():
            there = {path.name for path in out.iterdir()}
            assert there <= (_LEFT if code == -9 else _KEPT), there
        saved = ranges.count(SavedScan.read(file).part.done) if file.exists() else 0
        # By SIGKILL what was done within the last interval is lost, otherwise nothing.
        until = float("inf") if code != -9 else last.get("elapsed", 0) - INTERVAL - _SLACK
        done = [e["done"] for e in told if e.get("phase") == "Scanning" and e["elapsed"] <= until]
        assert saved >= max(done, default=0), (saved, done[-1], code)
        return End(phase, code, saved)

    def finished(self, home: Path) -> None:
        """Let it go on to the end, and compare what there is then.

        Raises:
            AssertionError: it is not what an uninterrupted run leaves.
        """
        process = self._start(home)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        found = _contents(home / "out")
        assert found.keys() == self.whole.keys(), found.keys() ^ self.whole.keys()
        other = [name for name, content in self.whole.items() if found[name] != content]
        assert not other, other
        shutil.rmtree(home)

    def _start(self, home: Path, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "onnxviz",
            self._command,
            "../small.onnx",
            "-l",
            "conv1",
            "-l",
            "conv2",
        ]
        command += ["--images", "../x.npy", "--out", "out", "--batch-size", "8", "--provider", "cpu"]
        command += ["--save-every", str(INTERVAL), "--json-progress", *self._options]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            command,
            cwd=home,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            # a shell lets what it starts in the background ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def campaign(trial: Trial, name: str, count: int, seed: int) -> Iterator[End]:
    """So many runs that a signal ended, at random moments; each goes on from the one before until it is finished.

    Raises:
        AssertionError: something was not as it must be.
    """
    rng = random.Random(seed)
    home, tries = trial.home(), 0
    while count:
        early = name == "SIGKILL" and rng.random() < 0.2
        end = trial.ended(home, name, rng.uniform(0, trial.start if early else trial.seconds), early=early)
        tries += 1
        if end.code:
            count -= 1
            yield end
        if end.code == 0 or tries == 8:  # so that early phases have their share
            trial.finished(home)
            home, tries = trial.home(), 0
    trial.finished(home)


def _events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # the last one, cut off by a kill
            yield json.loads(line)


def _contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder; the moment at which a report was made is left out of them."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    made = re.compile(rb'("date": "|<time datetime=")[0-9T:+-]+(">[^<]* UTC</time>|")')
    return {n: made.sub(b"now", c) if n.endswith((".html", ".json")) else c for n, c in found.items()}


def main() -> int:
    """Run campaigns and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.scans.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="ends by each signal, for each command")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--signal", choices=list(CODES), action="append", help="only this one; repeats")
    parser.add_argument(
        "--command", choices=("scan", "analyze"), action="append", help="only this one; repeats"
    )
    parser.add_argument("--workers", type=int, help="scan in so many processes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = ["--workers", str(given.workers)] if given.workers else []
    print(f"{'command':9}{'signal':9}{'ends':>5}  {'images saved':32}in the phases")
    with tempfile.TemporaryDirectory() as folder:
        for command in given.command or ("scan", "analyze"):
            trial = Trial(Path(folder) / command, command, given.images, options)
            for name in given.signal or CODES:
                ends = list(campaign(trial, name, given.count, given.seed))
                phases = Counter(end.phase for end in ends)
                saved = sorted(end.saved for end in ends)
                shown = f"{saved[0]:,} to {saved[-1]:,}, half {saved[len(saved) // 2]:,}"
                where = ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
                print(f"{command:9}{name:9}{len(ends):5}  {shown:32}{where}", flush=True)
    print("Every run went on to the same bytes as one that nobody ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
