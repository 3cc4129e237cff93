"""Arrays that stand for tensors of a graph that is being written.

A `Traced` array behaves like an array in the array API's terms, but each operation on it writes ONNX nodes. A reverse
rule that works on it is thereby compiled: nothing is computed. What involves no traced array is done by NumPy at once
and becomes a constant.

Sizes are known, except where an `OpenSize` stands for one that is not: the number of units, or of images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.model.writer import GraphWriter

__all__ = ["OpenSize", "Size", "Traced", "Tracer", "Untraceable"]

Array: TypeAlias = NDArray[Any]


class Untraceable(Exception):  # noqa: N818 - no error of a user's: the walk goes on in NumPy, or says what it cannot do
    """An operation has no ONNX form here."""


def _refuse(self: OpenSize, *others: Any) -> NoReturn:
    raise Untraceable(f"arithmetic with the open size {self.name}")


class OpenSize:
    """A size that is known only when the graph runs: more than 1, as far as anybody asks. It equals only itself, and
    cannot be computed with."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __floordiv__(self, other: Any) -> int:
        return 1 if other is self else _refuse(self, other)

    def __gt__(self, other: Any) -> bool:
        return True if isinstance(other, int) and other < 2 else _refuse(self, other)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __rfloordiv__ = __mod__ = _refuse
    __truediv__ = __rtruediv__ = __lt__ = __le__ = __ge__ = __index__ = _refuse


Size: TypeAlias = "int | OpenSize"
Shape: TypeAlias = "tuple[Size, ...]"


class Tracer:
    """Writes the nodes of traced arrays."""

    def __init__(self, writer: GraphWriter) -> None:
        self.writer = writer
        self.namespace = Namespace(self)
        self._sizes: dict[OpenSize, str] = {}

    def input(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> Traced:
        """An input of the graph; its open sizes can be asked for from then on."""
        self.writer.input(name, dtype, [d.name if isinstance(d, OpenSize) else d for d in shape])
        made = Traced(self, name, shape, np.dtype(dtype))
        for axis, size in enumerate(shape):
            if isinstance(size, OpenSize) and size not in self._sizes:
                self._sizes[size] = name if axis == 0 else ""
        return made

    def node(self, op: str, shape: Shape, dtype: Any, *inputs: Traced | str, **attrs: Any) -> Traced:
        """A node's output."""
        names = [x.name if isinstance(x, Traced) else x for x in inputs]
        return Traced(self, self.writer.node(op, *names, **attrs), shape, np.dtype(dtype))

    def constant(self, value: Array) -> Traced:
        """A constant."""
        return Traced(self, self.writer.constant(value), value.shape, value.dtype)

    def ints(self, *values: int) -> str:
        """The name of a constant list of whole numbers."""
        return self.writer.constant(np.array(values, np.int64))

    def lift(self, value: Any, dtype: np.dtype[Any]) -> Traced:
        """A traced array or constant of a type."""
        if not isinstance(value, Traced):
            return self.constant(np.asarray(value, dtype))
        if value.dtype == dtype:
            return value
        return Traced(self, self.writer.cast(value.name, dtype), value.shape, dtype)

    def size(self, size: OpenSize) -> str:
        """A tensor (1,) of an open size."""
        shape = self.writer.node("Shape", self._sizes[size])
        return self.writer.node("Slice", shape, self.ints(0), self.ints(1))

    def filled(self, shape: Shape, value: float, dtype: np.dtype[Any]) -> Any:
        """An array of one value."""
        if all(isinstance(d, int) for d in shape):
            return np.full(tuple(int(d) for d in shape), value, dtype)
        parts = [self.size(d) if isinstance(d, OpenSize) else self.ints(d) for d in shape]
        dims = self.writer.node("Concat", *parts, axis=0)
        return self.node("Expand", shape, dtype, self.constant(np.array(value, dtype)), dims)

    def reshaped(self, x: Traced, shape: Shape) -> Traced:
        """``x`` in another shape; an open size stays where it is, or the rest follows from the others."""
        if x.shape == shape:
            return x
        dims, free = [], 0
        for axis, size in enumerate(shape):
            if not isinstance(size, OpenSize):
                dims.append(size)
            elif axis < x.ndim and x.shape[axis] is size:
                dims.append(0)
            else:
                dims.append(-1)
                free += 1
        if free > 1 or {d for d in shape if isinstance(d, OpenSize)} != {
            d for d in x.shape if isinstance(d, OpenSize)
        }:
            raise Untraceable(f"a reshape of {x.shape} to {shape}")
        return self.node("Reshape", shape, x.dtype, x, self.ints(*dims))


def broadcast(*shapes: Shape) -> Shape:
    """The shape that all shapes broadcast to."""
    rank = max(map(len, shapes))
    found: list[Size] = []
    for axis in range(-rank, 0):
        sizes = {s[axis] for s in shapes if len(s) >= -axis} - {1}
        if len(sizes) > 1:
            raise Untraceable(f"broadcasting of {shapes}")
        found.append(sizes.pop() if sizes else 1)
    return tuple(found)


def _shape_of(x: Any) -> Shape:
    return x.shape if isinstance(x, Traced) else np.shape(x)


def _type_of(*operands: Any) -> np.dtype[Any]:
    """NumPy's result type: Python's own numbers are weak."""
    return np.result_type(*(x if isinstance(x, bool | int | float) else x.dtype for x in operands))


class Traced:
    """An array that stands for a tensor of a graph that is being written. Immutable.

    ``origin`` remembers how it was made, where a later operation can be merged into that: see
    `onnxviz.reverse.traced_kernels`.
    """

    __array_ufunc__ = None  # NumPy's operators leave it to ours

    def __init__(
        self, tracer: Tracer, name: str, shape: Shape, dtype: np.dtype[Any], origin: Any = None
    ) -> None:
        self.tracer = tracer
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.origin = origin

    def __array_namespace__(self, api_version: str | None = None) -> Namespace:
        return self.tracer.namespace

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        raise Untraceable("a step in NumPy itself")

    def __iter__(self) -> NoReturn:
        raise Untraceable("a loop over an array")

    def __bool__(self) -> NoReturn:
        raise Untraceable("a decision on an array's values")

    __float__ = __int__ = __index__ = __bool__
    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Untraceable(f"NumPy's method {name}")

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def reshape(self, *shape: Any) -> Traced:
        """NumPy's method, as far as recorded values are reshaped in rules."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        found: Traced = self.tracer.namespace.reshape(self, tuple(wanted))
        return found

    def _with(self, op: str, other: Any, *, swap: bool = False, dtype: Any = None) -> Any:
        if not isinstance(other, Traced | np.ndarray | np.generic | bool | int | float):
            return NotImplemented
        kind = _type_of(self, other)
        operands = [self.tracer.lift(x, kind) for x in ((other, self) if swap else (self, other))]
        shape = broadcast(self.shape, _shape_of(other))
        return self.tracer.node(op, shape, dtype or kind, *operands)

    def __add__(self, other: Any) -> Any:
        return self._with("Add", other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._with("Sub", other)

    def __rsub__(self, other: Any) -> Any:
        return self._with("Sub", other, swap=True)

    def __mul__(self, other: Any) -> Any:
        return self._with("Mul", other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._with("Div", other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with("Div", other, swap=True)

    def __pow__(self, other: Any) -> Any:
        return self._with("Pow", other)

    def __neg__(self) -> Traced:
        return self.tracer.node("Neg", self.shape, self.dtype, self)

    def __eq__(self, other: object) -> Any:
        return self._with("Equal", other, dtype=bool)

    def __lt__(self, other: Any) -> Any:
        return self._with("Less", other, dtype=bool)

    def __le__(self, other: Any) -> Any:
        return self._with("LessOrEqual", other, dtype=bool)

    def __gt__(self, other: Any) -> Any:
        return self._with("Greater", other, dtype=bool)

    def __ge__(self, other: Any) -> Any:
        return self._with("GreaterOrEqual", other, dtype=bool)

    def __and__(self, other: Any) -> Any:
        return self._with("And", other)

    def __or__(self, other: Any) -> Any:
        return self._with("Or", other)

    def __invert__(self) -> Traced:
        return self.tracer.node("Not", self.shape, bool, self)

    def __getitem__(self, key: Any) -> Traced:
        """Slices, whole numbers, None and Ellipsis."""
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            missing = self.ndim - sum(k is not None for k in keys) + 1
            keys = (*keys[:at], *[slice(None)] * missing, *keys[at + 1 :])
        keys += (slice(None),) * (self.ndim - sum(k is not None for k in keys))
        cuts, shape, final = list[tuple[int, int, int, int]](), list[Size](), list[Size]()
        axis = 0
        for k in keys:
            if k is None:
                final.append(1)
                continue
            size = self.shape[axis]
            if isinstance(k, int) and isinstance(size, int):
                cuts.append((axis, k % size, k % size + 1, 1))
                shape.append(1)
            elif isinstance(k, slice) and k == slice(None):
                shape.append(size)
                final.append(size)
            elif isinstance(k, slice) and isinstance(size, int):
                places = range(size)[k]
                end = places.stop if places.stop >= 0 else -size - 1
                cuts.append((axis, places.start, end, places.step))
                shape.append(len(places))
                final.append(len(places))
            else:
                raise Untraceable(f"the index {key!r}")
            axis += 1
        found = self
        if cuts:
            axes, starts, ends, steps = ([cut[i] for cut in cuts] for i in range(4))
            ints = self.tracer.ints
            found = self.tracer.node(
                "Slice", tuple(shape), self.dtype, self, ints(*starts), ints(*ends), ints(*axes), ints(*steps)
            )
        return self.tracer.reshaped(found, tuple(final))


def _axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(sorted(a % ndim for a in ((axis,) if isinstance(axis, int) else axis)))


_UNARY = {
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "abs": "Abs",
    "sign": "Sign",
    "round": "Round",
    "sin": "Sin",
    "cos": "Cos",
    "sinh": "Sinh",
    "cosh": "Cosh",
}
_TESTS = {"isnan": "IsNaN", "isinf": "IsInf"}
_REDUCTIONS = {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "prod": "ReduceProd",
}
_SUM_TAKES_AXES, _OTHERS_TAKE_AXES = 13, 18
"""The opsets from which reductions take their axes as an input."""
_TRIANGLES = 14
"""The opset that brought Trilu."""


def _by_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    """What involves no traced array is NumPy's."""

    @functools.wraps(function)
    def call(self: Namespace, *arguments: Any, **options: Any) -> Any:
        flat = [a for x in arguments for a in (x if isinstance(x, list | tuple) else (x,))]
        if any(isinstance(x, Traced) for x in flat):
            return function(self, *arguments, **options)
        return getattr(np, function.__name__)(*arguments, **options)

    return call


class Namespace:
    """The functions of the array API that rules use. What is not here is NumPy's, and refuses traced arrays."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:
        if name in _UNARY or name in _TESTS:
            op, dtype = (_UNARY[name], None) if name in _UNARY else (_TESTS[name], bool)

            def unary(x: Any) -> Any:
                if not isinstance(x, Traced):
                    return getattr(np, name)(x)
                return self._tracer.node(op, x.shape, dtype or x.dtype, x)

            return unary
        if name in _REDUCTIONS:
            return functools.partial(self._reduced, name)
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def numpys(*arguments: Any, **options: Any) -> Any:
            if any(isinstance(x, Traced) for x in (*arguments, *options.values())):
                raise Untraceable(name)
            return found(*arguments, **options)

        return numpys

    def _reduced(self, name: str, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        if not isinstance(x, Traced):
            return getattr(np, name)(x, axis=axis, keepdims=keepdims)
        axes = _axes(axis, x.ndim)
        if not axes:
            return x
        if any(isinstance(x.shape[a], OpenSize) for a in axes):
            raise Untraceable(f"{name} over an open size")
        if x.dtype == bool:
            x = self._tracer.lift(x, np.dtype(np.int64))
        shape: Shape = tuple(
            1 if a in axes else d for a, d in enumerate(x.shape) if keepdims or a not in axes
        )
        op, keep = _REDUCTIONS[name], int(keepdims)
        since = _SUM_TAKES_AXES if op == "ReduceSum" else _OTHERS_TAKE_AXES
        if self._tracer.writer.opset >= since:
            return self._tracer.node(op, shape, x.dtype, x, self._tracer.ints(*axes), keepdims=keep)
        return self._tracer.node(op, shape, x.dtype, x, axes=list(axes), keepdims=keep)

    @_by_numpy
    def reshape(self, x: Traced, shape: Sequence[Size]) -> Traced:
        """As in the array API."""
        wanted = tuple(shape)
        if -1 in wanted:
            closed = [d for d in x.shape if isinstance(d, int)]
            others = [d for d in wanted if isinstance(d, int) and d != -1]
            known = math.prod(others)
            if len(closed) - len(x.shape) != len(others) + 1 - len(wanted):
                raise Untraceable(f"a reshape of {x.shape} to {wanted}")
            rest = math.prod(closed) // known if known else 0
            wanted = tuple(rest if d == -1 else d for d in wanted)
        return self._tracer.reshaped(x, wanted)

    @_by_numpy
    def expand_dims(self, x: Traced, axis: int | Sequence[int] = 0) -> Traced:
        """As in the array API."""
        rank = x.ndim + (1 if isinstance(axis, int) else len(axis))
        axes, sizes = _axes(axis, rank), iter(x.shape)
        return self._tracer.reshaped(x, tuple(1 if a in axes else next(sizes) for a in range(rank)))

    @_by_numpy
    def permute_dims(self, x: Traced, axes: Sequence[int]) -> Traced:
        """As in the array API."""
        order = [a % x.ndim for a in axes]
        if order == list(range(x.ndim)):
            return x
        shape = tuple(x.shape[a] for a in order)
        return self._tracer.node("Transpose", shape, x.dtype, x, perm=order)

    @_by_numpy
    def moveaxis(self, x: Traced, source: int, destination: int) -> Traced:
        """As in the array API, for one axis."""
        order = [a for a in range(x.ndim) if a != source % x.ndim]
        order.insert(destination % x.ndim, source % x.ndim)
        return self.permute_dims(x, order)  # type: ignore[no-any-return]

    @_by_numpy
    def matrix_transpose(self, x: Traced) -> Traced:
        """As in the array API."""
        return self.permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))  # type: ignore[no-any-return]

    @_by_numpy
    def matmul(self, a: Any, b: Any) -> Traced:
        """As in the array API, for at least two axes each."""
        if min(len(_shape_of(a)), len(_shape_of(b))) < 2 or _shape_of(a)[-1] != _shape_of(b)[-2]:
            raise Untraceable(f"a product of {_shape_of(a)} and {_shape_of(b)}")
        kind = _type_of(a, b)
        shape = (*broadcast(_shape_of(a)[:-2], _shape_of(b)[:-2]), _shape_of(a)[-2], _shape_of(b)[-1])
        if isinstance(a, Traced) and a.ndim == 2 and _is_transposed(b) and b.dtype == kind:
            # A weight read the other way round is not copied.
            return self._tracer.node("Gemm", shape, kind, a, self._tracer.constant(b.T), transB=1)
        return self._tracer.node(
            "MatMul", shape, kind, self._tracer.lift(a, kind), self._tracer.lift(b, kind)
        )

    @_by_numpy
    def where(self, condition: Any, a: Any, b: Any) -> Traced:
        """As in the array API."""
        kind = _type_of(a, b)
        if kind.kind in "iu" and any(isinstance(x, int) and not isinstance(x, Traced) for x in (a, b)):
            others = [x for x in (a, b) if not isinstance(x, int)]
            kind = _type_of(*others) if others else kind
        shape = broadcast(*(_shape_of(x) for x in (condition, a, b)))
        chosen = self._tracer.lift(condition, np.dtype(bool))
        if kind.kind == "b":  # onnxruntime has no Where of truth values
            return (chosen & a) | (~chosen & b)  # type: ignore[no-any-return]
        return self._tracer.node(
            "Where", shape, kind, chosen, self._tracer.lift(a, kind), self._tracer.lift(b, kind)
        )

    def _extremum(self, op: str, a: Any, b: Any) -> Traced:
        kind = _type_of(a, b)
        shape = broadcast(_shape_of(a), _shape_of(b))
        return self._tracer.node(op, shape, kind, self._tracer.lift(a, kind), self._tracer.lift(b, kind))

    @_by_numpy
    def maximum(self, a: Any, b: Any) -> Traced:
        """As in the array API; with 0 it is a Relu, which onnxruntime merges into the convolution before it."""
        if not (isinstance(a, Traced) and isinstance(b, int | float) and b == 0 and a.dtype.kind == "f"):
            return self._extremum("Max", a, b)
        if isinstance(a.origin, Masked):
            return a.origin.again(self.maximum(a.origin.bare, 0))
        return self._tracer.node("Relu", a.shape, a.dtype, a)

    @_by_numpy
    def minimum(self, a: Any, b: Any) -> Traced:
        """As in the array API."""
        return self._extremum("Min", a, b)

    @_by_numpy
    def broadcast_to(self, x: Traced, shape: Sequence[Size]) -> Traced:
        """As in the array API."""
        wanted = tuple(shape)
        if x.shape == wanted:
            return x
        parts = [self._tracer.size(d) if isinstance(d, OpenSize) else self._tracer.ints(d) for d in wanted]
        dims = self._tracer.writer.node("Concat", *parts, axis=0)
        return self._tracer.node("Expand", broadcast(x.shape, wanted), x.dtype, x, dims)

    def zeros(self, shape: Any, dtype: Any = np.float64) -> Any:
        """As in the array API."""
        return self._tracer.filled((shape,) if isinstance(shape, int) else tuple(shape), 0, np.dtype(dtype))

    def ones(self, shape: Any, dtype: Any = np.float64) -> Any:
        """As in the array API."""
        return self._tracer.filled((shape,) if isinstance(shape, int) else tuple(shape), 1, np.dtype(dtype))

    @_by_numpy
    def zeros_like(self, x: Traced, dtype: Any = None) -> Any:
        """As in the array API."""
        return self._tracer.filled(x.shape, 0, np.dtype(dtype or x.dtype))

    @_by_numpy
    def ones_like(self, x: Traced, dtype: Any = None) -> Any:
        """As in the array API."""
        return self._tracer.filled(x.shape, 1, np.dtype(dtype or x.dtype))

    @_by_numpy
    def astype(self, x: Traced, dtype: Any) -> Traced:
        """As in the array API."""
        return self._tracer.lift(x, np.dtype(dtype))

    @_by_numpy
    def concat(self, arrays: Sequence[Any], axis: int = 0) -> Traced:
        """As in the array API."""
        kind, shapes = _type_of(*arrays), [_shape_of(x) for x in arrays]
        at = axis % len(shapes[0])
        sizes = [s[at] for s in shapes]
        if not all(isinstance(d, int) for d in sizes):
            raise Untraceable("a concatenation of open sizes")
        shape = (*shapes[0][:at], sum(d for d in sizes if isinstance(d, int)), *shapes[0][at + 1 :])
        return self._tracer.node(
            "Concat", shape, kind, *(self._tracer.lift(x, kind) for x in arrays), axis=at
        )

    @_by_numpy
    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Traced:
        """As in the array API."""
        rank = len(_shape_of(arrays[0])) + 1
        return self.concat([self.expand_dims(x, axis % rank) for x in arrays], axis % rank)  # type: ignore[no-any-return]

    @_by_numpy
    def take(self, x: Any, indices: Any, axis: int = 0) -> Traced:
        """As in the array API; ``indices`` from 0 on."""
        shape, at = _shape_of(x), axis % len(_shape_of(x))
        found = (*shape[:at], *_shape_of(indices), *shape[at + 1 :])
        where = self._tracer.lift(indices, np.dtype(np.int64))
        return self._tracer.node("Gather", found, x.dtype, self._tracer.lift(x, x.dtype), where, axis=at)

    @_by_numpy
    def flip(self, x: Traced, axis: int | Sequence[int] | None = None) -> Traced:
        """As in the array API."""
        axes = _axes(axis, x.ndim)
        return x[tuple(slice(None, None, -1 if a in axes else None) for a in range(x.ndim))]

    @_by_numpy
    def tensordot(self, a: Any, b: Any, axes: Any = 2) -> Traced:
        """As in the array API, for one axis of each, the second a constant matrix."""
        (first,), (second,) = axes
        if not isinstance(b, np.ndarray) or b.ndim != 2:
            raise Untraceable("a tensordot of more than a matrix")
        matrix = np.ascontiguousarray(b if second % 2 == 0 else b.T)
        return self.matmul(self.moveaxis(a, first, -1), matrix)  # type: ignore[no-any-return]

    @_by_numpy
    def cumulative_sum(
        self, x: Traced, *, axis: int, dtype: Any = None, include_initial: bool = False
    ) -> Traced:
        """As in the array API."""
        at = axis % x.ndim
        if include_initial:
            x = self.concat([self.zeros((*x.shape[:at], 1, *x.shape[at + 1 :]), x.dtype), x], axis=at)
        return self._tracer.node("CumSum", x.shape, x.dtype, x, self._tracer.ints(at))

    def _triangle(self, x: Traced, k: int, upper: int) -> Traced:
        if self._tracer.writer.opset < _TRIANGLES:
            raise Untraceable("a triangle")
        diagonal = self._tracer.constant(np.array(k, np.int64))
        return self._tracer.node("Trilu", x.shape, x.dtype, x, diagonal, upper=upper)

    @_by_numpy
    def triu(self, x: Traced, *, k: int = 0) -> Traced:
        """As in the array API."""
        return self._triangle(x, k, 1)

    @_by_numpy
    def tril(self, x: Traced, *, k: int = 0) -> Traced:
        """As in the array API."""
        return self._triangle(x, k, 0)

    @_by_numpy
    def argmax(self, x: Traced, axis: int, keepdims: bool = False) -> Traced:
        """As in the array API: the first of equal ones."""
        at = axis % x.ndim
        shape: Shape = tuple(1 if a == at else d for a, d in enumerate(x.shape) if keepdims or a != at)
        return self._tracer.node("ArgMax", shape, np.int64, x, axis=at, keepdims=int(keepdims))

    @_by_numpy
    def isfinite(self, x: Traced) -> Traced:
        """As in the array API."""
        return ~(self.isnan(x) | self.isinf(x))  # type: ignore[no-any-return]

    @_by_numpy
    def expm1(self, x: Traced) -> Traced:
        """As in the array API: 2t/(1 − t) with t = tanh(x/2), which loses nothing near 0."""
        t = self.tanh(x / 2)
        return 2 * t / (1 - t)  # type: ignore[no-any-return]

    @_by_numpy
    def logaddexp(self, a: Any, b: Any) -> Traced:
        """As in the array API."""
        apart = -self.abs(a - b)
        return self.maximum(a, b) + self._tracer.node("Softplus", apart.shape, apart.dtype, apart)  # type: ignore[no-any-return]


class Masked:
    """Remembers that an array is ``bare`` times ``mask``, so that a rectifier can be applied before the mask."""

    def __init__(self, bare: Traced, mask: Traced) -> None:
        self.bare = bare
        self.mask = mask

    def again(self, bare: Traced) -> Traced:
        """Another array under the same mask."""
        found: Traced = bare * self.mask
        found.origin = Masked(bare, self.mask)
        return found


def _is_transposed(x: Any) -> bool:
    """Whether a constant matrix is a contiguous one read the other way round."""
    return isinstance(x, np.ndarray) and x.ndim == 2 and x.flags.f_contiguous and not x.flags.c_contiguous
