"""The templates, for pages and for notebooks."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnxviz.report import format as shown

if TYPE_CHECKING:
    from jinja2 import BytecodeCache, Environment
    from jinja2.bccache import Bucket

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
        bytecode_cache=_compiled(),
    )
    environment.filters.update(
        number=shown.number,
        integer=shown.integer,
        percent=shown.percent,
        size=shown.size,
        date=shown.date,
        bars=shown.bars,
    )
    return environment


@cache
def _compiled() -> BytecodeCache:
    """What templates are compiled to, as long as the process lives: a report opens them anew for each layer."""
    from jinja2 import BytecodeCache

    class Compiled(BytecodeCache):
        def __init__(self) -> None:
            self._codes: dict[str, bytes] = {}

        def load_bytecode(self, bucket: Bucket) -> None:
            if bucket.key in self._codes:
                bucket.bytecode_from_string(self._codes[bucket.key])

        def dump_bytecode(self, bucket: Bucket) -> None:
            self._codes[bucket.key] = bucket.bytecode_to_string()

    return Compiled()
