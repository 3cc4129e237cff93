"""A reader of pickled NumPy arrays in plain containers that cannot run code.

`pickle.Unpickler` with a restricted ``find_class`` still calls what it admits with arguments from the file,
and a hostile file can make it allocate or hash without end. Here the standard library's disassembler
(`pickletools.genops`) only names the instructions, and this module gives a meaning to the few that a writer
of arrays uses, from Python 2's protocol 2 to protocol 4. NumPy's own names are recognised, never imported or
called for the file: an array is built from its shape, type and bytes after these were found to agree.
"""

from __future__ import annotations

import math
import pickletools
import re
from enum import Enum
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import WeightsError

__all__ = ["unpickle"]

# A dict of 16 arrays takes some 500 instructions; one byte of file can ask for 64 bytes of memory.
_MOST_INSTRUCTIONS = 20_000

_LITERALS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Name(Enum):
    """What a pickle of arrays may name."""

    RECONSTRUCT = "an empty array, to be filled"
    NDARRAY = "the array type"
    DTYPE = "an element type"
    SCALAR = "a NumPy scalar"
    ENCODE = "bytes, as Python 3 writes them for Python 2"
    BYTES = "empty bytes, as Python 3 writes them for Python 2"


_NAMES = {
    "numpy ndarray": _Name.NDARRAY,
    "numpy dtype": _Name.DTYPE,
    "_codecs encode": _Name.ENCODE,
    "__builtin__ bytes": _Name.BYTES,
    "numpy.core.multiarray _reconstruct": _Name.RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _Name.RECONSTRUCT,
    "numpy.core.multiarray scalar": _Name.SCALAR,
    "numpy._core.multiarray scalar": _Name.SCALAR,
}


class _RefusedError(Exception):
    """The pickle holds something else than arrays in plain containers; the message says what."""


class _Mark:
    """Where the items of a list, tuple or dict begin on the stack."""


_MARK = _Mark()


class _Type:
    """An element type being read: its code (``f4``; ``O`` for objects) and byte order."""

    def __init__(self, code: object) -> None:
        text = _text(code)
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|O[48]?", text):
            raise _RefusedError(f"arrays of type {text[:20]!r}")
        self.code = text
        self.order = "="

    def build(self, state: object) -> None:
        match state:
            case (int(), str() | bytes() as order, None, None, None, *_) if _text(order) in (
                "<",
                ">",
                "=",
                "|",
            ):
                self.order = _text(order)
            case _:
                raise _RefusedError("an element type with parts")

    @property
    def holds_objects(self) -> bool:
        return self.code.startswith("O")

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """An array being read. ``value`` is an array, or of a 0-dimensional array of objects the one object."""

    def __init__(self) -> None:
        self.value: object = None

    def build(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _Type() as kind, bool() | int() as fortran, data):
                pass
            case _:
                raise _RefusedError("an array without shape, type and data")
        if not all(isinstance(size, int) and size >= 0 for size in shape) or len(shape) > 8:
            raise _RefusedError(f"an array of shape {str(shape)[:60]}")
        if kind.holds_objects:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise _RefusedError(f"an array of objects of shape {str(shape)[:60]}")
            self.value = data[0]
            return
        content = _bytes(data)
        if math.prod(shape) * kind.dtype.itemsize != len(content):
            raise _RefusedError(
                f"an array of shape {str(shape)[:60]} and type {kind.code} in {len(content):,} bytes"
            )
        flat = np.frombuffer(content, kind.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def unpickle(stream: BytesIO, source: str) -> object:
    """Read one pickle of NumPy arrays in dicts, lists and tuples, running nothing from it.

    Strings of Python 2 are read as latin1. A 0-dimensional array of objects (what `numpy.save` makes of a
    dict) comes back as its object. ``stream`` stands at the first instruction. ``source`` names the file.

    Raises `WeightsError` for a pickle that holds anything else, or that is damaged.
    """
    try:
        return _plain(_run(stream))
    except _RefusedError as error:
        raise WeightsError(
            f"{source}: the pickle in it holds {error}; expected NumPy arrays in plain dicts and lists only. "
            "Nothing was run; do not open the file with other tools unless you trust where it comes from."
        ) from error
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise WeightsError(
            f"{source}: the pickle in it is damaged or cut off ({str(error)[:120]}). Fetch the file again."
        ) from error


def _run(stream: BytesIO) -> object:
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count == _MOST_INSTRUCTIONS:
            raise _RefusedError(f"more than {count:,} instructions")
        name = opcode.name
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_pop(stack, int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(_pop_to_mark(stack)))
            case "APPEND":
                _extend(stack, _pop(stack, 1))
            case "APPENDS":
                _extend(stack, _pop_to_mark(stack))
            case "SETITEM":
                _update(stack, _pop(stack, 2))
            case "SETITEMS":
                _update(stack, _pop_to_mark(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(str(argument)))
            case "STACK_GLOBAL":
                module, attribute = _pop(stack, 2)
                stack.append(_named(f"{module} {attribute}"))
            case "REDUCE":
                function, arguments = _pop(stack, 2)
                stack.append(_made(function, arguments))
            case "BUILD":
                (state,) = _pop(stack, 1)
                if not isinstance(stack[-1], _Array | _Type):
                    raise _RefusedError("an object with a state of its own")
                stack[-1].build(state)
            case _ if name in _LITERALS:
                stack.append(_CONSTANTS.get(name, argument))
            case _:
                raise _RefusedError(f"the instruction {name}")
    raise ValueError("no end")


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("an instruction without its operands")
    items = stack[-count:]
    del stack[-count:]
    if any(item is _MARK for item in items):
        raise ValueError("a mark where an operand should be")
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _extend(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("items for something that is no list")
    stack[-1].extend(items)


def _update(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], dict) or len(items) % 2:
        raise ValueError("items for something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing nested tuples can take exponential time.
        if not isinstance(key, str | bytes | int):
            raise _RefusedError("a dict whose keys are no names")
        stack[-1][key] = value


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise _RefusedError(f"a call for {name.replace(' ', '.')[:80]}")
    return _NAMES[name]


def _made(function: object, arguments: object) -> object:
    match function, arguments:
        case _Name.RECONSTRUCT, (_Name.NDARRAY, tuple(), str() | bytes()):
            return _Array()
        case _Name.DTYPE, (str() | bytes() as code, *_):
            return _Type(code)
        case _Name.SCALAR, (_Type() as kind, str() | bytes() as data) if not kind.holds_objects:
            content = _bytes(data)
            if len(content) != kind.dtype.itemsize:
                raise ValueError("a scalar whose bytes do not fit its type")
            return np.frombuffer(content, kind.dtype)[0]
        case _Name.ENCODE, (str() as text, "latin1" | "latin-1"):
            return _bytes(text)
        case _Name.BYTES, ():
            return b""
    raise _RefusedError("a call that makes no array")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise _RefusedError("an element type without a name")
    return value


def _bytes(value: object) -> bytes:
    """Return the bytes that Python 2 wrote as a string, or Python 3 as bytes."""
    if isinstance(value, str):
        return value.encode("latin1")
    if not isinstance(value, bytes):
        raise _RefusedError("an array whose data are no bytes")
    return value


def _plain(value: object) -> object:
    """Replace arrays being read by what they are, in the two levels that a dict of lists of arrays has."""
    top = value.value if isinstance(value, _Array) else value
    if isinstance(top, dict):
        return {key: _entries(item) for key, item in top.items()}
    return _entries(top)


def _entries(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_leaf(item) for item in value]
    return _leaf(value)


def _leaf(value: object) -> object | NDArray[Any]:
    return value.value if isinstance(value, _Array) else value
