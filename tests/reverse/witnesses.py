"""Two independent witnesses of a reverse rule, both of which know the forward pass only.

Each returns a relative error; `ADJOINT` and `DERIVATIVE` are what float32 leaves of a right rule, well below what
a rule that is off by 0.1 % gives. `test_rules.py` tests the witnesses too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Forward: TypeAlias = Callable[[Arrays], dict[str, Array]]
PullBack: TypeAlias = Callable[[Arrays, Arrays], Mapping[str, Array]]

ADJOINT = 1e-6
"""A few roundings (6e-8 each); 0.1 % of an operator gives about 7e-4."""

DERIVATIVE = 5e-5
"""A rounding of a value near 4 (2e-7) over the step, a few times; 0.1 % of a derivative gives about 7e-4."""

STEP = 0.02
"""Of the finite differences. Directions stay within ±1, so inputs must be `2 * STEP` away from any kink."""

LINEAR_STEP = 1.0
"""A linear operator has no kinks, and a wide step rounds less."""


def onnxruntime_forward(model: onnx.ModelProto) -> Forward:
    """All outputs of a model, in float64 from onnxruntime's float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]

    def forward(x: Arrays) -> dict[str, Array]:
        values = session.run(names, {name: np.asarray(v, np.float32) for name, v in x.items()})
        return {name: value.astype(np.float64) for name, value in zip(names, values, strict=True)}

    return forward


def dot(a: Arrays, b: Arrays) -> float:
    return sum(float(np.vdot(a[name].astype(np.float64), b[name].astype(np.float64))) for name in a)


def _norm(a: Arrays) -> float:
    return float(np.sqrt(dot(a, a)))


def _combined(weights: Mapping[float, Arrays]) -> dict[str, Array]:
    names = next(iter(weights.values()))
    return {name: sum(w * arrays[name] for w, arrays in weights.items()) for name in names}  # type: ignore[misc]


def _probe(image: Arrays, rng: np.random.Generator) -> dict[str, Array]:
    """A random cotangent that has something to do with ``image``, so that their product is far from zero."""
    return {
        name: (value / max(np.sqrt(np.mean(value**2)), 1e-30) + rng.standard_normal(value.shape)).astype(
            np.float32
        )
        for name, value in image.items()
    }


def adjoint_error(forward: Forward, pull_back: PullBack, x: Arrays, rng: np.random.Generator) -> float:
    """|⟨A v, y⟩ − ⟨v, Aᵀ y⟩| / (‖A v‖·‖y‖) of an affine operator x ↦ A x + b, for a random v and y."""
    zero = forward({name: np.zeros_like(value) for name, value in x.items()})
    v = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in x.items()}
    image = {name: value - zero[name] for name, value in forward(v).items()}
    y = _probe(image, rng)
    return abs(dot(image, y) - dot(v, pull_back(x, y))) / (_norm(image) * _norm(y))


def derivative_error(
    forward: Forward, pull_back: PullBack, x: Arrays, rng: np.random.Generator, step: float = STEP
) -> float:
    """|⟨J d, y⟩ − ⟨d, Jᵀ y⟩| / (‖J d‖·‖y‖), J d by the central five-point rule along a random direction d."""
    d = {name: rng.uniform(-1, 1, value.shape) for name, value in x.items()}

    def ahead(steps: int) -> dict[str, Array]:
        return forward({name: (x[name] + steps * step * d[name]).astype(np.float32) for name in x})

    weights = {1: 8.0, -1: -8.0, 2: -1.0, -2: 1.0}
    values = {weight: ahead(steps) for steps, weight in weights.items()}
    slope = {name: value / (12 * step) for name, value in _combined(values).items()}
    y = _probe(slope, rng)
    return abs(dot(slope, y) - dot(d, pull_back(x, y))) / (_norm(slope) * _norm(y))
