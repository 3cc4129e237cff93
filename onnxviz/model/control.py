"""The same network with shuffled weights: what a projection shows there, too, says nothing of the training."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from onnxviz.errors import UsageError
from onnxviz.model.graph import ModelFile

__all__ = ["shuffled"]

_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvInteger": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Einsum": (0, 1),
    "GRU": (1, 2),
    "Gemm": (0, 1),
    "LSTM": (1, 2),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
    "RNN": (1, 2),
}
"""Where operators take weights; that these are constant is for the model to say."""


def shuffled(file: ModelFile, tensors: Iterable[str], seed: int = 0) -> ModelFile:
    """The model with the elements of each weight tensor that ``tensors`` depend on in random order.

    Weights keep their distribution, layer by layer, and lose all that was learnt; biases, normalisation and scales
    of quantisation stay as they are. The order follows from ``seed`` and the tensor's name alone.

    Raises:
        UsageError: there are no weights to shuffle.
        ModelError: a weight cannot be read.
    """
    tensors = list(tensors)
    if any(name not in file.graph.producer for name in tensors):
        tensors = list(file.graph.outputs)  # a tensor of a part that is written out for a certain size only
    names = sorted(set(_weights(file, file.graph.ancestors(tensors))))
    if not names:
        raise UsageError(
            f"{file.path}: there are no weights to shuffle on the way to the layers. Leave --control out."
        )
    values = {}
    for name in names:
        array = file.decode(file.initializers[name])
        order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(array.size)
        values[name] = array.reshape(-1)[order].reshape(array.shape)
    return file.with_weights(values)


def _weights(file: ModelFile, needed: set[str]) -> Iterator[str]:
    """Stored tensors of two axes or more that constant weights of operators are made of."""
    for node in file.graph.nodes:
        if node.domain or needed.isdisjoint(node.outputs):
            continue
        for index in _WEIGHTS.get(node.op, ()):
            name = node.inputs[index] if index < len(node.inputs) else ""
            if name not in file.constants:
                continue
            for source in file.graph.ancestors([name]):
                tensor = file.initializers.get(source)
                if tensor is not None and len(tensor.dims) > 1 and math.prod(tensor.dims) > 1:
                    yield source
