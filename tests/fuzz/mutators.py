"""How a good file becomes a bad one: of any format, of JSON, of zip archives and of .npy arrays.

Every mutator takes the content and a `random.Random`, and says nothing of what should come of it.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

__all__ = ["EXTREME", "array_file", "json_text", "plain", "scan_file", "zip_file"]

EXTREME = (0, 1, -1, 2, 3, 7, 127, 255, 256, 65535, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
"""Numbers that programs trip over; all of them fit into 64 bits."""


def plain(data: bytes, rng: Random, most: int = 4) -> bytes:
    """One to ``most`` changes that know nothing of the format."""
    content = bytearray(data)
    for _ in range(rng.randint(1, most)):
        rng.choice(_PLAIN)(content, rng)
    return bytes(content)


def _span(content: bytearray, rng: Random, most: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.randint(1, most))


def _flip(content: bytearray, rng: Random) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _change(content: bytearray, rng: Random) -> None:
    if content:
        content[rng.randrange(len(content))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _truncate(content: bytearray, rng: Random) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _delete(content: bytearray, rng: Random) -> None:
    start, end = _span(content, rng)
    del content[start:end]


def _repeat(content: bytearray, rng: Random) -> None:
    start, end = _span(content, rng)
    content[end:end] = content[start:end] * rng.choice((1, 2, 50))


def _splice(content: bytearray, rng: Random) -> None:
    """A block of the file goes to another place in it."""
    start, end = _span(content, rng)
    place = rng.randrange(len(content) + 1)
    content[place : place + rng.choice((0, end - start))] = content[start:end]


def _insert(content: bytearray, rng: Random) -> None:
    place = rng.randrange(len(content) + 1)
    content[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 16)))


def _number(content: bytearray, rng: Random) -> None:
    """A length, size or offset: 2, 4 or 8 bytes in either order."""
    code = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(code)
    if len(content) >= size:
        place = rng.randrange(len(content) - size + 1)
        content[place : place + size] = struct.pack(code, rng.choice(EXTREME) % (1 << 8 * size))


_PLAIN: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_flip, _change, _truncate, _delete, _repeat, _splice, _insert, _number),
)

_STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        10**30,
        2**63,
        "",
        "x",
        "../../etc/passwd",
        "/tmp/x",
        "\x00",
        "é\ud800",
    ),
    *([], {}, [[]], [None], {"a": 1}, "<script>", "NaN", float("nan"), float("inf"), "pictures/../x.png"),
)


def json_text(data: bytes, rng: Random) -> bytes:
    """JSON of another shape: entries dropped, doubled, swapped, or of another type; or not JSON any more."""
    if rng.random() < 0.25:
        return plain(data, rng)
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return json.dumps(rng.choice(_STRANGE)).encode()
        box, key = rng.choice(places)
        change = rng.randrange(5)
        if change == 0:
            del box[key]
        elif change == 1:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                box[key] = copy.deepcopy(other[name])
        elif change == 2 and isinstance(box, list):
            box.insert(key, copy.deepcopy(box[key]))
        elif change == 3 and isinstance(box, dict):
            box[f"{key}_"] = box.pop(key)
        elif change == 4 and isinstance(box[key], (int, float)) and not isinstance(box[key], bool):
            box[key] = rng.choice((*EXTREME, 10**30, 1e308, -0.5, float("nan"), float("inf")))
        else:
            box[key] = copy.deepcopy(rng.choice(_STRANGE))
    return json.dumps(value).encode()


def _places(value: Any) -> Any:
    """Every (container, key or index) in a JSON value."""
    stack = [value]
    while stack:
        box = stack.pop()
        keys = list(box) if isinstance(box, dict) else range(len(box)) if isinstance(box, list) else ()
        for key in keys:
            yield box, key
            stack.append(box[key])


def array_file(data: bytes, rng: Random) -> bytes:
    """A .npy file: its header says something else, or its bytes are changed."""
    if rng.random() < 0.4 or not data.startswith(b"\x93NUMPY"):
        return plain(data, rng)
    end = 10 + struct.unpack("<H", data[8:10])[0]
    header = data[10:end].decode("latin1")
    change = rng.randrange(4)
    if change == 0:
        numbers = list(re.finditer(r"\d+", header[header.find("shape") :]))
        if numbers:
            found, start = rng.choice(numbers), header.find("shape")
            new = str(rng.choice(EXTREME))
            header = header[: start + found.start()] + new + header[start + found.end() :]
    elif change == 1:
        kinds = (
            "|O",
            "<f8",
            "<f4",
            "|u1",
            "|S0",
            "|V0",
            "<U9",
            "<M8[s]",
            "|b1",
            "<c8",
            ">i8",
            "|S9999999999",
        )
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(kinds)}'", header)
    elif change == 2:
        header = rng.choice(
            (
                "{}",
                "",
                "[" * 300,
                "{'descr': [('a','<f4')], 'fortran_order': False, 'shape': (2,), }",
                "9" * 5000,
            )
        )
    else:
        header = header.replace("False", rng.choice(("True", "None", "__import__('os').getcwd()")))
    encoded = header.encode("latin1", "replace")
    version = rng.choice((1, 1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", len(encoded))
    return b"\x93NUMPY" + bytes([version, 0]) + length + encoded + data[end:]


def zip_file(data: bytes, rng: Random, member: Callable[[bytes, Random], bytes] = plain) -> bytes:
    """A zip archive whose bytes, entries or a member's content are changed."""
    if rng.random() < 0.4:
        return plain(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.randint(1, 2)):
        if not entries:
            break
        place = rng.randrange(len(entries))
        name, content = entries[place]
        change = rng.randrange(6)
        if change == 0:
            del entries[place]
        elif change == 1:
            entries[place] = (
                rng.choice(("../x.png", "/x.png", "a\\b.png", "é" * 50, "", "x.npy", ".png")),
                content,
            )
        elif change == 2:
            entries[place] = (name, entries[rng.randrange(len(entries))][1])
        else:
            entries[place] = (name, member(content, rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in dict(entries).items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def scan_file(data: bytes, rng: Random) -> bytes:
    """A saved scan: as any file, or its content, behind a checksum that fits."""
    if rng.random() < 0.3:
        return plain(data, rng)
    head, digest, body = data.split(b"\n", 2)
    body = zip_file(body, rng, _scan_member)
    if rng.random() < 0.95:
        digest = hashlib.sha256(head + body).hexdigest().encode()
    return b"\n".join((head, digest, body))


def _scan_member(data: bytes, rng: Random) -> bytes:
    """An array, or the one that is JSON."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:  # changed before
        return plain(data, rng)
    if array.dtype != np.uint8 or not array.tobytes().startswith(b"{"):
        return array_file(data, rng)
    try:
        text = json_text(array.tobytes(), rng)
    except ValueError:  # likewise
        return array_file(data, rng)
    stream = io.BytesIO()
    np.save(stream, np.frombuffer(text, np.uint8))
    return stream.getvalue()
