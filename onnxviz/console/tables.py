"""Facts in columns, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxviz.check import Check

__all__ = ["check_lines", "short", "table"]


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of cells in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def short(name: str) -> str:
    """A name of at most 48 characters on one line: its middle left out, if need be."""
    plain = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)
    return plain if len(plain) <= 48 else f"{plain[:23]}…{plain[-24:]}"


def _listed(names: Sequence[str]) -> str:
    """The first ten names, and how many there are more."""
    more = len(names) - 10
    return ", ".join(map(short, names[:10])) + (f" and {more} more" if more > 0 else "")


def check_lines(found: Check) -> Iterator[str]:
    """A check for people to read."""
    opset = str(found.opset)
    if found.stated_opset != found.opset:
        opset = f"{found.stated_opset}, converted to {found.opset}"
    facts = [
        ("file", found.file),
        ("made by", found.producer or "unknown"),
        ("opset", opset),
        ("size", f"{found.nodes:,} nodes, {found.parameters:,} parameters"),
        ("inputs", "; ".join(found.inputs) or "none"),
        ("outputs", _listed(found.outputs)),
    ]
    if found.image and found.size:
        facts += [
            ("images", f"{found.image}, used at {found.size[0]}×{found.size[1]}"),
            ("preprocessing", f"{found.preprocess} ({found.preprocess_origin})"),
            ("method", "; ".join([found.method, *(f"{name}: {choice}" for name, choice in found.policies)])),
        ]
    yield from table(facts)
    if found.operators:
        yield ""
        head = ("operator", "nodes", "rule", "how it is reversed")
        rows = []
        for one in found.operators:
            how = f"{one} (first: {short(one.first)})" if one.problem else str(one)
            rows.append((one.op, str(one.count), one.rule or "–", how))
        yield from table([head, *rows])
    if found.layers:
        good = [layer for layer in found.layers if layer.problem is None]
        yield ""
        shown = ", ".join(short(layer.alias) for layer in good[:3]) + (" …" if len(good) > 3 else "")
        yield f"{len(found.layers)} layers, {len(good)} can be analysed" + (f" ({shown})" if good else "")
    for warning in found.warnings:
        yield f"Note: {warning}"
    yield ""
    yield found.verdict
