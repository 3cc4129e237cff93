"""Recurrent operators, pulled back through time.

A cell is a function of one step: from what the input gives to the gates, and the states before, to the states after
and a function that pulls cotangents of these back. `_through_time` does the rest for all three operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from onnxviz.model.graph import Constants, Node
from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import Cotangents, Restriction, Step, all_inputs, register

States: TypeAlias = tuple[Array, ...]
Back: TypeAlias = "Callable[[States], tuple[Array, States]]"
"""Cotangents of the states after: that of what the input gives to the gates, and those of the states before."""


@dataclass(frozen=True)
class _Function:
    """An activation: its value, and its derivative as a function of that value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


def _tanh(x: Array) -> Array:
    xp = x.__array_namespace__()
    y: Array = xp.tanh(x)
    return y


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + _tanh(0.5 * x))


def _relu(x: Array) -> Array:
    return x * (x > 0)


def _hard_sigmoid(x: Array) -> Array:
    xp = x.__array_namespace__()
    y: Array = xp.clip(0.2 * x + 0.5, 0, 1)
    return y


def _softsign(x: Array) -> Array:
    y: Array = x / (1 + abs(x))
    return y


_FUNCTIONS: Mapping[str, _Function] = {
    "tanh": _Function(_tanh, lambda y: 1 - y * y),
    "sigmoid": _Function(_sigmoid, lambda y: y * (1 - y)),
    "relu": _Function(_relu, lambda y: y > 0),
    "hardsigmoid": _Function(_hard_sigmoid, lambda y: 0.2 * ((y > 0) & (y < 1))),
    "softsign": _Function(_softsign, lambda y: (1 - abs(y)) ** 2),
}
_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}


def _refusal(node: Node, constants: Constants) -> str | None:
    names = node.attrs.get("activations", ())
    assert isinstance(names, tuple)
    unknown = sorted({str(name) for name in names} - {n for n in names if str(n).lower() in _FUNCTIONS})
    if unknown:
        return f"its activation {', '.join(unknown)} has no rule there"
    for name in ("activation_alpha", "activation_beta", "clip", "input_forget"):
        if node.attrs.get(name):
            return f"its {name!r} is set"
    return None


_PLAIN = Restriction(
    "activations Sigmoid, Tanh, Relu, HardSigmoid and Softsign, without alpha, beta, clip and input_forget",
    _refusal,
)


@dataclass(frozen=True)
class _Weights:
    """Of one direction: (G·H, I) for the input, (G·H, H) for the state, their biases (G·H,), the peepholes (3·H,)."""

    w: Array
    r: Array
    bias: Array
    state_bias: Array
    peepholes: Array
    functions: tuple[_Function, ...]
    linear_before_reset: bool

    def gate(self, x: Array, number: int) -> Array:
        """The part of ``x`` along its last or only axis that is the gate's."""
        size = self.r.shape[1]
        return x[..., number * size : (number + 1) * size]

    def recurrent(self, number: int) -> Array:
        """(H, H) of a gate."""
        size = self.r.shape[1]
        return self.r[number * size : (number + 1) * size, :]


Cell: TypeAlias = "Callable[[_Weights, Array, States], tuple[States, Back]]"


def _rnn(weights: _Weights, x: Array, states: States) -> tuple[States, Back]:
    """h = f(x + h·Rᵀ)."""
    xp = x.__array_namespace__()
    (f,) = weights.functions
    (before,) = states
    h = f.value(x + xp.matmul(before, xp.matrix_transpose(weights.r)) + weights.state_bias)

    def back(g: States) -> tuple[Array, States]:
        to_gate = g[0] * f.slope(h)
        return to_gate, (xp.matmul(to_gate, weights.r),)

    return (h,), back


def _gru(weights: _Weights, x: Array, states: States) -> tuple[States, Back]:
    """h = (1 − z)·h̃ + z·h, with the update z, the reset r and the candidate h̃ in this order."""
    xp = x.__array_namespace__()
    f, candidate = weights.functions
    (before,) = states
    gate, recurrent = weights.gate, weights.recurrent
    r_z, r_r, r_h = (recurrent(k) for k in range(3))
    bias = weights.state_bias

    def product(h: Array, matrix: Array) -> Array:
        found: Array = xp.matmul(h, xp.matrix_transpose(matrix))
        return found

    z = f.value(gate(x, 0) + product(before, r_z) + gate(bias, 0))
    r = f.value(gate(x, 1) + product(before, r_r) + gate(bias, 1))
    state = product(before, r_h) + gate(bias, 2)
    if not weights.linear_before_reset:
        c = candidate.value(gate(x, 2) + product(r * before, r_h) + gate(bias, 2))
    else:
        c = candidate.value(gate(x, 2) + r * state)

    def back(g: States) -> tuple[Array, States]:
        to_h = g[0] * z
        to_z = g[0] * (before - c) * f.slope(z)
        to_c = g[0] * (1 - z) * candidate.slope(c)
        if weights.linear_before_reset:
            to_r = to_c * state
            to_h = to_h + xp.matmul(to_c * r, r_h)
        else:
            reset = xp.matmul(to_c, r_h)
            to_r = reset * before
            to_h = to_h + reset * r
        to_r = to_r * f.slope(r)
        to_h = to_h + xp.matmul(to_z, r_z) + xp.matmul(to_r, r_r)
        return xp.concat([to_z, to_r, to_c], axis=-1), (to_h,)

    return (z * before + (1 - z) * c,), back


def _lstm(weights: _Weights, x: Array, states: States) -> tuple[States, Back]:
    """c = f·c + i·c̃ and h = o·tanh(c), with the gates i, o, f and c̃ in this order."""
    xp = x.__array_namespace__()
    sigma, candidate, output = weights.functions
    before, memory = states
    gate = weights.gate
    gates = x + xp.matmul(before, xp.matrix_transpose(weights.r)) + weights.state_bias
    p_i, p_o, p_f = (gate(weights.peepholes, k) for k in range(3))
    i = sigma.value(gate(gates, 0) + p_i * memory)
    f = sigma.value(gate(gates, 2) + p_f * memory)
    c = candidate.value(gate(gates, 3))
    after = f * memory + i * c
    o = sigma.value(gate(gates, 1) + p_o * after)
    shown = output.value(after)

    def back(g: States) -> tuple[Array, States]:
        to_o = g[0] * shown * sigma.slope(o)
        to_after = g[1] + g[0] * o * output.slope(shown) + to_o * p_o
        to_i = to_after * c * sigma.slope(i)
        to_f = to_after * memory * sigma.slope(f)
        to_c = to_after * i * candidate.slope(c)
        to_gates = xp.concat([to_i, to_o, to_f, to_c], axis=-1)
        to_memory = to_after * f + to_i * p_i + to_f * p_f
        return to_gates, (xp.matmul(to_gates, weights.r), to_memory)

    return (o * shown, after), back


_CELLS: Mapping[str, tuple[Cell, int, int]] = {
    "RNN": (_rnn, 1, 1),
    "GRU": (_gru, 3, 1),
    "LSTM": (_lstm, 4, 2),
}
"""With the number of gates and of states."""


def _weights_of(step: Step, direction: int, gates: int, dtype: object) -> _Weights:
    w, r = (step.value(i)[direction, ...] for i in (1, 2))
    xp = w.__array_namespace__()
    hidden = r.shape[1]

    def optional(index: int, size: int) -> Array:
        value = step.optional(index)
        found: Array = xp.zeros(size, dtype=dtype) if value is None else value[direction, ...]
        return found

    bias = optional(3, 2 * gates * hidden)
    count = len(_DEFAULTS[step.node.op])
    names = step.node.attrs.get("activations") or _DEFAULTS[step.node.op] * 2
    assert isinstance(names, tuple)
    return _Weights(
        w,
        r,
        bias[: gates * hidden],
        bias[gates * hidden :],
        optional(7, 3 * hidden),
        tuple(_FUNCTIONS[str(n).lower()] for n in names[count * direction : count * (direction + 1)]),
        bool(step.node.attrs.get("linear_before_reset", 0)),
    )


@register("RNN", "GRU", "LSTM", slots=(0, 5, 6), outputs=None, record=all_inputs, restriction=_PLAIN)
def through_time(step: Step, g: Array) -> Cotangents:
    """The exact derivative by the sequence and the first states. ONNX RNN-22, GRU-22, LSTM-22."""
    xp = g.__array_namespace__()
    node, inputs = step.node, step.node.inputs
    cell, gates, count = _CELLS[node.op]
    batch_first = bool(node.attrs.get("layout", 0))
    direction = node.attrs.get("direction", "forward")

    def time_first(x: Array) -> Array:
        """(T, N, …) of a sequence, (directions, N, H) of a state."""
        return xp.moveaxis(x, 0, 1) if batch_first else x

    x = time_first(step.value(0))
    length, rows = x.shape[:2]
    ends = step.value(4) if len(inputs) > 4 and inputs[4] else xp.full(rows, length)
    firsts = [
        time_first(step.value(5 + k)) if len(inputs) > 5 + k and inputs[5 + k] else None for k in range(count)
    ]
    if step.index == 0 and batch_first:
        g = xp.permute_dims(g, (1, 2, 0, 3))  # to (T, directions, N, H)
    elif batch_first:
        g = time_first(g)
    to_x = xp.zeros_like(x)
    to_firsts: list[list[Array]] = [[] for _ in range(count)]
    for number in range(2 if direction == "bidirectional" else 1):
        weights = _weights_of(step, number, gates, x.dtype)
        times = list(range(length))
        if direction == "reverse" or number == 1:
            times.reverse()
        none = xp.zeros((rows, weights.r.shape[1]), dtype=x.dtype)
        states = tuple(none if first is None else none + first[number, ...] for first in firsts)
        backs: list[tuple[int, Array, Back]] = []
        for t in times:
            alive = xp.expand_dims(t < ends, axis=-1)
            given = xp.matmul(x[t, ...], xp.matrix_transpose(weights.w)) + weights.bias
            after, back = cell(weights, given, states)
            states = tuple(xp.where(alive, new, old) for new, old in zip(after, states, strict=True))
            backs.append((t, alive, back))
        to_states = tuple(g[number, ...] if step.index == k + 1 else none for k in range(count))
        for t, alive, back in reversed(backs):
            shown = (to_states[0] + g[t, number, ...], *to_states[1:]) if step.index == 0 else to_states
            to_gates, before = back(shown)
            to_states = tuple(xp.where(alive, new, old) for new, old in zip(before, to_states, strict=True))
            to_x[t, ...] += xp.where(alive, xp.matmul(to_gates, weights.w), 0)
        for to_first, to_state in zip(to_firsts, to_states, strict=True):
            to_first.append(to_state)
    answers: list[Array | None] = [time_first(to_x), None, None, None, None]
    return (*answers, *(time_first(xp.stack(to_first)) for to_first in to_firsts))
