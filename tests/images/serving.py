"""A web server on this machine that serves bytes from memory, gives parts of them, counts, and fails when told to."""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit


class Served:
    """What a server has, how it behaves, and what it was asked for."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.ranges = True
        self.says_no_ranges = False
        self.sizes = True
        self.failures: dict[str, list[int | str]] = {}
        """Of a file the answers that come first: a status, "cut" (half of the body) or "drop" (no answer at all)."""
        self.refused: set[str] = set()
        """Files whose failures answer HEAD too."""
        self.authorizations: set[str | None] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        self.sent: Counter[str] = Counter()
        self.url = ""
        self.lock = threading.Lock()

    def forget(self) -> None:
        self.requests.clear()
        self.sent.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer takes 40 ms
    served: Served

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        served, name = self.served, unquote(urlsplit(self.path).path).lstrip("/")
        wanted = self.headers.get("Range")
        with served.lock:
            served.requests.append((self.command, self.path, wanted))
            served.authorizations.add(self.headers.get("Authorization"))
            failing = served.failures.get(name)
            failure = failing.pop(0) if failing and (body or name in served.refused) else None
        if failure == "drop":
            self.close_connection = True
            return
        data = served.files.get(name)
        if data is None and (name == "" or name.endswith("/")):
            data = self._listing(name)
        elif data is None and self._listing(f"{name}/") is not None:
            self.send_response(301)
            self.send_header("Location", quote(f"/{name}/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if isinstance(failure, int) or data is None:
            self._head(failure if isinstance(failure, int) else 404, 0)
            return
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "") if served.ranges else None
        size, sent = len(data), data
        if part:
            first, last = int(part[1]), min(int(part[2] or size), size - 1)
            sent = data[first : last + 1]
            self._head(206, len(sent), name, f"bytes {first}-{last}/{size}")
        else:
            self._head(200, size, name)
        if not body:
            return
        if failure == "cut":
            sent = sent[: len(sent) // 2]
            self.close_connection = True
        with served.lock:
            served.sent[name] += len(sent)
        try:
            self.wfile.write(sent)
        except ConnectionError:  # the client has what it wants
            self.close_connection = True

    def _head(self, status: int, length: int, name: str = "", part: str | None = None) -> None:
        self.send_response(status)
        if self.served.sizes or status != 200:
            self.send_header("Content-Length", str(length))
        else:
            self.close_connection = True
        kind = "text/html" if name.endswith("/") or name == "" else "application/octet-stream"
        self.send_header("Content-Type", "image/png" if name.startswith("picture") else kind)
        self.send_header("ETag", f'"{hash(self.served.files.get(name, b""))}"')
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        if part:
            self.send_header("Content-Range", part)
        if self.served.says_no_ranges:
            self.send_header("Accept-Ranges", "none")
        self.end_headers()

    def _listing(self, folder: str) -> bytes | None:
        below = {name.removeprefix(folder) for name in self.served.files if name.startswith(folder)}
        if not below:
            return None
        shown = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in below})
        links = "".join(f'<li><a href="{quote(name)}">{name}</a>' for name in shown)
        return f'<a href="?C=N;O=D">Name</a> <a href="../">up</a> <ul>{links}</ul>'.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *where: object) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*where)  # type: ignore[arg-type]


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Served]:
    """A server of these files, until the end of the ``with`` block."""
    served = Served(files)
    handler = type("Handler", (_Handler,), {"served": served})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
