"""Values that the user gives for inputs other than the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxviz.errors import UsageError

if TYPE_CHECKING:
    from onnxviz.model.graph import TensorInfo

__all__ = ["fit"]


def fit(info: TensorInfo, dtype: np.dtype[Any] | None, value: ArrayLike) -> NDArray[Any]:
    """A value as an input wants it: its type, and its shape where the numbers leave no doubt.

    One number alone fills the input; as many numbers as the input has are put into its shape. Open dimensions
    are 1 in both.

    Args:
        dtype: the input's type; None if it holds no numbers.

    Raises:
        UsageError: the value has another shape, or numbers that the type cannot hold.
    """
    given = np.asarray(value)
    what = f"{given.dtype} {'×'.join(map(str, given.shape)) or 'scalar'}"
    if dtype is None or given.dtype.kind not in "biuf":
        raise UsageError(f"The input {info} cannot be fed {what}: only numbers can be fed, and to numbers.")
    with np.errstate(all="ignore"):
        cast = given.astype(dtype)
    if not _holds(cast, given):
        raise UsageError(f"The input {info} cannot be fed {what}: {dtype} cannot hold its values.")
    if info.shape is None or _agrees(info.shape, cast.shape):
        return cast
    closed = tuple(d if isinstance(d, int) else 1 for d in info.shape)
    if cast.ndim == 0:
        return np.full(closed, cast)
    if cast.size == np.prod(closed):
        return cast.reshape(closed)
    raise UsageError(
        f"The input {info} cannot be fed {what}: give {'×'.join(map(str, closed))} numbers, or one for all."
    )


def _agrees(stated: tuple[int | str | None, ...], shape: tuple[int, ...]) -> bool:
    return len(stated) == len(shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(stated, shape, strict=True)
    )


def _holds(cast: NDArray[Any], given: NDArray[Any]) -> bool:
    """Whether a cast kept the numbers; floating-point types may round them, but not overflow."""
    if np.array(0.5).astype(cast.dtype).astype(np.float64) == 0.5:
        return np.array_equal(np.isfinite(cast.astype(np.float64)), np.isfinite(given))
    # Two's complement comes back from a round trip as it went, with the other sign in between.
    same_sign = np.array_equal(cast.astype(np.float64) < 0, given < 0)
    return same_sign and np.array_equal(cast.astype(given.dtype), given)
