"""Reverse rules, one file for each family of operators; importing this package registers them all."""

from onnxviz.reverse.rules import (
    activations,
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    reduction,
    shape,
)
from onnxviz.reverse.rules.registry import RULES, Rule, Step

__all__ = [
    "RULES",
    "Rule",
    "Step",
    "activations",
    "convolution",
    "elementwise",
    "linear",
    "normalization",
    "pooling",
    "reduction",
    "shape",
]
