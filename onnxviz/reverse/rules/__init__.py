"""Reverse rules, one file for each family of operators; importing this package registers them all."""

from onnxviz.reverse.rules import (
    activations,
    arithmetic,
    attention,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resampling,
    shape,
    steps,
)
from onnxviz.reverse.rules.registry import RULES, STOPS, Rule, Step

__all__ = [
    "RULES",
    "STOPS",
    "Rule",
    "Step",
    "activations",
    "arithmetic",
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resampling",
    "shape",
    "steps",
]
