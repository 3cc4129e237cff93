"""The tensors of a model that do not depend on its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxviz.model.soundness import check_sizes, understood

if TYPE_CHECKING:
    from onnxviz.model.graph import ModelFile

__all__ = ["RANDOM", "Constants"]

RANDOM = ("Random", "Bernoulli", "Multinomial")
"""Beginnings of the names of operators that give something else at every run."""


class Constants(Mapping[str, np.ndarray]):
    """Every tensor of a model that does not depend on its inputs, by name, decoded when first asked for.

    Initializers (also those that are graph inputs, and inputs that were fed), Constant and ConstantOfShape nodes,
    and whatever nodes compute from these alone; the last are evaluated by onnxruntime. Arrays are read-only.

    Args:
        base: constants of the same model as far as they were known before; their arrays are shared.
        known: more tensors that are known.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        base: Constants | None = None,
        known: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._model = model
        self._base = base
        self._known = dict(known or {})
        self._cache: dict[str, np.ndarray] = {}
        for name, array in self._known.items():
            self._keep(name, array)
        names = dict.fromkeys((*(base or ()), *model.initializers, *self._known))
        for node in model.graph.nodes:
            fed = (name for name in (*node.inputs, *node.captures) if name)
            if not node.op.startswith(RANDOM) and all(name in names for name in fed):
                names.update(dict.fromkeys(name for name in node.outputs if name))
        self._names = names

    def with_known(self, values: Mapping[str, np.ndarray]) -> Constants:
        """These and the given tensors, with whatever can be computed from both; this mapping stays as it is."""
        return Constants(self._model, base=self, known={n: v for n, v in values.items() if n not in self})

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        self.fetch([name])
        return self._base[name] if self._base is not None and name in self._base else self._cache[name]

    def fetch(self, names: Iterable[str]) -> None:
        """Decode several at once: those that need computing share one onnxruntime session.

        Raises:
            KeyError: no constant has that name.
            ModelError: a weight cannot be read, or onnxruntime cannot compute one.
        """
        before, computed = [], []
        for name in names:
            if self._base is not None and name in self._base:
                before.append(name)
            elif name not in self._names:
                raise KeyError(name)
            elif name not in self._cache:
                array = self._direct(name)
                if array is None:
                    computed.append(name)
                else:
                    self._keep(name, array)
        if self._base is not None and before:
            self._base.fetch(before)
        if computed:
            for name, array in zip(computed, self._model.evaluate(computed, self._all_known()), strict=True):
                self._keep(name, array)

    def _all_known(self) -> dict[str, np.ndarray]:
        return {**(self._base._all_known() if self._base is not None else {}), **self._known}

    def _keep(self, name: str, array: np.ndarray) -> None:
        array = array.view()
        array.flags.writeable = False
        self._cache[name] = array

    def _direct(self, name: str) -> np.ndarray | None:
        """The array of a stored tensor, or one filled with a constant; None if it must be computed."""
        if (tensor := self._model.initializers.get(name)) is not None:
            return self._model.decode(tensor)
        node = self._model.graph.producer[name]
        if node.kind != "ConstantOfShape":
            return None
        with understood(node):
            shape = tuple(int(d) for d in self[node.inputs[0]])
        check_sizes({name: shape}, self._model.path)
        return np.full(shape, self._model.fill(name))
