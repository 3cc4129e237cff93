"""Starting onnxruntime on a model in memory, quietly, with its errors in a line."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock, Timer
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxviz.errors import ModelError

__all__ = [
    "FATAL_ONLY",
    "PROVIDERS",
    "cores",
    "error_line",
    "filled_up",
    "gpus",
    "open_session",
    "out_of_memory",
    "providers",
    "release_memory",
    "run_session",
    "trial_options",
]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""TF32 rounds products to 10 bits. By default all of cuDNN's kernels are tried whenever a convolution meets a new size,
for a fourth of a second in SqueezeNet, and others are taken for other batches and runs, so that last bits change."""

FATAL_ONLY = 4
"""A log level. At the default one onnxruntime prints warnings of its own; its errors reach us as exceptions."""

_TRIAL_BYTES = 4 << 30
_TRIAL_SECONDS = 20.0
"""What working out constants and sizes may take, all at once: a file can ask for any amount with a few bytes."""

_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ")
_PLACE = re.compile(r"(?:/\S+:\d+ .+?\)(?: \[with [^\]]*\])?|\b[\w.]+\.(?:cc|h):\d+ \S+) ")
"""Where in onnxruntime's own source an error was raised: a path with the function's signature, or file and function."""


def providers(name: str) -> list[str | tuple[str, dict[str, str]]]:
    """What onnxruntime is to use for ``cpu`` or ``cuda``, with options, the first where it can."""
    cpu = PROVIDERS["cpu"]
    return [cpu] if name == "cpu" else [(PROVIDERS[name], _CUDA_OPTIONS), cpu]


def open_session(
    cut: bytes,
    path: Path,
    provider: str = "cpu",
    *,
    optimise: bool = True,
    threads: int | None = None,
    arena: bool = True,
    initializers: Mapping[str, NDArray[Any]] | None = None,
    trial: bool = False,
) -> ort.InferenceSession:
    """A session on a serialised model that was cut from the file ``path``.

    Args:
        optimise: without it, the session opens sooner and runs slower.
        threads: that one operator may use; None for as many as there are cores.
        arena: whether the session keeps the memory of its largest run. Many sessions that take turns should not.
        initializers: values of those that the model only names; they are not copied before the session is made.
        trial: on the CPU, bound the memory that runs take beside the weights; run it with `trial_options`.

    Raises:
        ModelError: onnxruntime does not accept the model; its reason is given.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # External weights lie beside the file, which a model given as bytes does not know.
    folder = str(path.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if threads is not None:
        options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    if initializers:
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for v in initializers.values()]
        options.add_external_initializers(list(initializers), values)
    if trial:
        _bound_trials()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        # Without its own fallback, which prints, and tries what was tried already.
        return ort.InferenceSession(cut, options, providers=providers(provider), enable_fallback=0)
    except Exception as error:  # onnxruntime raises types of its own
        raise ModelError(f"{path}: onnxruntime cannot run it: {error_line(error)}") from error


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], path: Path
) -> list[NDArray[Any]]:
    """Some outputs of a session.

    Raises:
        ModelError: onnxruntime failed; its reason is given.
    """
    try:
        return list(session.run(list(outputs), feeds))
    except Exception as error:  # onnxruntime raises types of its own
        raise ModelError(f"{path}: onnxruntime failed: {error_line(error)}") from error


def filled_up(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """So many rows: the last over and over, after all that there are."""
    return rows if len(rows) == count else np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), 0)])


_bounding = Lock()


def _bound_trials() -> None:
    """One allocator for all trials of the process, which gives no more than `_TRIAL_BYTES`."""
    with _bounding:
        _register_bounded()


@cache
def _register_bounded() -> None:
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # Extended by what is asked for, not by doubling, and given back after each run.
    limits = ort.OrtArenaCfg({"max_mem": _TRIAL_BYTES, "arena_extend_strategy": 1})
    ort.create_and_register_allocator(place, limits)


@contextmanager
def trial_options() -> Iterator[ort.RunOptions]:
    """Options for one run of a session that is a trial: it is broken off when it takes too long.

    A Loop may be told to go on for ever.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    timer = Timer(_TRIAL_SECONDS, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


_NO_MEMORY = (
    *("failed to allocate memory", "available memory of", "bad_alloc", "bad allocation", "out of memory"),
    *(
        "cuda_error_out_of_memory",
        "cudaerrormemoryallocation",
        "cublas_status_alloc_failed",
        "unable to allocate",
    ),
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime, CUDA, NumPy or Python says that there was not enough memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def cores() -> int:
    """Processor cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def gpus() -> int | None:
    """NVIDIA GPUs that the driver finds, or None if there is no driver."""
    name = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    count = ctypes.c_int(0)
    fine = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if fine else 0


def release_memory() -> None:
    """Give back what was freed: glibc keeps it, one heap a thread, and the phases of a job would add up."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def error_line(error: BaseException) -> str:
    """The first line of an onnxruntime error, without its codes and the places in onnxruntime's source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith("for the following indices"):
        text = f"{text.removesuffix(' for the following indices')}, {lines[1].strip()}"
    if match := re.search(r"Opset (\d+) is under development", text):
        return f"it does not know opset {match[1]}; export the model with an older one, or update onnxruntime"
    if "terminate flag" in text:
        text = text.replace(
            "Exiting due to terminate flag being set to true.", f"no end after {_TRIAL_SECONDS:.0f} s"
        )
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    text = _PLACE.sub("", _NODE.sub(r"\1 '\2': ", text))
    return text if len(text) <= 300 else f"{text[:297]}..."
