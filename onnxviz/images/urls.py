"""Places named as fsspec names them, and how to show them without their secrets."""

from __future__ import annotations

import re

__all__ = ["is_url", "masked"]

_URL = re.compile(r"(?:[\w+.-]+::)*[\w+.-]{2,}://")  # one letter is a drive of Windows


def is_url(place: object) -> bool:
    """Whether this names a place as fsspec does: ``s3://bucket/photos``, ``zip://*.jpg::https://…``."""
    return isinstance(place, str) and _URL.match(place) is not None


def masked(text: str) -> str:
    """A text without the secrets of the URLs in it: user, password and query, where keys and tokens stand."""
    text = re.sub(r"(\w://)[^/\s'\"]*@", r"\1***@", text)
    return re.sub(r"(\w://[^\s?'\"<>]*)\?(?:[^\s'\"<>:)]|:(?=[^\s:])|\)(?=\S))+", r"\1?***", text)
