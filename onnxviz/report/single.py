"""Render a report into one HTML file, to send: the index as it is, all other pages and the pictures behind it.

The store is a sequence of inert script elements, each with its path in the folder report: pages are the folder's own,
deflated, and pictures are the files, both in base64. So nothing of it is parsed or decoded before it is wanted, and no
name can break out. `static/single.js` shows them.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxviz.errors import UsageError
from onnxviz.report import format as shown
from onnxviz.report.data import ReportData
from onnxviz.report.render import (
    as_json,
    check_data,
    index_context,
    layer_pages,
    make_environment,
    pictures_of,
    static_names,
    static_text,
)

__all__ = ["check_file", "file_beside", "write_single"]

MARK = b'<meta name="generator" content="onnxviz single file">'
HEAD = 1024  # bytes of a file in which the mark is
ENDINGS = (".html", ".htm")
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Script:
    """A script that stands in the file, and its digest for the content security policy: no other one runs."""

    text: str
    digest: str


@dataclass(frozen=True)
class Part:
    """What the store holds of one file of the folder report."""

    path: str  # as the pages write it, seen from the index
    type: str
    content: str


def file_beside(folder: Path) -> Path:
    """The default place of a folder report's single file: its name with .html, beside it.

    Raises UsageError if the folder has no name, as / and .. have none.
    """
    if folder.name in ("", ".."):
        folder = folder.resolve()
    if not folder.name:
        raise UsageError(f"{folder}: cannot be the name of a file; name one with --out")
    return folder.with_name(f"{folder.name}.html")


def check_file(path: Path) -> None:
    """Refuse a file that a report must not be written to; cheap, so ask before a long scan.

    Raises UsageError if ``path`` does not end in .html or .htm, is a folder, lies below a file, or is a file that
    `write_single` did not write.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path}: a report in one file must end in .html; choose another --out")
    if path.is_dir():
        raise UsageError(f"{path}: found a folder, expected a file for the report; choose another --out")
    if above := next((one for one in path.parents if one.exists() and not one.is_dir()), None):
        raise UsageError(f"{path}: {above} is no folder; choose another --out")
    if path.exists():
        with path.open("rb") as stream:
            head = stream.read(HEAD)
        if MARK not in head:
            raise UsageError(
                f"{path}: is not a report of onnxviz in one file and would be lost; choose another --out"
            )


def write_single(data: ReportData, pictures: Path, out: Path, *, theme: str = "auto") -> None:
    """Write the whole report into the file ``out``, bit by bit; the pictures are read from ``pictures``.

    Raises ValueError for data that breaks the contract of `onnxviz.report.data`.
    """
    check_data(data)
    environment = make_environment(data, {}, theme)
    environment.globals["url"] = _postponed
    stream = environment.get_template("single.html").stream(
        index_context(data),
        style=static_text("report.css"),
        opening=_script("opening.js"),
        scripts=[_script("report.js"), _script("single.js")],
        store=_store(data, pictures, theme),
    )
    # A name from a foreign file system may hold what UTF-8 cannot: it must not cost the page.
    with out.open("wb") as file:
        stream.dump(file, encoding="utf-8", errors="replace")


def _postponed(path: str, root: str) -> str:
    """Instead of a picture's address: a picture of nothing that notes the path, so that no file is looked for."""
    return f"{PIXEL}#{shown.url(path, root)}"


def _script(name: str) -> Script:
    text = static_text(name)
    digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(text, f"sha256-{digest}")


def _store(data: ReportData, pictures: Path, theme: str) -> Iterator[Part]:
    """Yield the other pages, the facts and the pictures, one at a time: the pages first, for they are small."""
    environment = make_environment(data, static_names(), theme)
    for layer in data.layers:
        for path, text in layer_pages(environment, data, layer):
            yield _deflated(path, "text/html", text)
    yield _deflated("report.json", "application/json", as_json(data))
    for path in dict.fromkeys(pictures_of(data)):
        kind = TYPES[PurePosixPath(path).suffix]
        yield Part(shown.url(path, ""), kind, b64encode((pictures / path).read_bytes()).decode())


def _deflated(path: str, kind: str, text: str) -> Part:
    content = zlib.compress(text.encode("utf-8", errors="replace"), 9)
    return Part(path, kind, b64encode(content).decode())
