"""When a scan is saved: now and then, at its end, and when it is broken off."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

from onnxviz.errors import AtlasError
from onnxviz.forward.part import Part

__all__ = ["Save", "Saving"]

Save: TypeAlias = Callable[[Part], object]


class Saving:
    """Calls ``save`` with what is known, or nothing if there is none.

    Args:
        save: an `AtlasError` that it raises ends the scan.
        every: seconds between two times that a scan is saved while it goes on.
    """

    def __init__(self, save: Save | None, every: float = math.inf) -> None:
        self._save, self._every = save, every
        self._at = monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save a scan that goes on."""
        return self._save is not None and monotonic() - self._at >= self._every

    def wanted_after(self, error: BaseException) -> bool:
        """Whether to save what is known by a scan that an error ends: not if saving is what failed."""
        return self._save is not None and not isinstance(error, AtlasError)

    def now(self, part: Part) -> None:
        """Save it."""
        if self._save:
            self._save(part)
            self._at = monotonic()
