"""What a run took: images, what was skipped and why, time, rates and memory."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxviz.progress import SCANNING, Progress

__all__ = ["Phase", "Reason", "Recap", "Summary", "duration", "peak_memory", "rate"]

_MOST_REASONS = 3


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Args:
        done: steps done, ``resumed`` of them by a former run.
        total: of how many; 0 where nothing is counted.
        seconds: how long it took, or has taken so far.
    """

    name: str
    unit: str
    total: int
    done: int = 0
    resumed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Reason:
    """Why images were skipped: how many for this reason, and the first of them."""

    reason: str
    count: int
    first: str


@dataclass(frozen=True)
class Summary:
    """What a run took. Not part of a report: a report of the same job is the same.

    Args:
        complete: the run came to its end.
        seconds: in all, phases and what lies between them.
        peak_memory: bytes at most in memory; None where the system does not tell.
        peak_memory_children: likewise of the largest child process, 0 if there was none.
    """

    complete: bool
    seconds: float
    phases: tuple[Phase, ...]
    skipped: tuple[Reason, ...]
    peak_memory: int | None
    peak_memory_children: int | None

    @property
    def images(self) -> int:
        """How many images were scanned."""
        return sum(p.done for p in self.phases if p.name == SCANNING) - self.images_skipped

    @property
    def images_skipped(self) -> int:
        """How many images could not be read."""
        return sum(reason.count for reason in self.skipped)

    @property
    def images_per_second(self) -> float | None:
        """How fast the scan went through the images, skipped ones too; None without a scan."""
        return rate([p for p in self.phases if p.name == SCANNING])

    @property
    def projections(self) -> int:
        """How many projections were drawn."""
        return sum(p.done for p in self.phases if p.unit == "projections")

    @property
    def projections_per_second(self) -> float | None:
        """How fast they were drawn; None without any."""
        return rate([p for p in self.phases if p.unit == "projections"])

    def lines(self) -> list[str]:
        """The summary for people: what was done, and what it took."""
        found = []
        if any(p.name == SCANNING for p in self.phases):
            former = sum(p.resumed for p in self.phases if p.name == SCANNING)
            parts = [f"{self.images:,} images scanned, {self.images_skipped:,} skipped"]
            parts += [f"{_figure(speed)} images/s"] if (speed := self.images_per_second) else []
            parts += [f"{former:,} were there from a former run"] if former else []
            found.append("; ".join(parts))
        if speed := self.projections_per_second:
            found.append(f"{self.projections:,} projections drawn; {_figure(speed)} projections/s")
        parts = [self._part(word) for word in dict.fromkeys(p.name.partition(" ")[0] for p in self.phases)]
        rest = self.seconds - sum(p.seconds for p in self.phases)
        parts += [f"other work {duration(rest)}"] if parts and rest >= 0.05 else []
        times = f": {', '.join(parts)}" if parts else ""
        return [*found, f"{duration(self.seconds)}{times}{self._memory()}"]

    def skipped_lines(self) -> list[str]:
        """What was skipped, for people: the most frequent reasons, a line each."""
        shown = self.skipped if len(self.skipped) <= _MOST_REASONS else self.skipped[: _MOST_REASONS - 1]
        found = []
        for one in shown:
            if one.count == 1:
                found.append(f"skipped {one.first}: {one.reason}")
            else:
                found.append(f"skipped {one.count:,} × {one.reason}; the first: {one.first}")
        if rest := self.skipped[len(shown) :]:
            found.append(f"skipped {sum(r.count for r in rest):,} more for {len(rest):,} other reasons")
        return found

    def facts(self) -> dict[str, object]:
        """The summary for programs."""
        return {
            "complete": self.complete,
            "images": self.images,
            "skipped": self.images_skipped,
            "reasons": [{"reason": r.reason, "count": r.count, "first": r.first} for r in self.skipped],
            "images_per_second": _rounded(self.images_per_second),
            "projections": self.projections,
            "projections_per_second": _rounded(self.projections_per_second),
            "seconds": _rounded(self.seconds),
            "phases": [
                {
                    "phase": p.name,
                    "done": p.done,
                    "resumed": p.resumed,
                    "total": p.total,
                    "unit": p.unit,
                    "seconds": _rounded(p.seconds),
                }
                for p in self.phases
            ],
            "peak_memory": self.peak_memory,
            "peak_memory_children": self.peak_memory_children,
        }

    def _part(self, word: str) -> str:
        """The time of the phases whose names begin alike."""
        return f"{word.lower()} {duration(sum(p.seconds for p in self.phases if p.name.partition(' ')[0] == word))}"

    def _memory(self) -> str:
        if self.peak_memory is None:
            return ""
        child = (
            f" and {_megabytes(self.peak_memory_children)} in a child" if self.peak_memory_children else ""
        )
        return f"; at most {_megabytes(self.peak_memory)} of memory{child}"


class Recap(Progress):
    """Hears of a job's course and sums it up. ``phases``: those that are over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self.phases: list[Phase] = []
        self._current: tuple[str, str, int, float] | None = None
        self._done = self._resumed = 0
        self._skipped: dict[str, Reason] = {}
        _, self._children = peak_memory()  # of those that whoever this process was before may have started

    @property
    def seconds(self) -> float:
        """How long it is since the beginning."""
        return self._clock() - self._begun

    @property
    def current(self) -> Phase | None:
        """The phase that goes on, as it stands."""
        if self._current is None:
            return None
        name, unit, total, begun = self._current
        return Phase(name, unit, total, self._done, self._resumed, self._clock() - begun)

    def start(self, task: str, total: int, unit: str) -> None:
        """Take the time."""
        self.finish()
        self._current = (task, unit, total, self._clock())
        self._done = self._resumed = 0

    def resumed(self, count: int) -> None:
        """Count steps of a former run."""
        self._done += count
        self._resumed += count

    def advance(self, count: int = 1) -> None:
        """Count steps."""
        self._done += count

    def skipped(self, name: str, reason: str) -> None:
        """Count a skipped image with others of the same reason, whatever numbers stand in it."""
        key = re.sub(r"\d[\d,.]*", "#", reason)
        former = self._skipped.get(key, Reason(reason, 0, name))
        self._skipped[key] = Reason(former.reason, former.count + 1, former.first)

    def finish(self) -> None:
        """Take the phase's time."""
        if phase := self.current:
            self.phases.append(phase)
        self._current = None

    def summary(self, *, complete: bool) -> Summary:
        """What there is until now; the phase that goes on is in it."""
        phases = [*self.phases, *([phase] if (phase := self.current) else [])]
        reasons = sorted(self._skipped.values(), key=lambda r: -r.count)
        own, children = peak_memory()
        if children == self._children and children is not None:
            children = 0
        return Summary(complete, self.seconds, tuple(phases), tuple(reasons), own, children)


def rate(phases: Sequence[Phase]) -> float | None:
    """Steps a second over some phases, without those of a former run; None if there were none."""
    steps, seconds = sum(p.done - p.resumed for p in phases), sum(p.seconds for p in phases)
    return steps / seconds if steps and seconds else None


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 0.4 s, 12 s, 3 min 20 s, 5 h 3 min, 2 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {small}"
    return f"{whole} s"


def peak_memory() -> tuple[int | None, int | None]:
    """Bytes that this process had in memory at most, and its largest child process that has ended.

    None on Windows. On Linux it is not ``ru_maxrss``, which a process takes over from the one that started it.
    """
    if sys.platform == "win32":
        return None, None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        own = int(found[1]) * 1024
    return own, children


def _figure(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
