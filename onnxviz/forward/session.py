"""onnxruntime sessions on cut and instrumented copies of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxviz.errors import ModelError, ProviderError, UsageError
from onnxviz.model.graph import ModelFile
from onnxviz.runtime import FATAL_ONLY, PROVIDERS, error_line, gpus, open_session

__all__ = ["Runner", "Session", "choose_provider"]

Array = NDArray[Any]

_INSTALL_CUDA = "Install 'onnxviz[cuda]' on a machine with an NVIDIA driver, or use --provider cpu."


def choose_provider(asked: str) -> str:
    """The provider to use, ``cpu`` or ``cuda``, for ``auto``, ``cpu`` or ``cuda``.

    ``auto`` takes CUDA where a session really starts on it, and is quiet where none does.

    Raises:
        UsageError: an unknown name.
        ProviderError: ``cuda`` was asked for and cannot be used; says why.
    """
    if asked not in ("auto", *PROVIDERS):
        raise UsageError(f"Provider {asked!r} is not known. Choose one of auto, cuda, cpu.")
    if asked == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if asked == "cuda":
        raise ProviderError(f"CUDA cannot be used: {problem}. {_INSTALL_CUDA}")
    return "cpu"


@cache
def _cuda_problem() -> str | None:
    """Why CUDA cannot be used here, or None if it can.

    The driver is asked first: without one onnxruntime would print loader errors before it falls back.
    """
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        return "this onnxruntime is built without it"
    count = gpus()
    if count is None:
        return "there is no NVIDIA driver"
    if not count:
        return "the NVIDIA driver finds no GPU"
    with _quiet():
        ort.preload_dlls()
        try:
            session = ort.InferenceSession(_identity_model(), providers=[PROVIDERS["cuda"]])
        except Exception as error:  # onnxruntime raises types of its own
            return str(error).splitlines()[0]
    if session.get_providers()[0] != PROVIDERS["cuda"]:
        return "onnxruntime could not load its CUDA libraries"
    return None


def _identity_model() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages from onnxruntime's own logger, whose default is to print warnings and errors."""
    ort.set_default_logger_severity(FATAL_ONLY)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


class Session:
    """One onnxruntime session on a cut model.

    Inputs are put where the provider computes, all between stays there, and only outputs come back.

    Args:
        threads: that one run may use; None for as many as there are cores.

    Raises:
        ModelError: onnxruntime does not accept the model; its reason is given.
    """

    def __init__(
        self,
        model: ModelFile,
        cut: bytes,
        *,
        provider: str = "cpu",
        optimise: bool = True,
        threads: int | None = None,
    ) -> None:
        self._session = open_session(cut, model.path, provider, optimise=optimise, threads=threads)
        self._provider = provider
        self.path = model.path
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self.inputs = tuple(i.name for i in self._session.get_inputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name.

        Raises:
            ModelError: onnxruntime failed, or an input that is not fed is needed.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise ModelError(
                f"{self.path}: besides its image it needs the input(s) {', '.join(missing)}. "
                f"Give each a value: --feed {missing[0]}=VALUE."
            )
        try:
            values = self._on_device(feeds) if self._provider != "cpu" else self._in_memory(feeds)
        except Exception as error:
            raise ModelError(f"{self.path}: onnxruntime failed: {error_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def _in_memory(self, feeds: Mapping[str, Array]) -> list[Array]:
        return list(self._session.run(None, {name: feeds[name] for name in self.inputs}))

    def _on_device(self, feeds: Mapping[str, Array]) -> list[Array]:
        # A binding for each run: several threads may share a session.
        binding = self._session.io_binding()
        for name in self.inputs:
            value = np.ascontiguousarray(feeds[name])
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, self._provider, 0))
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())


class Runner:
    """Runs any number of images through a cut model, in whatever batches it takes.

    A file that fixes its batch is tried at larger ones: where two of its own batches give the same in one run,
    that is how it is used; else the images go through in the file's own batches, the last filled up. A file that
    leaves its batch open and then fails to keep a row an image is run one by one. ``note`` says which. Several threads
    may run batches at once.

    Args:
        cut: makes the cut model for a batch: None for what the file says, "N" for any.
        fixed: the batch that the file fixes, or None.
        threads: that one run may use; None for as many as there are cores.
    """

    def __init__(
        self,
        model: ModelFile,
        image: str,
        cut: Callable[[str | None], bytes],
        *,
        fixed: int | None,
        provider: str,
        threads: int | None = None,
    ) -> None:
        self._model, self._image, self._cut = model, image, cut
        self._open = partial(Session, model, provider=provider, threads=threads)
        self._session = self._open(cut(None))
        self._tried = fixed is None
        self._trying = Lock()
        self.fixed = fixed
        self.note: str | None = None

    def run(self, x: Array) -> dict[str, Array]:
        """All outputs, a row an image.

        Raises:
            ModelError: onnxruntime failed.
        """
        with self._trying:
            if not self._tried and self.fixed is not None and len(x) > self.fixed:
                self._try_free(x, self.fixed)
        if self.fixed is None:
            found = self._at_once(x)
            if found is not None:
                return found
            self.fixed = 1
            self.note = "The model leaves its batch open but does not keep it; images were run one by one."
        return self._in_batches(x, self.fixed)

    def _at_once(self, x: Array) -> dict[str, Array] | None:
        """All images in one run; None if several do not go together, though one alone might."""
        try:
            found = self._once(self._session, x)
        except ModelError:
            if len(x) == 1:
                raise
            return None
        return found if len(x) == 1 or all(len(value) == len(x) for value in found.values()) else None

    def _in_batches(self, x: Array, size: int) -> dict[str, Array]:
        if len(x) == size:
            # As it is: a graph may keep its batch on another axis.
            return self._once(self._session, x)
        parts = []
        for start in range(0, len(x), size):
            piece = x[start : start + size]
            if short := size - len(piece):
                piece = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)])
            found = self._once(self._session, piece)
            if wrong := next((name for name, value in found.items() if len(value) != size), None):
                raise ModelError(
                    f"{self._model.path}: {wrong!r} has {len(found[wrong])} rows for {size} image(s); "
                    "it does not keep the batch, and cannot be looked at."
                )
            parts.append(found)
        return {name: np.concatenate([p[name] for p in parts])[: len(x)] for name in parts[0]}

    def _once(self, session: Session, x: Array) -> dict[str, Array]:
        return session.run({self._image: x})

    def _try_free(self, x: Array, fixed: int) -> None:
        """Open the batch if two of the file's own batches, one of images and one of noise, go together.

        Noise is sure to differ from the images: of two alike a graph that mixes its batch shows nothing.
        """
        self._tried = True
        self.note = f"The model fixes its batch at {fixed}, and larger ones change its outputs: it was kept."
        images = x[:fixed]
        low, high = float(images.min()), max(float(images.max()), float(images.min()) + 1)
        noise = np.random.default_rng(0).uniform(low, high, images.shape).astype(x.dtype)
        sample = np.concatenate([images, noise])
        want = self._in_batches(sample, fixed)
        try:
            free = self._open(self._cut("N"))
            got = self._once(free, sample)
        except ModelError:
            return
        if all(got[name].shape == want[name].shape and _agree(got[name], want[name]) for name in want):
            self._session, self.fixed = free, None
            self.note = (
                f"The model fixes its batch at {fixed}; larger ones gave the same outputs and were used."
            )


def _agree(value: Array, want: Array) -> bool:
    if value.dtype.kind in "iu":
        # A place may move between two values that rounding made equal.
        return bool((value == want).mean() > 0.99)
    scale = float(np.abs(want).max(initial=0))
    return bool(np.allclose(value, want, rtol=1e-4, atol=1e-5 * scale))
