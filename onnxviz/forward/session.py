"""onnxruntime sessions on cut and instrumented copies of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from threading import Condition, Lock
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxviz.errors import ModelError, ProviderError, UsageError
from onnxviz.model.graph import ModelFile
from onnxviz.runtime import (
    FATAL_ONLY,
    PROVIDERS,
    error_line,
    filled_up,
    gpus,
    open_session,
    out_of_memory,
    trial_options,
)

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

    Inputs go to where the provider computes, all between stays there, and only outputs come back.

    Args:
        threads: that one run may use; None for as many as there are cores.
        trial: bound the memory and time of a run, on the CPU.

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
        trial: bool = False,
    ) -> None:
        self._session = open_session(
            cut, model.path, provider, optimise=optimise, threads=threads, trial=trial
        )
        self._trial = trial
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
            values = self._outputs(feeds)
        except Exception as error:
            kind = _NoMemoryError if out_of_memory(error) else ModelError
            raise kind(f"{self.path}: onnxruntime failed: {error_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def _outputs(self, feeds: Mapping[str, Array]) -> list[Array]:
        given = {name: feeds[name] for name in self.inputs}
        if not self._trial:
            return list(self._session.run(None, given))
        with trial_options() as options:
            return list(self._session.run(None, given, options))


class _NoMemoryError(ModelError):
    """There was not enough memory for a run; fewer images at once may do."""


class Runner:
    """Runs any number of images through a cut model, in whatever batches it takes.

    A file that fixes its batch is tried at larger ones (`decide`): where two of its own batches give the same in one
    run, that is how it is used; else the images go through in the file's own batches, the last filled up. A file that
    leaves its batch open and then fails to keep a row an image is run one by one. Where memory is short, fewer images
    are run at once. ``note`` says which. Several threads may run batches at once.

    Args:
        cut: makes the cut model for a batch: None for what the file says, "N" for any.
        shape: of a batch: the file's own, or of one image where it is open.
        fixed: the batch that the file fixes, or None.
        threads: that one run may use; None for as many as there are cores.
        filled: fill up smaller batches to so many images, unless the file fixes its batch. On CUDA another size means
            other kernels: they have to be found, and may give an image other last bits.
    """

    def __init__(
        self,
        model: ModelFile,
        image: str,
        cut: Callable[[str | None], bytes],
        *,
        shape: Sequence[int],
        dtype: str,
        fixed: int | None,
        provider: str,
        threads: int | None = None,
        filled: int | None = None,
    ) -> None:
        self._model, self._image, self._cut = model, image, cut
        self._shape, self._dtype = tuple(shape), dtype
        self._provider = provider
        self._open = partial(Session, model, provider=provider, threads=threads)
        self._session = self._open(cut(None))
        self._undecided = fixed is not None
        self._deciding = Lock()
        self.fixed = fixed
        self._filled = filled
        self._most: int | None = None
        self._notes: dict[str, str] = {}
        self._turns = Condition()
        self._running, self._alone = 0, False

    @property
    def note(self) -> str | None:
        """What was special about batches, in a sentence or two; None if nothing was."""
        return " ".join(self._notes.values()) or None

    def run(self, x: Array) -> dict[str, Array]:
        """All outputs, a row an image.

        Raises:
            ModelError: onnxruntime failed.
        """
        if self.fixed is not None and len(x) > self.fixed:
            self.decide()
        parts: list[dict[str, Array]] = []
        start = 0
        while start < len(x) or not parts:
            rows = min(self._most or len(x), len(x) - start)
            try:
                with self._turn():
                    parts.append(self._run(x[start : start + rows]))
                start += rows
            except _NoMemoryError as error:
                self._run_fewer(self._rows(rows), error)
        if len(parts) == 1:
            return parts[0]
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except MemoryError as error:
            raise ModelError(
                f"{self._model.path}: there is not enough memory for what {len(x)} images give."
            ) from error

    def _run(self, x: Array) -> dict[str, Array]:
        if self.fixed is None:
            found = self._at_once(x)
            if found is not None:
                return found
            self.fixed = 1
            self._notes["batch"] = (
                "The model leaves its batch open but does not keep it; images were run one by one."
            )
        return self._in_batches(x, self.fixed)

    def _at_once(self, x: Array) -> dict[str, Array] | None:
        """All images in one run; None if several do not go together, though one alone might."""
        count = len(x)
        x = filled_up(x, self._rows(count))
        try:
            found = self._once(self._session, x)
        except _NoMemoryError:
            raise
        except ModelError:
            if len(x) == 1:
                raise
            return None
        if len(x) == 1:
            return found
        whole = all(len(value) == len(x) for value in found.values())
        return {name: value[:count] for name, value in found.items()} if whole else None

    def _rows(self, count: int) -> int:
        """How many images a run of so many is filled up to."""
        if self.fixed is not None or not self._filled or not count:
            return count
        return max(count, min(self._filled, self._most or self._filled))

    def _in_batches(self, x: Array, size: int) -> dict[str, Array]:
        if len(x) == size:
            # As it is: a graph may keep its batch on another axis.
            return self._once(self._session, x)
        parts = []
        for start in range(0, len(x), size):
            piece = filled_up(x[start : start + size], size)
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

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A run; where even one image was too much beside others, no other runs meanwhile."""
        with self._turns:
            self._turns.wait_for(lambda: not (self._alone and self._running))
            self._running += 1
        try:
            yield
        finally:
            with self._turns:
                self._running -= 1
                self._turns.notify_all()

    def _run_fewer(self, rows: int, error: ModelError) -> None:
        """From now on half as many images at once; of the fewest, one run after the other.

        Raises:
            ModelError: that was so already.
        """
        least = self.fixed or 1
        with self._turns:
            if rows > least:
                most = max(rows // 2 // least * least, least)
                self._most = min(most, self._most or most)
            elif self._alone:
                elsewhere = "" if self._provider == "cpu" else ", use --provider cpu"
                raise ModelError(
                    f"{self._model.path}: there is not enough memory for {least} image{'s' * (least > 1)}. Choose "
                    f"fewer layers{elsewhere}, or where the model allows it smaller images (--size)."
                ) from error
            else:
                self._alone = True
            at_once = f"{self._most or least} at a time"
            self._notes["memory"] = (
                f"Memory was short: images were run {at_once}{', in one thread' * self._alone}."
            )

    def decide(self) -> None:
        """Find out whether a file that fixes its batch can be run at larger ones; what is found stays.

        It does not depend on any image, so that all parts of a scan find the same: two of the file's own batches, of
        noise, go through one by one and together.
        """
        with self._deciding:
            if self._undecided and self.fixed is not None:
                self._try_free(self.fixed)
            self._undecided = False

    def _try_free(self, fixed: int) -> None:
        """Open the batch if two of the file's own batches go together.

        The two differ: of two alike a graph that mixes its batch shows nothing.
        """
        self._notes["batch"] = (
            f"The model fixes its batch at {fixed}, and larger ones change its outputs: it was kept."
        )
        sample = self._noise()
        want = self._in_batches(sample, fixed)
        try:
            free = self._open(self._cut("N"))
            got = self._once(free, sample)
        except _NoMemoryError:
            self._notes["batch"] = (
                f"The model fixes its batch at {fixed}; there was no memory for larger ones."
            )
            return
        except ModelError:
            return
        if all(got[name].shape == want[name].shape and _agree(got[name], want[name]) for name in want):
            self._session, self.fixed = free, None
            self._notes["batch"] = (
                f"The model fixes its batch at {fixed}; larger ones gave the same outputs and were used."
            )

    def _noise(self) -> Array:
        """Two of the file's own batches: about what a network takes that wants values around 0, and 0 to 255.

        In half precision such large values overflow in networks that want small ones.
        """
        rng = np.random.default_rng(0)
        most = 4.0 if self._dtype == "float16" else 255.0
        low = 0.0 if self._dtype == "uint8" else -2.0
        sample = [rng.uniform(low, 2.0, self._shape), rng.uniform(0, most, self._shape)]
        return np.concatenate(sample).astype(self._dtype)


def _agree(value: Array, want: Array) -> bool:
    if value.dtype.kind in "iu":
        # A place may move between two values that rounding made equal.
        return bool((value == want).mean() > 0.99)
    fine = np.isfinite(want)
    if not np.array_equal(fine, np.isfinite(value)):
        return False
    scale = float(np.abs(want[fine]).max(initial=0))
    return bool(np.allclose(value[fine], want[fine], rtol=1e-4, atol=1e-5 * scale))
