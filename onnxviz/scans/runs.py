"""Scans that are kept on disk while they go on, and go on from there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from onnxviz.errors import AtlasError, DamagedError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.images.urls import masked
from onnxviz.scans.job import Job
from onnxviz.scans.saved import SUFFIX, Origin, SavedScan, versions

__all__ = ["SAVE_EVERY", "Run", "merge_parts", "scan_file"]

SAVE_EVERY = 60.0
"""Seconds between two times that a scan is saved."""

_NAME = "scan" + SUFFIX
Note = Callable[[str], None]


def scan_file(path: Path) -> Path:
    """The file of a scan: the path itself if it ends in .atlas, else one in that folder."""
    return path if path.suffix == SUFFIX and not path.is_dir() else path / _NAME


class Run:
    """A scan in a folder, or in a file whose name ends in .atlas; keep others out with `locks.locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = scan_file(path)
        self._before = self.file.with_name(f".{self.file.name}.before")
        self._saved: SavedScan | None = None

    def begin(
        self,
        job: Job,
        origin: Origin,
        range_: Range | None = None,
        shard: tuple[int, int] | None = None,
        *,
        restart: bool = False,
        replace_finished: bool = False,
        note: Note,
    ) -> SavedScan:
        """What there is to go on from: what an interrupted scan of the same job found, or nothing.

        Args:
            range_: the images to scan; all, if it is not given.
            shard: which they are of how many.
            restart: start over, whatever is there.
            replace_finished: start over where a finished scan of another job is, too.
            note: told what is gone on from, set aside or replaced.

        Raises:
            UsageError: the scan of another job is there; says in what it differs.
        """
        range_ = range_ or (0, job.images)
        empty = SavedScan(job, origin, range_, Part.empty(job.layers, job.top), (), shard)
        found = None if restart else self._found(note)
        if found is not None:
            in_place = found.origin.images == (origin.images and masked(origin.images))
            differences = list(found.job.differences(job, in_place=in_place))
            if not differences and found.range != range_:
                differences.append(f"it was for images {_shown(found.range)} (now {_shown(range_)})")
            if differences and not (replace_finished and found.whole):
                raise UsageError(
                    f"{self.path} holds another scan: {'; '.join(differences)}. "
                    "--restart replaces it; another place keeps both."
                )
            if differences:
                note(f"The finished scan in {self.path} is replaced: {'; '.join(differences)}.")
                found = None
        if restart:
            self.remove()
        self._saved = empty if found is None else replace(found, job=job, origin=origin, shard=shard)
        if self._saved.finished:
            self._forget_before()
        if found is not None and found.part.done:
            note(_progress(found, self.file))
            if versions() not in found.versions:
                note(f"It was made with {'; '.join(found.versions)}; here is {versions()}.")
        return self._saved

    @property
    def saved(self) -> SavedScan:
        """What was saved last, or what there was to begin with."""
        assert self._saved is not None
        return self._saved

    def save(self, part: Part) -> SavedScan:
        """Write what is known by now, and keep what was written before until the next time.

        Raises:
            AtlasError: it cannot be written; what was written before is still there.
        """
        self._saved = self.saved.now(part)
        # Another name for the former file, which the new one then takes the place of.
        with suppress(OSError):
            self._before.unlink(missing_ok=True)
            os.link(self.file, self._before)
        self._saved.write(self.file)
        if self._saved.finished:
            self._forget_before()
        return self._saved

    def put(self, saved: SavedScan) -> None:
        """Write a scan in the place of whatever is there.

        Raises:
            AtlasError: it cannot be written; what was there is still there.
        """
        saved.write(self.file)
        self._forget_before()

    def check_report(self, *, restart: bool) -> None:
        """Make sure that no report is there that a scan would not go with.

        Args:
            restart: forget the report's atlas.

        Raises:
            UsageError: there is one, and no scan of its own.
        """
        report = self.file.parent / "atlas.json"
        if self.file.name != _NAME or not report.exists():
            return
        if restart:
            report.unlink()
        elif not self.file.exists():
            raise UsageError(
                f"{self.path} holds a report of another run. Choose another place, or use --restart."
            )

    def check_finished(self, *, restart: bool) -> None:
        """Make sure that a scan that is here can go: a report of another one is to be written in its place.

        Raises:
            UsageError: it is not finished, and not to be forgotten (``restart``).
            AtlasError: it is damaged.
        """
        if self.file.exists() and not restart and not SavedScan.read(self.file).whole:
            raise UsageError(
                f"{self.path} holds a scan of its own that is not finished. Choose another place for the report; "
                "--restart forgets it."
            )

    def remove(self) -> None:
        """Forget the scan that is there."""
        for path in (self.file, self._before):
            path.unlink(missing_ok=True)

    def _forget_before(self) -> None:
        with suppress(OSError):
            self._before.unlink(missing_ok=True)

    def _found(self, note: Note) -> SavedScan | None:
        """The scan that is there; a damaged one is set aside, and the one saved before it takes its place.

        Raises:
            AtlasError: it cannot be read, or is of another version of onnxviz; it stays where it is.
        """
        for path in (self.file, self._before):
            if not path.exists():
                continue
            try:
                found = SavedScan.read(path)
                if path is not self.file:
                    path.rename(self.file)
                return found
            except DamagedError as error:
                aside = _free(self.file)
                path.rename(aside)
                note(f"{error} It was set aside as {aside.name}.")
        return None


@dataclass(frozen=True)
class _Holder:
    """What is to be said of a part when others do not fit to it."""

    path: Path
    done: tuple[Range, ...]
    left: int
    shard: tuple[int, int] | None


def merge_parts(paths: Sequence[Path]) -> SavedScan:
    """Put the parts of a scan together, one after the other, so that memory does not grow with their number.

    The result does not depend on their order: the part that begins first says where model and images were.

    Raises:
        UsageError: there are none.
        AtlasError: one is damaged or of another job; images are in two of them, or in none.
    """
    if not paths:
        raise UsageError("There is nothing to merge: name the parts of a scan.")
    whole: SavedScan | None = None
    first: SavedScan | None = None
    holders: list[_Holder] = []
    for path in paths:
        one = SavedScan.read(scan_file(path))
        if whole is None or first is None:
            whole = first = one
        else:
            if differences := whole.job.differences(one.job, in_place=False):
                raise AtlasError(f"{path} is of another scan than {paths[0]}: {'; '.join(differences)}.")
            if both := ranges.overlaps(whole.part.done, one.part.done):
                holder = next(other.path for other in holders if ranges.overlaps(other.done, both))
                raise AtlasError(
                    f"Images {_shown(both[0])} are both in {holder} and in {path}. Leave one out."
                )
            known = tuple(sorted({*whole.versions, *one.versions}))
            whole = replace(whole, part=whole.part.merge(one.part), versions=known)
            if one.range < first.range:
                first = replace(one, part=Part.empty((), 1))
        holders.append(_Holder(path, one.part.done, ranges.count(one.todo), one.shard))
    assert whole is not None and first is not None
    whole = replace(whole, job=first.job, origin=first.origin, range=(0, first.job.images), shard=None)
    if missing := ranges.missing(whole.part.done, whole.range):
        listed = _listed(missing)
        raise AtlasError(f"Images {listed} of {whole.job.images:,} are in no part{_why(holders)}.")
    return whole


def _why(holders: Sequence[_Holder]) -> str:
    """Which parts are unfinished, and which shards are not there."""
    reasons = [
        f"{one.path} is not finished ({one.left:,} images to go): run its scan again"
        for one in holders
        if one.left
    ]
    shards = {one.shard for one in holders}
    counts = {shard[1] for shard in shards if shard is not None}
    if None not in shards and len(counts) == 1:
        of = counts.pop()
        lost = [f"{number}/{of}" for number in range(1, of + 1) if (number, of) not in shards]
        if lost:
            more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
            reasons.append(f"missing: shard {', '.join(lost[:10])}{more}")
    return "".join(f"; {reason}" for reason in reasons[:5])


def _free(file: Path) -> Path:
    """A name for a damaged file that nothing has yet."""
    number = 1
    while (aside := file.with_name(f"{file.name}.damaged-{number}")).exists():
        number += 1
    return aside


def _progress(found: SavedScan, file: Path) -> str:
    done = ranges.count(found.part.done)
    of = found.range[1] - found.range[0]
    if found.finished:
        return f"Scanned before: {of:,} images, from {file}."
    return f"Goes on from {file}: {done:,} of {of:,} images are done."


def _shown(one: Range) -> str:
    """A range for people, whose last number is the last in it."""
    if one[0] >= one[1]:
        return "none"
    return f"{one[0]:,}" if one[1] == one[0] + 1 else f"{one[0]:,} to {one[1] - 1:,}"


def _listed(some: Sequence[Range]) -> str:
    more = len(some) - 5
    return ", ".join(map(_shown, some[:5])) + (f" and {more} more ranges" if more > 0 else "")
