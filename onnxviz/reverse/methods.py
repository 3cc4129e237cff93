"""Methods: tables of overrides on top of the exact rules.

| operator | gradient | deconvnet | guided |
| --- | --- | --- | --- |
| Relu, Clip from 0; softer ones: LeakyRelu, Swish, Gelu … | exact | max(g, 0) | max(g, 0)·[0 < x < max] |
| LRN | exact | identity | identity |
| all others | exact | exact | exact |

Deconvnet: Zeiler & Fergus, ECCV 2014. Guided backpropagation: Springenberg et al., ICLR 2015 workshop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnxviz.errors import UsageError
from onnxviz.model.graph import Node
from onnxviz.reverse.rules import RULES, activations, elementwise, pooling, quantization
from onnxviz.reverse.rules.registry import STOPS, Rule

__all__ = ["METHODS", "Method", "Override", "make_method"]


@dataclass(frozen=True)
class Override:
    """For the nodes that ``applies`` to, ``rule`` takes the place of the exact one."""

    applies: Callable[[Node], bool]
    rule: Rule


@dataclass(frozen=True)
class Method:
    """A way to pull back: the first override that applies, else the exact rule.

    ``unit_seed``: the seed is 1 and not the activation. ``rectified_maps``: where a whole map is the seed, only
    its positive part counts. ``policies`` say in words what was chosen, for the report.
    """

    name: str
    overrides: tuple[Override, ...] = field(compare=False)  # they follow from the name and the policies
    unit_seed: bool
    rectified_maps: bool
    policies: tuple[tuple[str, str], ...]

    def stops(self, node: Node) -> bool:
        """Whether nothing passes a node."""
        return not node.domain and node.op in STOPS

    def rule(self, node: Node) -> Rule | None:
        """The rule for a node, or None if its operator has none."""
        if node.domain or node.op not in RULES:
            return None
        for override in self.overrides:
            if override.applies(node):
                return override.rule
        return RULES[node.op]


def _is(*ops: str) -> Callable[[Node], bool]:
    return lambda node: node.op in ops


def _hard_rectifier(node: Node) -> bool:
    return node.op == "Relu" or (node.op == "Clip" and node.attrs.get("min") == 0)


def _has_folded(op: str) -> Callable[[Node], bool]:
    """Nodes of ``op`` into which a quantiser folded a ReLU."""
    return lambda node: node.op == op and bool(node.attrs.get("rectifies"))


_SOFT_RECTIFIERS = (
    *("Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Softplus", "Swish"),
    "ThresholdedRelu",
)
"""Activations that pass what is well above zero and hold back what is well below. A gate (Sigmoid) is none."""

_soft_rectifier = _is(*_SOFT_RECTIFIERS)


@dataclass(frozen=True)
class _Table:
    """How a method answers each policy that can be chosen; the first choice is its default."""

    rectifier: Rule | None
    lrn: tuple[str, ...]
    activation: tuple[str, ...]
    unit_seed: bool


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "overlap": ("sum", "mean"),
    "lrn": ("identity", "gradient"),
    "activation": ("rectify", "gradient"),
}

METHODS: Mapping[str, _Table] = {
    "deconvnet": _Table(activations.rectify, ("identity", "gradient"), ("rectify", "gradient"), False),
    "guided": _Table(activations.guided, ("identity", "gradient"), ("rectify", "gradient"), False),
    "gradient": _Table(None, ("gradient",), ("gradient",), True),
}


def make_method(
    name: str, *, overlap: str = "sum", lrn: str | None = None, activation: str | None = None
) -> Method:
    """A method by name, with its policies.

    Args:
        name: ``deconvnet``, ``guided`` or ``gradient``.
        overlap: where pooling windows overlap on one switch, ``sum`` (the adjoint) or ``mean``.
        lrn: ``identity`` or ``gradient``; None is the method's own default.
        activation: for activations other than ReLU that rectify softly, ``rectify`` or ``gradient``.

    Raises:
        UsageError: an unknown name, or a policy that the method does not have.
    """
    if name not in METHODS:
        raise UsageError(f"Method {name!r} is not known. Choose one of {', '.join(METHODS)}.")
    table = METHODS[name]
    lrn, activation = lrn or table.lrn[0], activation or table.activation[0]
    for option, value, allowed in (
        ("overlap", overlap, _CHOICES["overlap"]),
        ("lrn", lrn, table.lrn),
        ("activation", activation, table.activation),
    ):
        if value not in allowed:
            raise UsageError(
                f"Method {name} cannot use {option} {value!r}: it is one of {', '.join(allowed)} there."
            )
    overrides = []
    if table.rectifier is not None:
        overrides.append(Override(_hard_rectifier, table.rectifier))
        if activation == "rectify":
            overrides.append(Override(_soft_rectifier, table.rectifier))
        overrides += [
            Override(_has_folded(op), quantization.folded(table.rectifier, op)) for op in quantization.FOLDS
        ]
    if lrn == "identity":
        overrides.append(Override(_is("LRN"), elementwise.identity))
    if overlap == "mean":
        overrides.append(Override(_is("MaxPool"), pooling.max_pool_mean))
    return Method(
        name,
        tuple(overrides),
        unit_seed=table.unit_seed,
        rectified_maps=table.rectifier is not None,
        policies=(("overlapping pools", overlap), ("LRN", lrn), ("other activations", activation)),
    )
