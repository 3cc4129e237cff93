"""Matrix products, and the Fourier transform."""

from __future__ import annotations

import numpy as np

from onnxviz.model.graph import Shape
from onnxviz.model.pulls import subscripts
from onnxviz.reverse.kernels import Array, einsum, place
from onnxviz.reverse.rules.registry import Cotangents, Step, other_inputs, parameters, register, sum_to


@register("Gemm", slots=(0, 1, 2), record=lambda node, wanted: other_inputs(node, wanted - {2}))
def gemm(step: Step, g: Array) -> Cotangents:
    """Transposed products for A and B, β·g for C. ONNX Gemm-13."""
    xp = g.__array_namespace__()
    alpha, beta = step.number("alpha"), step.number("beta")
    trans_a, trans_b = bool(step.attr("transA")), bool(step.attr("transB"))
    ga = gb = gc = None
    if 0 in step.wanted:
        b = step.value(1)
        ga = alpha * xp.matmul(g, b if trans_b else xp.matrix_transpose(b))
        ga = xp.matrix_transpose(ga) if trans_a else ga
    if 1 in step.wanted:
        a = step.value(0)
        gb = alpha * xp.matmul(a if trans_a else xp.matrix_transpose(a), g)
        gb = xp.matrix_transpose(gb) if trans_b else gb
    if 2 in step.wanted:
        gc = beta * sum_to(g, step.shape(2))
    return (ga, gb, gc)


@register("MatMul", slots=(0, 1), record=other_inputs)
def matmul(step: Step, g: Array) -> Cotangents:
    """g·Bᵀ and Aᵀ·g, batch axes broadcast as in NumPy. ONNX MatMul-13."""
    xp = g.__array_namespace__()
    shapes = [step.shape(i) for i in (0, 1)]
    if len(shapes[1]) == 1:
        g = xp.expand_dims(g, axis=-1)
    if len(shapes[0]) == 1:
        g = xp.expand_dims(g, axis=-2)
    ga = gb = None
    if 0 in step.wanted:
        b = step.value(1)
        b = xp.expand_dims(b, axis=-1) if b.ndim == 1 else b
        ga = xp.matmul(g, xp.matrix_transpose(b))
        ga = sum_to(ga, (1, *shapes[0]) if len(shapes[0]) == 1 else shapes[0])
        ga = xp.reshape(ga, shapes[0])
    if 1 in step.wanted:
        a = step.value(0)
        a = xp.expand_dims(a, axis=0) if a.ndim == 1 else a
        gb = xp.matmul(xp.matrix_transpose(a), g)
        gb = sum_to(gb, (*shapes[1], 1) if len(shapes[1]) == 1 else shapes[1])
        gb = xp.reshape(gb, shapes[1])
    return (ga, gb)


@register("Einsum", slots=None, record=other_inputs)
def einstein(step: Step, g: Array) -> Cotangents:
    """For each operand the einsum of g and the other operands. ONNX Einsum-12."""
    xp = g.__array_namespace__()
    ranks = [len(step.full_shape(i)) for i in range(len(step.node.inputs))]
    terms, result = subscripts(str(step.attr("equation")), ranks)
    answers: list[Array | None] = [None] * len(ranks)
    for i in sorted(step.wanted):
        factors = [(g, result)]
        for j in range(len(ranks)):
            if j != i:
                value = step.value(j)  # a constant whose windows move has the result's rank
                if value.ndim > ranks[j]:
                    value = xp.reshape(value, (value.shape[0], *value.shape[value.ndim - ranks[j] + 1 :]))
                factors.append((value, terms[j]))
        answers[i] = _einsum_to(factors, terms[i], step.shape(i))
    return tuple(answers)


def _einsum_to(factors: list[tuple[Array, tuple[str, ...]]], term: tuple[str, ...], shape: Shape) -> Array:
    """The einsum of labelled arrays into an operand of ``shape``, whose own labels are ``term``.

    A label that comes twice there is a diagonal, one that comes nowhere else is the same at every place, and one of
    size 1 was stretched.
    """
    g = factors[0][0]
    xp = g.__array_namespace__()
    axes: list[str] = []
    for label, n in zip(term, shape, strict=True):
        name = f"{label}, {len(axes)}" if n == 1 or label in axes else label
        if n > 1 and label in axes:
            factors.append((xp.eye(n, dtype=g.dtype), (label, name)))
        elif not any(name in labels for _, labels in factors):
            factors.append((xp.ones(n, dtype=g.dtype), (name,)))
        axes.append(name)
    numbers = {label: k for k, label in enumerate(dict.fromkeys(c for _, labels in factors for c in labels))}
    flat = [part for array, labels in factors for part in (array, [numbers[c] for c in labels])]
    return einsum(*flat, [numbers[label] for label in axes])


def _resized(x: Array, axis: int, size: int) -> Array:
    """``x`` cut off, or continued with zeros, to ``size`` along an axis."""
    return place(x, [0] * x.ndim, [size if a == axis else n for a, n in enumerate(x.shape)])


def _pulled_spectrum(g: Array, axis: int, length: int) -> Array:
    """The adjoint of a signal's first frequencies, (…, 2) real, by the ``length`` values of the signal, complex."""
    xp = g.__array_namespace__()
    spectrum = _resized(g[..., 0] + 1j * g[..., 1], axis, length)
    back: Array = xp.fft.ifft(spectrum, axis=axis, norm="forward")
    return back


def _as_parts(x: Array, parts: int) -> Array:
    """A complex array as (…, 1 or 2): the real part, and the imaginary part if there is one."""
    xp = x.__array_namespace__()
    stacked: Array = xp.stack([xp.real(x), xp.imag(x)][:parts], axis=-1)
    return stacked


@register("DFT", record=parameters)
def dft(step: Step, g: Array) -> Cotangents:
    """The conjugate transform. ONNX DFT-20."""
    xp = g.__array_namespace__()
    shape, inputs = step.shape(0), step.node.inputs
    axis = int(step.number("axis") if "axis" in step.node.attrs else step.value(2).reshape(())) % len(shape)
    inverse, onesided = step.attr("inverse"), step.attr("onesided")
    if len(inputs) > 1 and inputs[1]:
        length = int(step.value(1).reshape(()))
    else:
        length = shape[axis] if onesided and not inverse else g.shape[axis]
    if not inverse:
        back = _pulled_spectrum(g, axis, length)
    elif onesided:
        back = xp.fft.rfft(g[..., 0], axis=axis, norm="forward")
        # All but the first frequency, and the last of an even length, stand for two.
        twice = np.full(back.shape[axis], 2)
        twice[[0] if length % 2 else [0, -1]] = 1
        back = back * twice.astype(g.dtype).reshape((-1,) + (1,) * (back.ndim - axis - 1))
    else:
        back = xp.fft.fft(g[..., 0] + 1j * g[..., 1], axis=axis, norm="forward")
    return (_as_parts(_resized(back, axis, shape[axis]), shape[-1]),)


@register("STFT", record=parameters)
def stft(step: Step, g: Array) -> Cotangents:
    """The conjugate transform of every frame, added up where frames overlap. ONNX STFT-17."""
    inputs = step.node.inputs
    shape, hop = step.shape(0), int(step.value(1).reshape(()))
    window = step.value(2) if len(inputs) > 2 and inputs[2] else None
    if window is not None:
        length = window.shape[0]
    else:
        length = int(step.value(3).reshape(())) if len(inputs) > 3 and inputs[3] else shape[1]
    frames = _as_parts(_pulled_spectrum(g, 2, length), shape[2])
    if window is not None:
        frames = frames * window.reshape(-1, 1)
    back = np.zeros(shape, g.dtype)
    for number in range(g.shape[1]):
        back[:, number * hop : number * hop + length] += frames[:, number]
    return (back,)
