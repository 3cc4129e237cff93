"""Finds activations that the file writes in pieces (SiLU as Sigmoid and Mul), by what the pieces compute.

Exporters spell one activation in many ways, so there are no templates. From a node ``y`` the walk goes back
through elementwise operators to every tensor ``x`` on which all of ``y`` depends; ``y = f(x)`` is evaluated on a
grid and compared with the activations of the ONNX standard, their parameters read off ``f`` itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.model.constants import Constants
from onnxviz.model.graph import Attribute, Graph, Node

__all__ = ["recognise"]

Array: TypeAlias = NDArray[Any]
Attributes: TypeAlias = Mapping[str, Attribute]
Dims: TypeAlias = Sequence[int | None]
At: TypeAlias = Callable[[float], float]

_LARGEST_REGION = 16
"""Nodes. GELU's tanh form has 9, with half precision's Casts a few more."""

_LARGEST_CONSTANT = 8192
"""Elements: more than the channels of any layer, so more than a slope for each."""

_TOLERANCE = 5e-6
"""Of f(x), to max(1, |x|): constants written with six digits (1.41421 for √2) pass, other functions do not."""

_HALF_TOLERANCES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""A constant of these types is itself off by as much: half a unit in the last of its 11 or 8 digits."""

_FAR = 3e4
_STEPS = [*np.linspace(0.1, 12, 120).round(1), 0.003, 0.03, 20, 100, 300, _FAR]
_GRID = np.array(sorted({0.0, *_STEPS, *(-step for step in _STEPS)}))
"""Dense where activations bend; far out, within half precision's range, for their bounds and asymptotes, also those
of spellings where exp overflows beyond 350."""

_SCALE = np.maximum(abs(_GRID), 1)

_COARSE = _GRID[np.isin(abs(_GRID), (0, 0.003, 0.1, 1, 2.9, 7, 12, 100, _FAR))]
"""Enough for two straight lines, with many channels at once."""

_DENSE = 12.0


def recognise(
    graph: Graph, constants: Constants, shapes: Mapping[str, Dims] | None = None
) -> tuple[Graph, dict[str, np.ndarray]]:
    """The same graph with activations in pieces made one node each, and the new constants that these read.

    The node that makes the activation's output becomes the standard operator of the newest opset, reading the
    activation's input; its name and its output stay. The other pieces stay too, where they were.

    Args:
        graph: of `normalize`.
        constants: of the same model.
        shapes: of tensors, as far as known: a region whose output has not its input's shape is none.
    """
    search = _Search(graph, constants, shapes or {})
    found: dict[str, Node] = {}
    slopes: dict[str, np.ndarray] = {}
    inside: set[str] = set()
    for end, regions in reversed(search.candidates()):
        if end.output in inside:
            continue
        for region in reversed(regions):  # the largest first
            if (match := search.match(region)) is None:
                continue
            op, attrs, slope = match
            if (op, attrs) == (end.op, {name: end.attrs.get(name) for name in attrs}):
                continue  # it has that name already: Clip after Relu
            extra: tuple[str, ...] = ()
            if slope is not None:
                extra = (search.fresh(f"{end.output}:slope"),)
                slopes[extra[0]] = slope
            pieces = tuple(node.op for node in region.nodes)
            found[end.output] = replace(
                end, op=op, inputs=(region.source, *extra), attrs=attrs, pieces=pieces
            )
            inside.update(search.inside(region))
            break
    return replace(graph, nodes=tuple(found.get(node.output, node) for node in graph.nodes)), slopes


@dataclass(frozen=True)
class _Region:
    """Nodes in topological order, the last of which is a function of ``source`` and of constants."""

    source: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Operand:
    """A constant's value in float64, a scalar where all its elements are equal, and how exact it is."""

    value: Array
    whole: bool
    tolerance: float


class _Search:
    """What the walk and the comparison need to know of one graph."""

    def __init__(self, graph: Graph, constants: Constants, shapes: Mapping[str, Dims]) -> None:
        self.graph, self.constants, self.shapes = graph, constants, shapes
        self.position = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
        self.pieces = {node.output: node for node in graph.nodes if _elementwise(node)}
        self.readers: dict[str, set[str]] = defaultdict(set)
        for node in graph.nodes:
            for name in (*node.inputs, *node.captures):
                self.readers[name].add(node.output)
        self.operands: dict[str, _Operand] = {}

    def candidates(self) -> list[tuple[Node, list[_Region]]]:
        """Nodes that could end an activation, with their regions, the nearest source first; constants are read."""
        ends = []
        for node in self.graph.nodes:
            if node.op in _ENDS and node.output in self.pieces:
                regions = [region for region in self._regions(node) if self._promising(region)]
                if regions:
                    ends.append((node, regions))
        # The last region of an end holds all others of it.
        nodes = {node.output: node for _, regions in ends for node in regions[-1].nodes}
        self._read({name for node in nodes.values() for name in _operands(node) if name in self.constants})
        return ends

    def _regions(self, end: Node) -> Iterator[_Region]:
        """One for every tensor that all of ``end`` depends on through elementwise operators alone.

        The frontier's latest tensor is opened next: no other one can depend on it, so none is met again, and
        where the frontier is a single tensor, all paths lead through that.
        """
        nodes, frontier = [end], self._variables(end)
        through_copy = False
        while frontier:
            alone = len(frontier) == 1
            if alone and not through_copy:
                yield _Region(next(iter(frontier)), tuple(reversed(nodes)))
            latest = max(frontier, key=lambda name: self.position.get(name, -1))
            if latest not in self.pieces or len(nodes) == _LARGEST_REGION:
                return
            nodes.append(self.pieces[latest])
            through_copy = alone and nodes[-1].op in _COPIES
            frontier = (frontier - {latest}) | self._variables(nodes[-1])

    def _variables(self, node: Node) -> set[str]:
        return {name for name in _operands(node) if name not in self.constants}

    def _promising(self, region: _Region) -> bool:
        """More than arithmetic; and a node alone only if it is Max or Min: others have their right names already."""
        ops = [node.op for node in region.nodes if node.op not in _COPIES]
        return any(op not in _NOT_BENT for op in ops) and (len(ops) > 1 or ops[0] in ("Max", "Min"))

    def _read(self, names: Iterable[str]) -> None:
        """Those that are not known to be big; a big one counts where it is one number over and over."""
        sizes = {name: math.prod(d or 1 for d in self.shapes.get(name, ())) for name in names}
        read = [name for name, size in sizes.items() if size <= _LARGEST_CONSTANT]
        self.constants.fetch(read)
        for name in read:
            array = self.constants[name]
            if array.size == 0 or array.dtype.kind in "OSUc":
                continue
            first, last = array.flat[0], array.flat[-1]
            if first == last and (array == first).all():
                array = np.asarray(first, array.dtype)
            if array.size <= _LARGEST_CONSTANT:
                self.operands[name] = _Operand(
                    np.asarray(array, np.float64),
                    array.dtype.kind in "biu",
                    _HALF_TOLERANCES.get(array.dtype.name, _TOLERANCE),
                )

    @np.errstate(all="ignore")  # overflow is part of some spellings, and of wrong guesses
    def match(self, region: _Region) -> tuple[str, Attributes, Array | None] | None:
        """The activation that a region computes: operator, attributes, and PReLU's slopes if they differ."""
        end = region.nodes[-1].output
        if not _agree(self.shapes.get(region.source), self.shapes.get(end)):
            return None
        if (read := self._constants(region)) is None:
            return None
        constants, tolerance = read
        try:
            shape = np.broadcast_shapes(*(value.shape for value in constants.values()))
        except ValueError:
            return None
        # All channels compute the same, or it is PReLU; the first channel rules out almost all that is not.
        first = {name: value.reshape(-1)[0] for name, value in constants.items()}
        if shape:
            if math.prod(shape) > _LARGEST_CONSTANT:
                return None
            if _slopes(_evaluate(region, _COARSE, first), _COARSE, tolerance) is None:
                return None
            x = _COARSE.reshape(-1, *(1 for _ in shape))
            slopes = _slopes(_evaluate(region, x, constants), x, tolerance)
            if slopes is None:
                return None
            if np.ptp(slopes) > tolerance:
                return "PRelu", {}, slopes.astype(self._dtype(constants))
        named = _name(_evaluate(region, _GRID, first), tolerance)
        return None if named is None else (*named, None)

    def _constants(self, region: _Region) -> tuple[dict[str, Array], float] | None:
        """Values by name and the tolerance that they ask for, or None if one cannot take part."""
        values: dict[str, Array] = {}
        tolerance = _TOLERANCE
        for node in region.nodes:
            for index, name in enumerate(_operands(node)):
                if name not in self.constants:
                    continue
                operand = self.operands.get(name)
                # Whole numbers make whole-number arithmetic, but for an exponent.
                if operand is None or (operand.whole and (node.op, index) != ("Pow", 1)):
                    return None
                values[name] = operand.value
                tolerance = max(tolerance, operand.tolerance)
        return values, tolerance

    def _dtype(self, names: Iterable[str]) -> type[np.floating[Any]]:
        double = any(self.constants[name].dtype == np.float64 for name in names)
        return np.float64 if double else np.float32

    def fresh(self, name: str) -> str:
        """A tensor name that the graph does not have: ``name``, if that is free."""
        while name in self.position or name in self.readers or name in self.constants:
            name += "_"
        return name

    def inside(self, region: _Region) -> set[str]:
        """Tensors of a region that nothing outside it reads: no activations of their own."""
        known = {region.nodes[-1].output}
        for node in reversed(region.nodes[:-1]):
            if self.readers[node.output] <= known and node.output not in self.graph.outputs:
                known.add(node.output)
        return known


def _agree(source: Dims | None, result: Dims | None) -> bool:
    if source is None or result is None:
        return True
    return len(source) == len(result) and all(
        a == b or a is None or b is None for a, b in zip(source, result, strict=True)
    )


# What elementwise operators compute


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _erf(x: Array) -> Array:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), np.float64)


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(0, x))


def _gelu(x: Array, a: Attributes) -> Array:
    if a["approximate"] == "tanh":
        return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
    return np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2)


_ACTIVATIONS: Mapping[str, Callable[[Array, Any], Array]] = {
    "Relu": lambda x, a: np.maximum(x, 0),
    "Clip": lambda x, a: np.minimum(np.maximum(x, a["min"]), a["max"]),
    "LeakyRelu": lambda x, a: np.where(x >= 0, x, a["alpha"] * x),
    "Elu": lambda x, a: np.where(x > 0, x, a["alpha"] * np.expm1(x)),
    "Celu": lambda x, a: np.where(x > 0, x, a["alpha"] * np.expm1(x / a["alpha"])),
    "Selu": lambda x, a: a["gamma"] * np.where(x > 0, x, a["alpha"] * np.expm1(x)),
    "Swish": lambda x, a: x * _sigmoid(a["alpha"] * x),
    "HardSwish": lambda x, a: x * np.clip(x / 6 + 0.5, 0, 1),
    "Gelu": _gelu,
    "Mish": lambda x, a: x * np.tanh(_softplus(x)),
    "Softplus": lambda x, a: _softplus(x),
    "Softsign": lambda x, a: x / (1 + abs(x)),
    "Sigmoid": lambda x, a: _sigmoid(x),
    "HardSigmoid": lambda x, a: np.clip(a["alpha"] * x + a["beta"], 0, 1),
    "Tanh": lambda x, a: np.tanh(x),
}
"""By operator, its newest version: f(x, attributes), in float64."""

_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Identity": lambda x: x,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sign": np.sign,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Erf": _erf,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Sum": lambda *x: reduce(np.add, x),
    "Max": lambda *x: reduce(np.maximum, x),
    "Min": lambda *x: reduce(np.minimum, x),
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "Where": np.where,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Equal": np.equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
}

_CASTS: Mapping[Attribute | None, Callable[[Array], Array]] = {
    **dict.fromkeys((1, 10, 11, 16), lambda x: x.astype(np.float64)),  # to a floating-point type
    **dict.fromkeys((2, 3, 4, 5, 6, 7, 12, 13), np.trunc),
    9: lambda x: x != 0,
}
"""By the number of the type in TensorProto.DataType."""

_COPIES = ("Identity", "Cast")

_NOT_BENT = {"Identity", "Cast", "Neg", "Add", "Sub", "Mul", "Div", "Sum", "Pow", "Sqrt", "Reciprocal"}
"""No activation is made of these alone."""

_ENDS = {"Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Where", "Clip", "Log", "Neg", "Reciprocal"}


def _elementwise(node: Node) -> bool:
    if node.domain or len(node.outputs) != 1 or "" in _operands(node):
        return False
    if node.op == "Cast":
        return node.attrs.get("to") in _CASTS
    if node.op == "Clip":
        return "min" in node.attrs and "max" in node.attrs
    return node.op in _ACTIVATIONS or node.op in _ARITHMETIC


def _operands(node: Node) -> tuple[str, ...]:
    """The inputs that are not levelled into attributes."""
    return node.inputs[:1] if node.op in _ACTIVATIONS else node.inputs


def _evaluate(region: _Region, x: Array, constants: Mapping[str, Array]) -> Array:
    values = {**constants, region.source: x}
    for node in region.nodes:
        operands = [values[name] for name in _operands(node)]
        if node.op in _ACTIVATIONS:
            values[node.output] = _ACTIVATIONS[node.op](operands[0], node.attrs)
        elif node.op == "Cast":
            values[node.output] = _CASTS[node.attrs["to"]](operands[0])
        else:
            values[node.output] = _ARITHMETIC[node.op](*operands)
    return np.asarray(values[region.nodes[-1].output], np.float64)


# Which activation a function is


def _short(value: float) -> float:
    """The shortest decimal with the same float32: 0.1 and not 0.10000000149."""
    return float(str(np.float32(value)))


def _bounds(at: At) -> Attributes | None:
    low, high = at(-_FAR), at(_FAR)
    if low == 0 < high < _FAR or -_FAR < low < 0 < high < _FAR:
        return {"min": low, "max": high}
    return None


def _leak(at: At) -> Attributes | None:
    alpha = -at(-1)
    # 0 is ReLU, 1 the identity and -1 the absolute value; smaller ones are guards against zero.
    return {"alpha": _short(alpha)} if abs(alpha) > 1e-4 and abs(abs(alpha) - 1) > 1e-4 else None


def _saturation(at: At) -> float | None:
    """−f(−∞) of ELU's kin."""
    alpha = -at(-_FAR)
    return alpha if 0 < alpha < _FAR else None


def _elu(at: At) -> Attributes | None:
    alpha = _saturation(at)
    return {"alpha": _short(alpha)} if alpha and abs(at(1) - 1) < 1e-3 else None


def _celu(at: At) -> Attributes | None:
    elu = _elu(at)
    return elu if elu and elu["alpha"] != 1 else None


def _selu(at: At) -> Attributes | None:
    alpha, gamma = _saturation(at), at(1)
    if alpha and gamma > 0 and abs(gamma - 1) > 1e-3:
        return {"alpha": _short(alpha / gamma), "gamma": _short(gamma)}
    return None


def _swish(at: At) -> Attributes | None:
    gate = at(1)
    return {"alpha": _short(math.log(gate / (1 - gate)))} if 0.5 < gate < 1 else None


def _hard_sigmoid(at: At) -> Attributes | None:
    beta, alpha = at(0), (at(0.1) - at(-0.1)) / 0.2
    return {"alpha": _short(alpha), "beta": _short(beta)} if 0 < beta < 1 and alpha > 0 else None


def _plain(op: str, **attrs: Attribute) -> tuple[str, Callable[[At], Attributes | None]]:
    """An activation without parameters to read off; its values at ±1 tell most others from it quickly."""
    probe = np.array([-1.0, 1.0])
    low, high = _ACTIVATIONS[op](probe, attrs)

    def fit(at: At) -> Attributes | None:
        return attrs if abs(at(-1) - low) < 1e-2 and abs(at(1) - high) < 1e-2 else None

    return op, fit


_KNOWN: Sequence[tuple[str, Callable[[At], Attributes | None]]] = (
    # Exactly 0: a norm kept from zero by Max(x, 1e-12) is no rectifier.
    ("Relu", lambda at: {} if at(-1) == at(-_FAR) == 0 else None),
    ("Clip", _bounds),
    ("LeakyRelu", _leak),
    ("Elu", _elu),
    ("Celu", _celu),
    ("Selu", _selu),
    ("Swish", _swish),
    ("HardSigmoid", _hard_sigmoid),
    _plain("HardSwish"),
    _plain("Gelu", approximate="none"),
    _plain("Gelu", approximate="tanh"),
    _plain("Mish"),
    _plain("Softplus"),
    _plain("Softsign"),
    _plain("Sigmoid"),
    _plain("Tanh"),
)
"""Operator, and how to read its attributes off a function that may be it."""

_INDEX = {float(x): i for i, x in enumerate(_GRID)}


def _name(f: Array, tolerance: float) -> tuple[str, Attributes] | None:
    """The activation nearest to the values ``f`` on the grid, if it is within the tolerance."""
    finite = np.isfinite(f)
    # Far out exp overflows in some spellings, in float32 as well; where activations bend it must not.
    if not finite[abs(_GRID) <= _DENSE].all():
        return None

    def at(x: float) -> float:
        return float(f[_INDEX[x]])

    best, name = tolerance, None
    for op, fit in _KNOWN:
        if (attrs := fit(at)) is None:
            continue
        error = abs(_ACTIVATIONS[op](_GRID, attrs) - f) / _SCALE
        if (worst := float(error[finite].max())) < best:
            best, name = worst, (op, attrs)
    return name


def _slopes(f: Array, x: Array, tolerance: float) -> Array | None:
    """The slopes left of 0 of PReLUs, one for each element of a constant, or None if ``f`` is something else.

    ``f``: (points, ...) values at ``x``: (points, 1, ...).
    """
    slope = -f[np.flatnonzero(x == -1)[0]]
    expected = np.where(x < 0, slope * x, x)
    fits = abs(f - expected) <= tolerance * np.maximum(abs(x), 1)
    return np.asarray(slope) if fits.all() else None
