"""The options that commands share, and what their texts mean."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxviz.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Activation",
    "BatchSize",
    "Bgr",
    "Cluster",
    "Debug",
    "Engine",
    "Feed",
    "Images",
    "Input",
    "JsonProgress",
    "Labels",
    "LayersOption",
    "Limit",
    "LogFileOption",
    "Lrn",
    "Mean",
    "Memory",
    "MethodOption",
    "ModelArgument",
    "OnlyChannels",
    "OnlyLayers",
    "Overlap",
    "Preset",
    "Provider",
    "Quiet",
    "Rank",
    "Restart",
    "RunArgument",
    "SaveEvery",
    "Size",
    "Std",
    "Theme",
    "Top",
    "Workers",
    "parse_bytes",
    "parse_feeds",
    "parse_numbers",
    "parse_position",
    "parse_shard",
    "parse_size",
]

RunArgument = Annotated[
    Path, typer.Argument(help="The folder of a report that analyze wrote, or of a saved atlas.")
]
OnlyLayers = Annotated[
    list[str] | None,
    typer.Option("--layer", "-l", help="Only this layer. Repeat it for more.", show_default="all"),
]
OnlyChannels = Annotated[
    str | None, typer.Option(help="Only these channels, as 0-15,40.", show_default="all")
]
ModelArgument = Annotated[Path, typer.Argument(help="The model, an ONNX file.", show_default=False)]
Provider = Annotated[
    str, typer.Option(help="Where to run the network: auto (CUDA where there is one), cuda or cpu.")
]
Engine = Annotated[
    str,
    typer.Option(
        help="What computes projections: auto, stages or graph (compiled for onnxruntime), or numpy (slow, plain)."
    ),
]
Memory = Annotated[
    str, typer.Option(help="About how much memory projecting may take, weights not counted: 512M, 2G.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="Named preprocessing: imagenet, caffe, tf, unit or raw. By default the model's sidecar file or "
        "metadata says, else its input's shape.",
        show_default=False,
    ),
]
Mean = Annotated[
    str | None, typer.Option(help="Mean of each channel, as 0.485,0.456,0.406.", show_default=False)
]
Std = Annotated[
    str | None, typer.Option(help="Standard deviation of each channel, likewise.", show_default=False)
]
Bgr = Annotated[
    bool | None, typer.Option("--bgr/--rgb", help="The order of the network's channels.", show_default=False)
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Size of the images, as 224 or 224x320 (height x width), where the model leaves it open.",
        show_default=False,
    ),
]
Input = Annotated[
    str | None,
    typer.Option("--input", help="The input that takes images, where there are several.", show_default=False),
]
Feed = Annotated[
    list[str] | None,
    typer.Option(
        help="Value of another input, as NAME=0.5, NAME=640,640, NAME=[[1,2],[3,4]] or NAME=values.npy. "
        "Repeat it for more.",
        show_default=False,
    ),
]
MethodOption = Annotated[str, typer.Option(help="deconvnet, guided or gradient.")]
Overlap = Annotated[
    str, typer.Option(help="Where pooling windows overlap on one place: sum (the adjoint) or mean.")
]
Lrn = Annotated[
    str | None,
    typer.Option(
        help="How LRN is reversed: identity or gradient.",
        show_default="identity; gradient with --method gradient",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        help="Activations other than ReLU that rectify (LeakyRelu …): rectify or gradient.",
        show_default="rectify; gradient with --method gradient",
    ),
]
LayersOption = Annotated[
    list[str],
    typer.Option(
        "--layer",
        "-l",
        help="A layer by name or alias (conv5), a glob (fire*/expand3x3), a range (conv1..conv5) or all (every "
        "convolution and fully connected layer). Repeat it for more.",
        show_default=False,
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        help="A folder (class sub-folders give labels), an image, an archive (.zip, .tar, .tgz …), or .npy/.npz; "
        "also a URL (s3://, gs://, https:// …), and several by a pattern (train-{00..99}.tar, photos/*.jpg). "
        "Without it, built-in samples that suit the input.",
        show_default=False,
    ),
]
Top = Annotated[int, typer.Option(min=1, help="Images to keep for each channel.")]
Rank = Annotated[
    str,
    typer.Option(
        help="Order images by the largest activation (max), by the sum over the map (sum), or not (first)."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read only the first N images.", show_default=False)]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images a run.", show_default="what suits the network, up to 32"),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Class names, one a line or as JSON: for output units and numbered labels.",
        show_default=False,
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Start over, whatever scan is kept there.")]
SaveEvery = Annotated[float, typer.Option(min=0, help="Seconds between two times that the scan is saved.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Scan in so many processes, each with a GPU or a share of the cores.",
        show_default="this process alone",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Scan on a Dask cluster: its scheduler's address (tcp://host:8786) or its scheduler file. Needs "
        "onnxviz[cluster], there too.",
        show_default=False,
    ),
]
Theme = Annotated[
    str, typer.Option(help="Colours of the report: light, dark, or auto (as the reader's system prefers).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
JsonProgress = Annotated[
    bool,
    typer.Option(
        "--json-progress",
        help="For programs: print the run's course on standard output as JSON objects, one a line, and nothing else "
        "there.",
    ),
]
LogFileOption = Annotated[
    Path | None,
    typer.Option(
        help="Also append the run's course to this file, every skipped image and every error's traceback included.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """A number a channel, with commas between them; ``option`` is whose they are."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: write numbers with commas between them, such as 0.5,0.5,0.5."
        ) from None


def parse_feeds(texts: list[str] | None) -> dict[str, NDArray[Any]]:
    """Values of inputs: a .npy file, JSON, or numbers with commas between them."""
    import numpy as np

    found: dict[str, NDArray[Any]] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        try:
            if not (name and sign):
                raise ValueError("there is no '='")
            if value.endswith(".npy"):
                array = np.load(value, allow_pickle=False)
            else:
                array = np.asarray(
                    json.loads(value if value.startswith("[") or "," not in value else f"[{value}]")
                )
            if array.dtype.kind not in "biuf":
                raise ValueError("these are no numbers")
        except (ValueError, OSError, EOFError) as error:
            raise UsageError(
                f"--feed {text!r}: write NAME=0.5, NAME=640,640, NAME=[[1,2],[3,4]] or NAME=values.npy ({error})."
            ) from None
        found[name] = array
    return found


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width, of 224 or 224x320."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--size {text!r}: write 224, or 224x320 for height x width.")
    height, width = int(parts[0]), int(parts[-1])
    return height, width


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LEAST_MEMORY = 16 << 20


def parse_bytes(text: str) -> int:
    """Bytes, of 512M or 2G."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"--memory {text!r}: write a number of bytes, such as 512M or 2G.")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < _LEAST_MEMORY:
        raise UsageError(
            f"--memory {text!r}: less than {_LEAST_MEMORY >> 20}M; projecting needs more than that."
        )
    return size


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """The number of a shard and of how many, of 3/16."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
    if not match:
        raise UsageError(f"--shard {text!r}: write the part and how many there are, such as 3/16.")
    return int(match[1]), int(match[2])


def parse_position(text: str | None) -> tuple[int, int] | None:
    """Row and column of a unit, of 6,7."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--position {text!r}: write Y,X, the row and column of the unit, such as 6,7.")
    return int(parts[0]), int(parts[1])
