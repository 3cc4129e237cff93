"""What a reverse rule is, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from onnxviz.model.graph import Attribute, Constants, Node, Shape
from onnxviz.reverse.kernels import Array

__all__ = [
    "RULES",
    "STOPS",
    "Cotangents",
    "Record",
    "Restriction",
    "Rule",
    "Step",
    "all_inputs",
    "constant_inputs",
    "first_input",
    "known_attributes",
    "nothing",
    "other_inputs",
    "parameters",
    "register",
    "result",
    "rule",
    "stop",
    "sum_to",
]

Cotangents: TypeAlias = "tuple[Array | None, ...]"


@dataclass(frozen=True)
class Step:
    """What a rule may look at: one node on the way down, over the spans that this pass covers.

    ``index`` is the number of the output that the cotangent is of. ``value(i)`` is the forward value of input i
    and ``result`` that of the output, where the rule asked for them; ``shape(i)`` is the shape its answer for
    input i must have. ``wanted`` are the inputs that need one.
    """

    node: Node
    index: int
    wanted: frozenset[int]
    shapes: tuple[Shape, ...]
    full_shapes: Mapping[str, Shape]
    read_input: Callable[[int], Array]
    read_result: Callable[[], Array]
    read_switches: Callable[[bool], Array]
    over_output: Callable[[Array], Array]
    over_input: Callable[[Array], Array]

    def value(self, index: int) -> Array:
        """Forward value of input ``index``: a constant, or one that the rule's `Rule.record` named."""
        return self.read_input(index)

    def optional(self, index: int) -> Array | None:
        """`value`, or None of an input that is left out."""
        inputs = self.node.inputs
        return self.value(index) if len(inputs) > index and inputs[index] else None

    @cached_property
    def result(self) -> Array:
        """Forward value of the output."""
        return self.read_result()

    @cached_property
    def switches(self) -> Array:
        """Of a MaxPool: the kernel cell that each output came from."""
        return self.read_switches(False)

    def shape(self, index: int) -> Shape:
        """Shape of the answer for input ``index``."""
        return self.shapes[index]

    def full_shape(self, index: int) -> Shape:
        """Shape of the whole input ``index``."""
        return self.full_shapes[self.node.inputs[index]]

    def attr(self, name: str) -> Attribute:
        """An attribute, defaults filled in."""
        return self.node.attrs[name]

    def number(self, name: str) -> float:
        """An attribute that is a number."""
        value = self.node.attrs[name]
        assert isinstance(value, int | float), (self.node.name, name, value)
        return value

    def ints(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        value = self.node.attrs[name]
        assert isinstance(value, tuple), (self.node.name, name, value)
        return tuple(int(v) for v in value)


PullBack: TypeAlias = Callable[[Step, Array], Cotangents]
Record: TypeAlias = Callable[[Node, frozenset[int]], Iterable[str]]


@dataclass(frozen=True)
class Restriction:
    """What a rule asks of a node. ``words`` say it; ``reason`` says why a node does not meet it, or gives None."""

    words: str
    reason: Callable[[Node, Constants], str | None]


def nothing(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record nothing: the rule needs no forward value."""
    return ()


def result(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record the output."""
    return (node.output,)


def first_input(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record the first input."""
    return (node.inputs[0],)


def parameters(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record every input after the first."""
    return [name for name in node.inputs[1:] if name]


def other_inputs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record, for each wanted input, the others."""
    return {name for i in wanted for j, name in enumerate(node.inputs) if j != i and name}


def all_inputs(node: Node, wanted: frozenset[int]) -> Iterable[str]:
    """Record all inputs."""
    return [name for name in node.inputs if name]


@dataclass(frozen=True)
class Rule:
    """How to pull a cotangent back through one operator.

    ``pull_back(step, g)`` gives a cotangent for every wanted input (None for the others), over the spans of
    `onnxviz.model.pulls.pull`. It is linear in ``g`` under the gradient method, and pure.

    ``stays_inside``: where the cotangent of the output is zero outside the tensor, the answers are too.

    ``slots``: the inputs that can carry a cotangent (None: all), and ``outputs`` the outputs that can. ``record`` names
    the forward values that it reads; ``switches`` asks for a MaxPool's indices. ``approximation`` says in words where
    it is not the derivative.
    """

    op: str
    name: str
    pull_back: PullBack
    slots: tuple[int, ...] | None = (0,)
    outputs: tuple[int, ...] | None = (0,)
    record: Record = nothing
    switches: bool = False
    restriction: Restriction | None = None
    approximation: str = ""
    stays_inside: bool = False

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.pull_back.__doc__ or "").strip().splitlines()[0]

    def can_carry(self, index: int) -> bool:
        """Whether input ``index`` can have a cotangent."""
        return self.slots is None or index in self.slots

    def carries(self, index: int) -> bool:
        """Whether output ``index`` can have a cotangent."""
        return self.outputs is None or index in self.outputs

    def refusal(self, node: Node, constants: Constants) -> str | None:
        """Why it cannot handle a node, or None."""
        return self.restriction.reason(node, constants) if self.restriction else None


RULES: dict[str, Rule] = {}
"""The exact rule of every operator (of the default domain) that has one."""


STOPS: dict[str, str] = {}
"""Operators that nothing passes, each with the reason in words: no small change of an input changes the output."""


def rule(
    name: str,
    *,
    slots: tuple[int, ...] | None = (0,),
    outputs: tuple[int, ...] | None = (0,),
    record: Record = nothing,
    switches: bool = False,
    restriction: Restriction | None = None,
    approximation: str = "",
    stays_inside: bool = False,
) -> Callable[[PullBack], Rule]:
    """Make a `Rule` of a function, not registered: for the tables of `onnxviz.reverse.methods`."""

    def make(pull_back: PullBack) -> Rule:
        return Rule(
            name,
            name,
            pull_back,
            slots,
            outputs,
            record,
            switches,
            restriction,
            approximation=approximation,
            stays_inside=stays_inside,
        )

    return make


def register(
    *ops: str,
    slots: tuple[int, ...] | None = (0,),
    outputs: tuple[int, ...] | None = (0,),
    record: Record = nothing,
    switches: bool = False,
    restriction: Restriction | None = None,
    approximation: str = "",
    stays_inside: bool = False,
) -> Callable[[PullBack], Rule]:
    """Register a function as the exact rule of ``ops``.

    Raises:
        ValueError: an operator has a rule already.
    """

    def add(pull_back: PullBack) -> Rule:
        make = rule(
            pull_back.__name__,
            slots=slots,
            outputs=outputs,
            record=record,
            switches=switches,
            restriction=restriction,
            approximation=approximation,
            stays_inside=stays_inside,
        )
        made = make(pull_back)
        for op in ops:
            if op in RULES or op in STOPS:
                raise ValueError(f"{op} has a rule already: {RULES[op].name if op in RULES else STOPS[op]}")
            RULES[op] = replace(made, op=op)
        return made

    return add


def stop(*ops: str, because: str) -> None:
    """Register operators that nothing passes.

    Raises:
        ValueError: an operator has a rule already.
    """
    for op in ops:
        if op in RULES or op in STOPS:
            raise ValueError(f"{op} has a rule already")
        STOPS[op] = because


def constant_inputs(**inputs: int) -> Restriction:
    """These inputs, by name and number, must not depend on the image."""

    def reason(node: Node, constants: Constants) -> str | None:
        for index in inputs.values():
            if len(node.inputs) > index and node.inputs[index] and node.inputs[index] not in constants:
                return f"its input {node.inputs[index]!r} is computed at run time"
        return None

    return Restriction(f"{', '.join(inputs)} constant", reason)


def known_attributes(*names: str) -> Restriction:
    """These attributes (inputs, in newer opsets) must be constant."""

    def reason(node: Node, constants: Constants) -> str | None:
        for name in names:
            if name not in node.attrs:
                return f"its {name!r} is computed at run time"
        return None

    return Restriction(f"{', '.join(names)} constant", reason)


def sum_to(g: Array, shape: Shape) -> Array:
    """Sum ``g`` over the axes that broadcasting had stretched from ``shape``."""
    xp = g.__array_namespace__()
    if g.shape == tuple(shape):
        return g
    extra = len(g.shape) - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1
    )
    summed: Array = xp.sum(g, axis=axes, keepdims=True) if axes else g
    reshaped: Array = xp.reshape(summed, tuple(shape))
    return reshaped
