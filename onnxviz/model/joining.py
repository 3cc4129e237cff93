"""A model's own graph and one that was written on top of it, joined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper

from onnxviz.errors import ModelError, OnnxvizError, UsageError
from onnxviz.model.graph import ModelFile
from onnxviz.model.opening import first_line, opset_of
from onnxviz.model.writer import GraphWriter

__all__ = ["OLDEST", "joined", "write_model"]

OLDEST = 13
"""The first opset whose operators are written; older models are converted up."""

_IR_VERSION = 8


def joined(
    model: ModelFile,
    writer: GraphWriter,
    tensors: Sequence[str],
    outputs: Sequence[str],
    *,
    image: str,
    batch: str | None = None,
    provider: str | None = None,
) -> bytes:
    """A model, serialised, that computes ``tensors`` as the file does, and from these what was written.

    Args:
        writer: has ``tensors`` among its inputs; its others become inputs of the model.
        outputs: of the writer; the model's.
        image: the input that takes images.
        batch, provider: of the file's own part (`ModelFile.cut`).

    Raises:
        ModelError: an older model cannot be converted to opset 13.
    """
    wanted = [name for name in tensors if name != image]
    proto = onnx.load_model_from_string(model.cut(wanted, image=image, batch=batch, provider=provider))
    proto.ir_version = max(
        proto.ir_version, _IR_VERSION
    )  # before the fourth, initializers had to be inputs too
    if opset_of(proto) < OLDEST:
        try:
            proto = onnx.version_converter.convert_version(proto, OLDEST)
        except Exception as error:
            raise ModelError(
                f"{model.path}: opset {model.opset} could not be converted to {OLDEST}: {first_line(error)}."
            ) from error
    nodes, constants, inputs = writer.parts(outputs)
    graph = proto.graph
    made = {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
    graph.node.extend(nodes)
    graph.input.extend(writer.value_info(name) for name in inputs if name not in made)
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    del graph.output[:]
    graph.output.extend(writer.value_info(name) for name in outputs)
    written: bytes = proto.SerializeToString()
    return written


def write_model(data: bytes, out: Path) -> Path:
    """Write a serialised model: whole or not at all. Returns ``out``.

    Raises:
        UsageError: ``out`` is a folder or lies in none.
        OnnxvizError: writing fails.
    """
    if out.is_dir():
        raise UsageError(f"output {out}: a folder; expected the name of a file, such as {out / 'model.onnx'}")
    if not out.parent.is_dir():
        raise UsageError(f"output {out}: there is no folder {out.parent}. Make it first.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(out)
    except OSError as error:
        raise OnnxvizError(f"output {out}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return out
