"""Receptive fields: which part of the image every unit of a tensor sees.

Each operator maps the spans of its output to spans of its inputs (`pulls.pull`). Followed from a layer down to
the image, this gives the windows outside which a projection is zero (`onnxviz.reverse.engine`); followed from the
image up (`fields`), every unit's receptive field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxviz.model.pulls import pull
from onnxviz.model.soundness import understood
from onnxviz.model.spans import Span, Spans

if TYPE_CHECKING:
    from onnxviz.model.graph import Graph, Shape

__all__ = ["Field", "fields"]


@dataclass(frozen=True)
class Field:
    """What units of a tensor see of the image.

    ``axes``: for each of the image's two axes the tensor axis that moves over it and the span, in input pixels,
    with ``coord`` that axis; or None where every unit sees the whole image.
    """

    axes: tuple[Span | None, Span | None]


def fields(
    graph: Graph, image: str, image_axes: tuple[int | None, int | None], shapes: Mapping[str, Shape]
) -> dict[str, Field]:
    """The receptive field of every tensor that depends on ``image`` and has a shape.

    ``image_axes``: the image's axes for height and width, None where it has none.
    """
    height, width = (None if axis is None else Span(1, 0, 1, axis) for axis in image_axes)
    found = {image: Field((height, width))}
    for node in graph.nodes:
        sources = [(i, name) for i, name in enumerate(node.inputs) if name in found]
        if not sources or any(name and name not in shapes for name in node.inputs):
            continue
        for index, output in enumerate(node.outputs):
            if not output or output not in shapes or 0 in shapes[output]:
                continue
            unit = tuple(Span(1, 0, 1, axis) for axis in range(len(shapes[output])))
            with understood(node):
                pulled = pull(node, index, unit, shapes)
                seen = [_compose(found[name], pulled.inputs[i]) for i, name in sources]
            found[output] = Field(tuple(_merge([f.axes[k] for f in seen]) for k in (0, 1)))  # type: ignore[arg-type]
    return found


def _compose(field: Field, spans: Spans) -> Field:
    """Field of the units whose operator sees ``spans`` of a tensor with ``field``."""

    def one(seen: Span | None) -> Span | None:
        if seen is None or seen.coord is None or seen.coord >= len(spans):
            return None
        local = spans[seen.coord]
        if local.coord is None:
            return None
        return Span(
            seen.a * (local.size - 1) + seen.size, seen.a * local.b + seen.b, seen.a * local.a, local.coord
        )

    return Field((one(field.axes[0]), one(field.axes[1])))


def _merge(choices: Sequence[Span | None]) -> Span | None:
    known = [s for s in choices if s is not None]
    if len(known) < len(choices) or any((s.coord, s.a) != (known[0].coord, known[0].a) for s in known):
        return None
    begin = min(s.b for s in known)
    return replace(known[0], b=begin, size=max(s.b + s.size for s in known) - begin)
