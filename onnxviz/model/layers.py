"""Layers: the nodes that can be looked at, their names and aliases, and finding one by whatever name."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxviz.errors import LayerNotFoundError
from onnxviz.model.graph import REAL_VALUES
from onnxviz.model.spans import Span

if TYPE_CHECKING:
    from onnxviz.model.geometry import Field
    from onnxviz.model.graph import Constants, Graph, Node, Shape

__all__ = ["PLUMBING", "Layer", "find_layer", "find_layers", "list_layers"]

_KINDS: Mapping[str, str] = {
    "Conv": "conv",
    "ConvTranspose": "deconv",
    "QLinearConv": "conv",
    "QLinearMatMul": "fc",
    "Gemm": "fc",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "LpPool": "pool",
    "GlobalMaxPool": "pool",
    "GlobalAveragePool": "pool",
    "BatchNormalization": "bn",
}
"""Base of a layer's alias where it is not the operator's name in lower case."""

_CHANNELS_FIRST = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "DepthToSpace",
    }
    | {"GroupNormalization", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "MaxUnpool", "QLinearConv"}
    | {"SpaceToDepth"}
)
"""Operators that take axis 1 for channels, whatever came before."""

PLUMBING = frozenset(
    {
        "Cast",
        "DequantizeLinear",
        "Dropout",
        "Flatten",
        "Identity",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that move or copy values without computing: not layers, though their tensors can be named."""


@dataclass(frozen=True)
class Layer:
    """A tensor of the network that has channels, and the node that makes it.

    ``order`` permutes the tensor's axes to (N, C, spatial…). ``size`` is the spatial size of the output: (height,
    width), (length,) of a sequence, whose units are at (0, x), or () of a vector, whose one unit is at (0, 0).
    ``receptive_field`` is (height, width) in input pixels; ``stride`` and ``offset`` say where it is: the unit at
    (y, x) sees from stride·(y, x) + offset on. A stride is 0 along an axis of which each unit sees all, and
    ``stride`` is None where that is so of both.
    """

    name: str
    op: str
    tensor: str
    alias: str
    aliases: tuple[str, ...]
    channels: int
    size: tuple[int, ...]
    order: tuple[int, ...]
    receptive_field: tuple[int, int]
    stride: tuple[int, int] | None
    offset: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of units."""
        height, width = (1, 1, *self.size)[-2:]
        return height, width

    def index(self, y: int, x: int) -> tuple[int, ...]:
        """Where the unit at (y, x) stands on the map's own axes."""
        return (y, x)[2 - len(self.size) :]

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """What the unit at (y, x) sees: top, left, bottom, right in input pixels, not clipped."""
        (height, width), (sy, sx) = self.receptive_field, self.stride or (0, 0)
        top, left = sy * y + self.offset[0], sx * x + self.offset[1]
        return top, left, top + height, left + width

    def __str__(self) -> str:
        return self.name if self.alias == self.name else f"{self.name} ({self.alias})"


def list_layers(
    graph: Graph,
    constants: Constants,
    image: str,
    image_size: tuple[int, int],
    image_order: tuple[int, ...],
    shapes: Mapping[str, Shape],
    seen: Mapping[str, Field],
    live: Container[str],
) -> tuple[Layer, ...]:
    """All layers between the image and the outputs, in topological order.

    Args:
        live: tensors that an output depends on; others are not counted in aliases, their alias is their name.
        image_order: permutation of the image input's axes to (N, C, H, W).
        shapes: of every tensor, at batch 1.
        seen: receptive fields, by tensor (`geometry.fields`).
    """
    orders: dict[str, tuple[int, ...]] = {image: image_order}
    counts: dict[str, int] = {}
    blocks = _Blocks(graph, seen)
    layers = []
    codes: set[str] = set()
    quantised: dict[str, Node] = {}
    for node in graph.nodes:
        field = seen.get(node.output)
        if field is None:
            continue
        shape = shapes[node.output]
        order = _order(node, orders, shapes)
        orders[node.output] = order
        for extra in node.outputs[1:]:
            orders[extra] = order
        if _gives_codes(node, codes):
            codes.update(node.outputs)
        if node.output.endswith(REAL_VALUES):
            node = replace(quantised[node.inputs[0]], outputs=node.outputs)
        elif node.op in PLUMBING or node.output in codes:
            quantised[node.output] = node
            continue
        if not 2 <= len(shape) <= 4:
            continue
        kind = _KINDS.get(node.op, node.op.lower())
        if node.op == "MatMul" and any(name in constants for name in node.inputs):
            kind = "fc"
        # A Split makes several layers; the further outputs of other operators are no activations.
        for tensor in node.outputs if node.op == "Split" else [node.output]:
            if tensor not in seen:  # left out, or of size 0
                continue
            name = node.name if tensor == node.output else tensor
            aliases = [name]
            if tensor in live:
                counts[kind] = counts.get(kind, 0) + 1
                aliases = [f"{kind}{counts[kind]}", *blocks.alias(node)]
            layers.append(
                _layer(node, name, tensor, shapes[tensor], order, aliases, seen[tensor], image_size)
            )
    return tuple(layers)


_QUANTISING = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


def _gives_codes(node: Node, codes: Container[str]) -> bool:
    """Whether a node gives whole numbers that stand for real ones: of a quantiser, or moved and picked from such."""
    return node.op in _QUANTISING or (
        node.inputs[0] in codes and node.op not in ("Cast", "DequantizeLinear", "Mul")
    )


def _order(node: Node, orders: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """Permutation of the node's output to (N, C, spatial…)."""
    shape = shapes[node.output]
    rank = len(shape)
    plain = tuple(range(rank))
    if node.op in _CHANNELS_FIRST or node.op.startswith("Global"):
        return plain
    if node.op in ("MatMul", "LayerNormalization", "RMSNormalization", "Attention") and rank == 3:
        return (0, 2, 1)
    source = next((name for name in node.inputs if name in orders and len(shapes[name]) == rank), None)
    if source is None:
        return plain
    if node.op == "Transpose":
        perm = node.attrs.get("perm", tuple(reversed(plain)))
        assert isinstance(perm, tuple)
        return tuple(perm.index(axis) for axis in orders[source])
    if node.op == "Reshape" and shapes[source] != shape:
        return plain
    return orders[source]


def _layer(
    node: Node,
    name: str,
    tensor: str,
    shape: Shape,
    order: tuple[int, ...],
    aliases: Sequence[str],
    field: Field,
    image_size: tuple[int, int],
) -> Layer:
    moved = [shape[axis] for axis in order]
    spatial = (None, None, *order[2:])[-2:]
    whole = [Span(size) for size in image_size]
    seen = [
        span if span is not None and span.coord == axis else whole[k]
        for k, (span, axis) in enumerate(zip(field.axes, spatial, strict=True))
    ]
    y, x = seen
    return Layer(
        name=name,
        op=node.op,
        tensor=tensor,
        alias=aliases[0],
        aliases=tuple(aliases),
        channels=moved[1],
        size=tuple(moved[2:]),
        order=order,
        receptive_field=(y.size, x.size),
        stride=(y.a, x.a) if seen != whole else None,
        offset=(y.b, x.b),
    )


class _Blocks:
    """Aliases such as ``conv3_2``: the second convolution after the second pooling."""

    def __init__(self, graph: Graph, seen: Mapping[str, Field]) -> None:
        self._aliases: dict[str, str] = {}
        block, index, longest = 1, 0, 0
        for node in graph.nodes:
            if node.output not in seen:
                continue
            if node.op in ("MaxPool", "AveragePool") and index and _shrinks(node):
                block, index = block + 1, 0
            elif node.op == "Conv":
                index += 1
                longest = max(longest, index)
                self._aliases[node.output] = f"conv{block}_{index}"
        if block == 1 or longest == 1:
            self._aliases = {}

    def alias(self, node: Node) -> tuple[str, ...]:
        """The block alias of a convolution, if it has one."""
        alias = self._aliases.get(node.output)
        return (alias,) if alias else ()


def _shrinks(node: Node) -> bool:
    strides = node.attrs.get("strides", ())
    return isinstance(strides, tuple) and any(int(s) > 1 for s in strides)


def _components(name: str) -> list[str]:
    return [part for part in re.split(r"[/:]", name.casefold()) if part]


def _ends_with(layer: Layer, query: str) -> bool:
    """Whether a path-like name ends in the components of ``query`` (its operator's own component aside)."""
    wanted = _components(query)
    for name in (layer.name, layer.tensor):
        parts = _components(name)
        bare = parts[:-1] if len(parts) > 1 and parts[-1] == layer.op.casefold() else parts
        for have in (parts, bare):
            if wanted and have[-len(wanted) :] == wanted:
                return True
            dotted = ".".join(have).split(".")
            if (flat := ".".join(wanted).split(".")) and dotted[-len(flat) :] == flat:
                return True
    return False


def _is_whole_path(layer: Layer, query: str) -> bool:
    """Whether nothing stands before ``query`` in a path-like name: ``conv1`` is ``/conv1/Conv`` first of all."""
    parts = _components(layer.name)
    return _components(query) in (parts, parts[:-1] if parts[-1:] == [layer.op.casefold()] else parts)


def find_layer(layers: Sequence[Layer], query: str, *, aside: Mapping[str, Layer] | None = None) -> Layer:
    """The one layer that ``query`` names.

    Tried in order: the exact name of a layer, node or tensor; the same without regard to case; the last
    component(s) of a path-like name; an alias.

    Args:
        aside: names of nodes and tensors that are not listed, each with the layer that it stands for.

    Raises:
        LayerNotFoundError: none or several match; the message lists the closest names.
    """
    query = query.strip()
    tests: list[Callable[[Layer], bool]] = [
        lambda layer: query in (layer.name, layer.tensor),
        lambda layer: query.casefold() in (layer.name.casefold(), layer.tensor.casefold()),
        lambda layer: _ends_with(layer, query),
        lambda layer: query.casefold() in layer.aliases,
    ]
    for number, test in enumerate(tests):
        matches = [layer for layer in layers if test(layer)]
        if number == 0 and not matches and aside and query in aside:
            matches = [aside[query]]
        if len(matches) > 1:
            matches = [m for m in matches if _is_whole_path(m, query)] or matches
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise LayerNotFoundError(
                f"Layer {query!r} is ambiguous: it could be {_listed(str(m) for m in matches)}. Give more of the name."
            )
    if not layers:
        raise LayerNotFoundError(f"Layer {query!r}: the model has no layer that depends on its image input.")
    raise LayerNotFoundError(
        f"No layer is called {query!r}. Closest: {_listed(_closest(layers, query))}. "
        "'onnxviz layers MODEL' lists them all."
    )


def find_layers(
    layers: Sequence[Layer], queries: Iterable[str], *, aside: Mapping[str, Layer] | None = None
) -> tuple[Layer, ...]:
    """All layers that names, globs (``fire*/expand3x3``), ranges (``conv1..conv5``) and ``all`` ask for.

    ``all`` is every layer with weights: convolutions and fully connected ones. ``*`` is every layer.
    The answer is in the order of ``layers``, without repeats; what ``aside`` gave comes last.
    """
    chosen: dict[str, Layer] = {}
    queries = list(queries)
    for query in queries:
        known = query in (aside or {}) or any(query in (layer.name, layer.tensor) for layer in layers)
        for part in [query] if known else query.split(","):
            if part.strip():
                chosen.update((x.tensor, x) for x in _expand(layers, part.strip(), aside))
    if not chosen:
        raise LayerNotFoundError(
            f"No layer was asked for, or none with weights is there ({', '.join(map(repr, queries)) or 'no names'}). "
            "'onnxviz layers MODEL' lists them all."
        )
    listed = [layer for layer in layers if layer.tensor in chosen]
    return (*listed, *(layer for layer in chosen.values() if layer not in listed))


def _range_end(layers: Sequence[Layer], name: str, aside: Mapping[str, Layer] | None) -> Layer:
    """The end of a range: an alias before all else, since ranges count."""
    aliased = [layer for layer in layers if name.casefold() in layer.aliases]
    return aliased[0] if aliased else find_layer(layers, name, aside=aside)


def _expand(layers: Sequence[Layer], query: str, aside: Mapping[str, Layer] | None) -> list[Layer]:
    names = {name for layer in layers for name in (layer.name, layer.tensor)}
    if query in names:
        return [find_layer(layers, query, aside=aside)]
    if query.casefold() == "all":
        return [layer for layer in layers if re.match(r"(conv|deconv|fc)\d", layer.alias)]
    if ".." in query:
        first, last = (_range_end(layers, end.strip(), aside) for end in query.split("..", 1))
        low, high = layers.index(first), layers.index(last)
        if low > high:
            raise LayerNotFoundError(f"{query!r}: {last} comes before {first}. Turn the range round.")
        return [layer for layer in layers[low : high + 1] if layer.op in (first.op, last.op)]
    if any(sign in query for sign in "*?["):
        pattern = query.casefold()
        matches = [
            layer
            for layer in layers
            if any(
                fnmatch.fnmatchcase(n.casefold(), pattern) for n in (layer.name, layer.tensor, *layer.aliases)
            )
        ]
        if not matches:
            raise LayerNotFoundError(
                f"No layer matches {query!r}. Closest: {_listed(_closest(layers, query))}. "
                "'onnxviz layers MODEL' lists them all."
            )
        return matches
    return [find_layer(layers, query, aside=aside)]


def _closest(layers: Sequence[Layer], query: str) -> list[str]:
    table: dict[str, str] = {}
    for layer in layers:
        for name in (*layer.aliases, layer.name, layer.tensor):
            table.setdefault(name.casefold(), str(layer))
    near = difflib.get_close_matches(query.casefold(), table, n=8, cutoff=0.4)
    return list(dict.fromkeys(table[name] for name in near)) or [str(layer) for layer in layers[-3:]]


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
