"""The templates, for pages and for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxviz.report import format as shown

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["open_templates"]


def open_templates() -> Environment:
    """The templates with the filters that they use; what is undefined is an error, and all text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("onnxviz.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=shown.number,
        integer=shown.integer,
        percent=shown.percent,
        size=shown.size,
        date=shown.date,
    )
    return environment
