"""The folder of a report: what onnxviz wrote there, so that old pages go and nothing else does.

`.onnxviz-report.json` lists the files. It is written before the first page and names old and new files until
the last stale one is gone: an interrupted run leaves nothing behind that the next could not remove.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.files import writing

__all__ = ["MANIFEST", "Folder", "check_folder"]

MANIFEST = ".onnxviz-report.json"
FORMAT = 1


def check_folder(out: Path) -> None:
    """Refuse a folder that a report must not be written to; cheap, so ask before a long scan.

    Raises UsageError if ``out`` is a file, or holds an index.html that no report wrote; OnnxvizError if its
    list of files is damaged.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: found a file, expected a folder for the report; choose another --out")
    if (out / "index.html").exists() and "index.html" not in _listed(out):
        raise UsageError(
            f"{out}: its index.html is not a report of onnxviz and would be lost; choose another --out"
        )


class Folder:
    """Writes a report's files, each in one step, and removes those of a former report at the end."""

    def __init__(self, out: Path) -> None:
        check_folder(out)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self._old = _listed(out)
        self._drawing = _content(out).get("drawing")
        self._new: set[str] = set()
        self._made: set[Path] = {out}

    def expect(self, paths: Iterable[str]) -> None:
        """Note files that belong to this report, about to be written here or written by others."""
        self._new.update(paths)
        self._write_manifest(self._old | self._new)

    def begin(self, drawing: str) -> bool:
        """Note which pictures are being drawn here, until `finish`; whether a run that drew the same was cut off here.

        What such a run has drawn can be used.
        """
        before, self._drawing = self._drawing, drawing
        self._write_manifest(self._old | self._new)
        return before == drawing

    def adopt(self, paths: Iterable[str]) -> None:
        """Keep files of the former report that this one uses again."""
        self.expect(self._old.intersection(paths))

    def drop(self, folder: str) -> None:
        """Remove the former report's files in a folder of the report, now: listed files only."""
        gone = {path for path in self._old if path.startswith(f"{folder}/")}
        for path in sorted(gone):
            self._remove(path)
        self._old -= gone

    def write(self, path: str, text: str) -> None:
        """Write a file that was expected before; it is there whole or not at all."""
        if path not in self._new:
            raise ValueError(f"{path!r} was not announced with expect()")
        self._replace(path, text)

    def finish(self) -> None:
        """Remove what a former report left behind: listed files only, never through a link."""
        for path in sorted(self._old - self._new):
            self._remove(path)
        self._drawing = None  # all is drawn: the next run draws it anew
        self._write_manifest(self._new)

    def _remove(self, path: str) -> None:
        """Remove a file of the report, never through a link, and the folders that are empty then."""
        target = self.out / path
        if _inside(path) and target.parent.resolve() == self.out.resolve() / PurePosixPath(path).parent:
            target.unlink(missing_ok=True)
            self._prune(target.parent)

    def _write_manifest(self, files: Iterable[str]) -> None:
        content: dict[str, object] = {"format": FORMAT, "files": sorted(files)}
        if self._drawing:
            content["drawing"] = self._drawing
        self._replace(MANIFEST, json.dumps(content, indent=0))

    def _replace(self, path: str, text: str) -> None:
        target = self.out / path
        partial = target.with_name(f".{target.name}.part")
        with writing(target):
            if target.parent not in self._made:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(target.parent)
            try:
                # A name from a foreign file system may hold what UTF-8 cannot: it must not cost the page.
                partial.write_bytes(text.encode("utf-8", errors="replace"))
                os.replace(partial, target)  # noqa: PTH105 (Path.replace builds a new Path a file)
            except OSError:
                partial.unlink(missing_ok=True)
                raise

    def _prune(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # not empty: someone else's files
            while folder != self.out:
                folder.rmdir()
                folder = folder.parent


def _listed(out: Path) -> set[str]:
    """The files that a former report lists."""
    return set(_content(out).get("files", ()))


def _content(out: Path) -> dict[str, Any]:
    """What the manifest of a former report says; nothing if there is none."""
    manifest = out / MANIFEST
    if not manifest.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(manifest.read_bytes())
        if content["format"] != FORMAT or not all(isinstance(path, str) for path in content["files"]):
            raise ValueError("not the expected list")
    except (ValueError, KeyError, TypeError) as error:
        raise OnnxvizError(
            f"{manifest}: expected the list of a report's files, found {error}; "
            "delete the folder's old report or choose another --out"
        ) from error
    return content


def _inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not PurePosixPath(path).is_absolute() and ".." not in parts and "\\" not in path
