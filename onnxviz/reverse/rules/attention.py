"""Attention, and the rotation of queries and keys by their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxviz.reverse.kernels import Array
from onnxviz.reverse.rules.registry import Cotangents, Step, all_inputs, parameters, register, sum_to


def _number(step: Step, name: str, default: float) -> float:
    """An attribute that has no default of its own, or that older opsets do not have."""
    return step.number(name) if name in step.node.attrs else default


def _split_heads(x: Array, heads: int) -> Array:
    """(N, L, heads·D) as (N, heads, L, D)."""
    xp = x.__array_namespace__()
    split: Array = xp.permute_dims(xp.reshape(x, (*x.shape[:2], heads, -1)), (0, 2, 1, 3))
    return split


def _join_heads(x: Array) -> Array:
    """(N, heads, L, D) as (N, L, heads·D)."""
    xp = x.__array_namespace__()
    n, heads, length, depth = x.shape
    joined: Array = xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (n, length, heads * depth))
    return joined


@dataclass(frozen=True)
class _Heads:
    """Queries (N, heads, L, D), keys (N, groups, S, D) and values, the past ones in front, and the mask's part."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    past: int


def _heads(step: Step, rows: int) -> _Heads:
    """The operands in four axes. A constant has one row for all."""

    def operand(index: int, attribute: str) -> Array:
        x = step.value(index)
        xp = x.__array_namespace__()
        x = xp.broadcast_to(x, (rows, *x.shape[1:]))
        return _split_heads(x, int(step.number(attribute))) if x.ndim == 3 else x

    q = operand(0, "q_num_heads")
    k, v = operand(1, "kv_num_heads"), operand(2, "kv_num_heads")
    xp = q.__array_namespace__()
    past_k, past_v = step.optional(4), step.optional(5)
    past = 0
    if past_k is not None and past_v is not None:
        past = past_k.shape[2]
        k, v = (
            xp.concat([xp.broadcast_to(p, (rows, *p.shape[1:])), x], axis=2)
            for p, x in ((past_k, k), (past_v, v))
        )
    return _Heads(q, k, v, step.optional(3), past)


def _bias(step: Step, heads: _Heads) -> Array:
    """What is added to the scores, −∞ where a query must not look; its last two axes are (L, S)."""
    xp = heads.q.__array_namespace__()
    length, size = heads.q.shape[2], heads.k.shape[2]
    bias = xp.zeros((length, size), dtype=heads.q.dtype)
    never = -xp.inf
    if (mask := heads.mask) is not None:
        if mask.dtype == xp.bool:
            mask = xp.where(mask, xp.zeros((), dtype=bias.dtype), never)
        beyond = xp.full((*mask.shape[:-1], size - mask.shape[-1]), never, dtype=mask.dtype)
        bias = bias + xp.concat([mask, beyond], axis=-1)
    valid = step.optional(6)
    at = xp.expand_dims(xp.arange(length), axis=1) + heads.past
    keys = xp.arange(size)
    allowed = xp.ones((length, size), dtype=xp.bool)
    if valid is not None:
        valid = xp.reshape(valid, (-1, 1, 1, 1))
        allowed = allowed & (keys < valid)
        at = at if heads.past else at + valid - length
    before, after = (_number(step, f"{side}_window_size", -1) for side in ("left", "right"))
    if step.attr("is_causal"):
        allowed = allowed & (keys <= at)
    if before >= 0:
        allowed = allowed & (keys >= at - before)
    if after >= 0:
        allowed = allowed & (keys <= at + after)
    masked: Array = xp.where(allowed, bias, never)
    return masked


@register("Attention", slots=(0, 1, 2, 3, 4, 5), outputs=None, record=all_inputs)
def attention(step: Step, g: Array) -> Cotangents:
    """The exact derivative of softmax(cap(q·kᵀ·scale) + bias)·v, for each of the outputs. ONNX Attention-25."""
    xp = g.__array_namespace__()
    rows = g.shape[0]
    heads = _heads(step, rows)
    q, k, v, past = heads.q, heads.k, heads.v, heads.past
    groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
    scale = _number(step, "scale", 1 / math.sqrt(q.shape[3]))
    cap = step.number("softcap")

    def shared(x: Array) -> Array:
        """Keys or values for every head of a group."""
        every: Array = xp.repeat(x, repeats, axis=1) if repeats > 1 else x
        return every

    def pooled(x: Array) -> Array:
        """What every head of a group gives to its keys or values."""
        total: Array = xp.sum(xp.reshape(x, (rows, groups, repeats, *x.shape[2:])), axis=2)
        return total

    scores = xp.matmul(q, xp.matrix_transpose(shared(k))) * scale
    bent = xp.tanh(scores / cap) if cap > 0 else xp.zeros_like(scores)
    bias = _bias(step, heads)
    seen = bias > -xp.inf
    biased = xp.where(seen, (cap * bent if cap > 0 else scores) + bias, -xp.inf)
    top = xp.max(biased, axis=-1, keepdims=True)
    weights = xp.exp(biased - xp.where(top > -xp.inf, top, 0))
    total = xp.sum(weights, axis=-1, keepdims=True)
    weights = weights / xp.where(total > 0, total, 1)

    to_k, to_v = xp.zeros_like(k), xp.zeros_like(v)
    to_weights = to_biased = to_capped = None
    mode = int(step.number("qk_matmul_output_mode"))
    if step.index == 0:
        g = _split_heads(g, q.shape[1]) if g.ndim == 3 else g
        to_v = pooled(xp.matmul(xp.matrix_transpose(weights), g))
        to_weights = xp.matmul(g, xp.matrix_transpose(shared(v)))
    elif step.index == 1:
        to_k = g
    elif step.index == 2:
        to_v = g
    elif mode == 3:
        to_weights = g
    elif mode == 2:
        to_biased = xp.where(seen, g, 0)
    else:
        to_capped = g
    if to_weights is not None:
        to_biased = weights * (to_weights - xp.sum(weights * to_weights, axis=-1, keepdims=True))
    to_scores = to_capped if to_biased is None else to_biased
    to_q = xp.zeros_like(q)
    if to_scores is not None:
        if cap > 0 and not (step.index == 3 and mode == 0):
            to_scores = to_scores * (1 - bent * bent)
        to_scores = to_scores * scale
        to_q = xp.matmul(to_scores, shared(k))
        to_k = to_k + pooled(xp.matmul(xp.matrix_transpose(to_scores), q))

    answers = [to_q, to_k[:, :, past:], to_v[:, :, past:]]
    answers = [_join_heads(a) if len(step.shape(i)) == 3 else a for i, a in enumerate(answers)]
    to_mask = None
    if 3 in step.wanted:
        to_bias = xp.zeros_like(scores) if to_biased is None else to_biased
        width = step.shape(3)[-1]
        to_mask = sum_to(to_bias[..., :width], step.shape(3))
    return (*answers, to_mask, to_k[:, :, :past], to_v[:, :, :past])


@register("RotaryEmbedding", record=parameters)
def rotary_embedding(step: Step, g: Array) -> Cotangents:
    """The opposite rotation. ONNX RotaryEmbedding-23."""
    xp = g.__array_namespace__()
    shape = g.shape
    if g.ndim == 3:
        g = _split_heads(g, int(step.number("num_heads")))
    cos, sin, places = step.value(1), step.value(2), step.optional(3)
    if places is not None:
        cos, sin = (
            xp.reshape(xp.take(x, xp.reshape(places, (-1,)), axis=0), (*places.shape, -1)) for x in (cos, sin)
        )
    cos, sin = (xp.expand_dims(x, axis=1) for x in (cos, sin))
    turned = 2 * cos.shape[-1]
    if step.attr("interleaved"):
        real, imaginary = g[..., 0:turned:2], g[..., 1:turned:2]
    else:
        real, imaginary = g[..., : turned // 2], g[..., turned // 2 : turned]
    parts = [cos * real + sin * imaginary, cos * imaginary - sin * real]
    if step.attr("interleaved"):
        parts = [xp.reshape(xp.stack(parts, axis=-1), (*g.shape[:-1], turned))]
    back = xp.concat([*parts, g[..., turned:]], axis=-1)
    return (back if len(shape) == 4 else _join_heads(back),)
