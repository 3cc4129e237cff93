"""Patterns of names: ``train-{0000..0099}.tar``, ``{cat,dog}/*.jpg``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["braces", "is_glob", "is_pattern", "leading", "literal_folder", "matcher"]

MOST = 100_000  # names that braces may stand for

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_WILD = re.compile(r"[*?\[]")


def braces(pattern: str) -> list[str]:
    """Every name that a pattern with braces stands for, in order: ``{08..10}`` is 08, 09, 10, ``{a,b}`` is a, b.

    Raises:
        ValueError: too many; the message does not name the pattern.
    """
    found, following = [""], 0
    for match in _BRACES.finditer(pattern):
        choices = list(_choices(match, MOST))
        if len(found) * len(choices) > MOST:
            raise ValueError(f"{match[0]} stands for more than {MOST:,} names; give a folder or a glob")
        between = pattern[following : match.start()]
        found = [f"{before}{between}{choice}" for before in found for choice in choices]
        following = match.end()
    return [before + pattern[following:] for before in found]


def _choices(match: re.Match[str], most: int) -> Iterator[str]:
    first, last, listed = match.groups()
    if listed is not None:
        yield from listed.split(",")
        return
    # Long digits are not given to int(), which refuses them.
    if max(len(first), len(last)) > 18 or abs(int(last) - int(first)) >= most:
        raise ValueError(f"{match[0]} stands for more than {most:,} names; give a folder or a glob")
    step = 1 if int(first) <= int(last) else -1
    padded = first.startswith("0") or last.startswith("0")
    width = max(len(first), len(last)) if padded else 0
    for number in range(int(first), int(last) + step, step):
        yield f"{number:0{width}}"


def is_pattern(text: str, *, queries: bool = False) -> bool:
    """Whether a name stands for others; where there are ``queries``, a question mark begins one."""
    return bool(_BRACES.search(text)) or is_glob(text, queries=queries)


def is_glob(text: str, *, queries: bool = False) -> bool:
    """Whether there is one of ``*?[`` in a name; where there are ``queries``, a question mark begins one."""
    return bool(_WILD.search(text.partition("?")[0] if queries else text))


def literal_folder(pattern: str) -> str:
    """The folder before the first part that is a pattern, as it is written, without a slash at the end."""
    match = re.search(r"[*?\[{]", pattern)
    return pattern if match is None else pattern[: match.start()].rpartition("/")[0]


def matcher(pattern: str) -> re.Pattern[str]:
    """What a name must match in full: ``*`` and ``?`` stay within a folder, ``**`` goes through all below.

    A name without wildcards also stands for all that is in the folder of that name, and none at all for everything.
    """
    parts = pattern.strip("/").split("/")
    pieces = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            pieces.append(".*" if last else "(?:.*/)?")
        else:
            pieces.append(_part(part) + ("" if last else "/"))
    expression = "".join(pieces)
    return re.compile(rf"(?s:{expression}(?:/.*)?)" if expression else "(?s:.*)")


def leading(pattern: str) -> Callable[[str], bool]:
    """Whether a folder of some name can hold what matches a pattern, in it or further below."""
    parts = pattern.strip("/").split("/")
    fixed = parts[: parts.index("**")] if "**" in parts else parts
    compiled = [re.compile(_part(part), re.DOTALL) for part in fixed]

    def leads(folder: str) -> bool:
        return all(part.fullmatch(name) for part, name in zip(compiled, folder.split("/"), strict=False))

    return leads


def _part(part: str) -> str:
    pieces = []
    for piece in re.findall(r"\[[!^]?\]?[^\]]*\]|.", part, re.DOTALL):
        if piece == "*":
            pieces.append("[^/]*")
        elif piece == "?":
            pieces.append("[^/]")
        elif len(piece) > 1:
            inner = re.sub(r"([\\\[&~|])", r"\\\1", piece[1:-1])
            pieces.append(f"[^{inner[1:]}]" if inner[:1] in ("!", "^") else f"[{inner}]")
        else:
            pieces.append(re.escape(piece))
    return "".join(pieces)
