"""Whether values out of a file are of the types that they are declared to be."""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["fits"]


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: a plain one, a tuple, a union, or a dataclass whose fields are such.

    A bool is no int; an int is a float, too, as in JSON.
    """
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            return all(fits(one, kinds[0]) for one in value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return isinstance(value, kind) and all(fits(getattr(value, name), one) for name, one in hints.items())
    return type(value) is kind or (kind is float and type(value) is int)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
