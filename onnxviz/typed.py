"""Dataclasses out of JSON that others may have changed: every value is of the type that its field says."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["typed"]


def typed(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as a type: a dataclass, a tuple, an optional type, a text or a number.

    Args:
        where: names the value in errors.

    Raises:
        ValueError: it is of another type; says where, what was found and what was expected.
    """
    if isinstance(kind, types.UnionType):
        options = get_args(kind)
        if value is None and types.NoneType in options:
            return None
        (kind,) = (option for option in options if option is not types.NoneType)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    # True is an int to Python; numbers beyond 64 bits are none that were written.
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or abs(value) >= 2**63)):
        raise ValueError(f"{where} is {_short(value)}, not {kind.__name__}")
    if isinstance(value, str) and not _is_text(value):
        raise ValueError(f"{where} is {_short(value)}, which is no text")
    return value


def _is_text(value: str) -> bool:
    """Whether it can be written: JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_short(value)}, not an object")
    hints = _hints(kind)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{where} has {_short(min(unknown))}, which it does not know")
    found = {}
    for one in fields(kind):
        if one.name in value:
            found[one.name] = typed(hints[one.name], value[one.name], f"{where}.{one.name}")
        elif one.default is MISSING:
            raise ValueError(f"{where} has no {one.name}")
    return kind(**found)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} is {_short(value)}, not a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} values, not {len(kinds)}")
    return tuple(
        typed(kind, one, f"{where}[{i}]") for i, (kind, one) in enumerate(zip(kinds, value, strict=True))
    )


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
