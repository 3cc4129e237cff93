"""Dataclasses out of JSON: what has another type than its field says is refused, and where."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest

from onnxviz.typed import typed


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    name: str | None


@dataclass(frozen=True)
class Outer:
    parts: tuple[Inner, ...]
    share: float
    on: bool
    note: str = ""


GOOD = {"parts": [{"size": [1, 2], "name": None}, {"size": [3, 4], "name": "b"}], "share": 1, "on": True}


def test_what_is_good_becomes_the_dataclass():
    found = typed(Outer, GOOD, "it")
    assert found == Outer((Inner((1, 2), None), Inner((3, 4), "b")), 1.0, True)
    assert isinstance(found.share, float)
    assert typed(Outer, asdict(found), "it") == found


BAD = {
    "no object": ([], "it is [], not an object"),
    "a field that is missing": ({k: GOOD[k] for k in ("parts", "on")}, "it has no share"),
    "a field too many": (GOOD | {"more": 1}, "it has 'more'"),
    "a text for a number": (GOOD | {"share": "1"}, "it.share is '1', not float"),
    "true for a number": (
        GOOD | {"parts": [{"size": [True, 2], "name": None}]},
        r"it.parts\[0\].size\[0\] is True",
    ),
    "a number for true": (GOOD | {"on": 1}, "it.on is 1, not bool"),
    "one value too many": (GOOD | {"parts": [{"size": [1, 2, 3], "name": None}]}, "size has 3 values, not 2"),
    "a number beyond 64 bits": (GOOD | {"parts": [{"size": [1, 2**63], "name": None}]}, r"size\[1\]"),
    "half of a character": (GOOD | {"note": "\ud800"}, "it.note is .* which is no text"),
    "null where it is not allowed": (GOOD | {"on": None}, "it.on is None"),
}


@pytest.mark.parametrize(("value", "reason"), BAD.values(), ids=BAD)
def test_what_is_not_is_named(value, reason):
    with pytest.raises(ValueError, match=reason.replace("it is []", r"it is \[\]")):
        typed(Outer, value, "it")
