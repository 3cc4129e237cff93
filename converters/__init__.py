"""Converters: networks in other weight formats, written as ONNX models with named nodes and preprocessing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from onnxviz.errors import UsageError

__all__ = ["CONVERTERS", "Converter"]


@dataclass(frozen=True)
class Converter:
    """A weight format that can be converted. ``options`` are the names that its ``convert`` also takes."""

    name: str
    summary: str
    convert: Callable[..., Path]
    options: tuple[str, ...] = ()

    def run(self, weights: Path, out: Path, options: Mapping[str, str | None] | None = None) -> Path:
        """Convert ``weights`` to the model ``out`` and return its path; an option of None was not given.

        Raises `UsageError` for an option that this converter does not have and for an output that would
        replace the weights, and what its ``convert`` raises.
        """
        given = {name: value for name, value in (options or {}).items() if value is not None}
        for option in given:
            if option not in self.options:
                having = [converter.name for converter in CONVERTERS.values() if option in converter.options]
                where = f"it is an option of {', '.join(having)} only" if having else "no converter has it"
                raise UsageError(f"{self.name}: no option {option}; {where}. Leave it out.")
        if weights.exists() and out.exists() and out.samefile(weights):
            raise UsageError(f"output {out}: is the weight file itself. Give another name.")
        return self.convert(weights, out, **given)


class _Converters(dict[str, Converter]):
    """The table of converters; asking for an unknown name lists the known ones."""

    def __missing__(self, name: str) -> Converter:
        close = difflib.get_close_matches(name, self, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"no converter {name!r}; there are {', '.join(self)}.{hint}")


# The modules are imported on use: `onnxviz convert --help` is quick, and
# `python -m onnxviz.converters.simple` does not find its module loaded already.


def _alexnet(weights: Path, out: Path, **options: str) -> Path:
    from . import alexnet

    return alexnet.convert(weights, out, **options)


def _vgg16(weights: Path, out: Path) -> Path:
    from . import vgg16

    return vgg16.convert(weights, out)


def _simple(weights: Path, out: Path) -> Path:
    from . import simple

    return simple.convert(weights, out)


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    _Converters(
        {
            converter.name: converter
            for converter in (
                Converter(
                    "alexnet",
                    "AlexNet from bvlc_alexnet.npy (a pickled dict: conv1 … fc8)",
                    _alexnet,
                    ("conv1_padding",),
                ),
                Converter("vgg16", "VGG16 from vgg16_weights.npz (conv1_1_W … fc8_b)", _vgg16),
                Converter("simple", "the small MNIST net from an .npz (wc1, bc1 … wout, bout)", _simple),
            )
        }
    )
)
"""Every converter by the name that `onnxviz convert` takes."""
