"""The table that is printed, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.timing import Row

__all__ = ["HEAD", "as_json", "as_markdown", "line", "write"]

HEAD = "| what | onnxviz | peer | measured (lowest–highest) | goal | met |\n| --- | --- | --- | --- | --- | --- |"


def line(row: Row) -> str:
    """A row of the Markdown table."""
    unit = row.goal.unit if row.goal else "×"
    measured = f"**{row.value:.3g}** {unit}".strip()
    if len(row.values) > 1:
        measured += f" ({min(row.values):.3g}–{max(row.values):.3g})"
    goal, met = ("", "") if row.goal is None else (str(row.goal), "yes" if row.goal.met(row.value) else "no")
    return f"| {row.what} | {row.ours} | {row.peer} | {measured} | {goal} | {met} |"


def as_markdown(facts: Sequence[str], rows: Sequence[Row]) -> str:
    """The facts as a list, and the table."""
    return "\n".join([*(f"- {fact}" for fact in facts), "", HEAD, *map(line, rows), ""])


def as_json(facts: Sequence[str], rows: Sequence[Row]) -> str:
    """The same for programs."""
    entries = [
        {
            "what": row.what,
            "ours": row.ours,
            "peer": row.peer,
            "values": row.values,
            "median": row.value,
            "goal": str(row.goal) if row.goal else None,
            "met": row.goal.met(row.value) if row.goal else None,
        }
        for row in rows
    ]
    return json.dumps({"facts": list(facts), "rows": entries}, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, facts: Sequence[str], rows: Sequence[Row]) -> None:
    """Write the table to a file: JSON if its name ends so, else Markdown."""
    text = as_json(facts, rows) if path.suffix == ".json" else as_markdown(facts, rows)
    path.write_text(text, encoding="utf-8")
