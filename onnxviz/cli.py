"""The command line: parse, call, print, map errors to exit codes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.progress import TaskID

    from onnxviz.check import Check

__all__ = ["app", "main"]

app = typer.Typer(
    name="onnxviz",
    help="See what every channel of a convolutional network responds to: top images, patches and deconvnet "
    "projections of any ONNX model, as an offline HTML report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich takes a third of the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LARGE_FILE = 500_000_000  # bytes of a report in one file, from which on there is a note

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
Theme = Annotated[
    str, typer.Option(help="Colours of the report: light, dark, or auto (as the reader's system prefers).")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run the command line."""
    app()


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Errors as one line and an exit code: the error's own, 1 for what nobody foresaw, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except OnnxvizError as error:
        if debug:
            raise
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        typer.echo(f"Error: {kind}{error} (--debug shows where)", err=True)
        raise typer.Exit(1) from None


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"onnxviz {version('onnxviz')}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def analyze(
    model: ModelArgument,
    layer: Annotated[
        list[str],
        typer.Option(
            "--layer",
            "-l",
            help="A layer by name or alias (conv5), a glob (fire*/expand3x3), a range (conv1..conv5) or all (every "
            "convolution and fully connected layer). Repeat it for more.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder (class sub-folders give labels), an image, an archive (.zip, .tar, .tgz …), or .npy/.npz. "
            "Without it, built-in samples that suit the input.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Images to keep for each channel.")] = 9,
    channels: Annotated[
        str | None, typer.Option(help="Channels to show, as 0-15,40.", show_default="all")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="deconvnet, guided or gradient. Repeat it to compare: the first is shown, the others beside it.",
            show_default="deconvnet",
        ),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="Also project the same units with shuffled weights: what looks the same there says nothing of the "
            "training.",
        ),
    ] = False,
    rank: Annotated[
        str,
        typer.Option(
            help="Order images by the largest activation (max), by the sum over the map (sum), or not (first)."
        ),
    ] = "max",
    seed: Annotated[
        str, typer.Option(help="Project the strongest unit (unit) or its whole map (map).")
    ] = "unit",
    overlap: Overlap = "sum",
    lrn: Lrn = None,
    activation: Activation = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N images.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images a run.", show_default="what suits cores and memory, up to 32"),
    ] = None,
    provider: Provider = "auto",
    engine: Engine = "auto",
    memory: Memory = "1G",
    preprocess: Preset = None,
    mean: Mean = None,
    std: Std = None,
    bgr: Bgr = None,
    size: Size = None,
    input_: Input = None,
    feed: Feed = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names, one a line or as JSON: for output units and numbered labels.",
            show_default=False,
        ),
    ] = None,
    montage: Annotated[
        bool, typer.Option("--montage", help="Also write each layer's top images as one PNG.")
    ] = False,
    theme: Theme = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report.", show_default="reports/MODEL")
    ] = None,
    single_file: Annotated[
        bool,
        typer.Option(
            "--single-file",
            help="Also write the whole report as one HTML file, to send: OUT.html, beside the folder OUT.",
        ),
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    debug: Debug = False,
) -> None:
    """Find what every channel of a layer responds to, and write the report."""
    with _errors(debug):
        from onnxviz.analysis import analyze as run
        from onnxviz.report.single import check_file, file_beside

        target = out or Path("reports") / model.stem
        if single_file and target.suffix == ".html":
            target = target.with_suffix("")
        file = file_beside(target) if single_file else None
        if file:
            check_file(file)
        with _Bar() as bar:
            atlas = run(
                model,
                layers=layer,
                images=images,
                top=top,
                channels=channels,
                method=method or "deconvnet",
                control=control,
                rank=rank,
                seed=seed,
                overlap=overlap,
                lrn=lrn,
                activation=activation,
                limit=limit,
                batch_size=batch_size,
                provider=provider,
                engine=engine,
                memory=_bytes(memory),
                preprocess=preprocess,
                mean=_numbers("--mean", mean),
                std=_numbers("--std", std),
                bgr=bgr,
                size=_size(size),
                image=input_,
                feeds=_feeds(feed),
                labels=labels,
                montage=montage,
                progress=bar,
                report=target,
                theme=theme,
                command=shlex.join(["onnxviz", *sys.argv[1:]]),
            )
            if file:
                atlas.report_file(file, theme=theme)
        skipped = atlas.provenance.skipped
        typer.echo(f"{atlas.provenance.images:,} images scanned, {len(skipped):,} skipped")
        for name, reason in skipped[:5]:
            typer.echo(f"  skipped {name}: {reason}", err=True)
        if len(skipped) > 5:
            typer.echo(f"  … and {len(skipped) - 5:,} more, listed in the report", err=True)
        for one in atlas.layers:
            dead = sum(one.dead(c) for c in one.pictured)
            spoilt = int((one.stats.not_finite > 0).sum())
            lost = f", {spoilt} with NaN or infinity in some images (not ranked there)" if spoilt else ""
            typer.echo(f"{one.layer}: {len(one.pictured)} channels, {dead} dead{lost}")
        page = target / "index.html"
        typer.echo(f"Report: {page}")
        if file:
            typer.echo(_file_line(file))
        if open_:
            _browse(page)


@app.command()
def report(
    run: RunArgument,
    layer: OnlyLayers = None,
    channels: OnlyChannels = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Only so many images of each channel.", show_default="all")
    ] = None,
    theme: Theme = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report, or the file with --single-file.",
            show_default="RUN itself; RUN.html with --single-file",
        ),
    ] = None,
    single_file: Annotated[
        bool,
        typer.Option("--single-file", help="Write one HTML file, to send, instead of a folder."),
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    debug: Debug = False,
) -> None:
    """Write a report once more, or a part of it, with neither the model nor the images."""
    with _errors(debug):
        from onnxviz.atlas import Atlas
        from onnxviz.report.single import check_file, file_beside

        whole = file_beside(run) if single_file else run
        target = out or whole
        if single_file:
            check_file(target)
        atlas = Atlas.load(run)
        if layer or channels is not None or top is not None:
            if target.resolve() == whole.resolve():
                raise UsageError(
                    "A part of a report must not replace the whole: give it a place of its own with --out."
                )
            atlas = atlas.only(layer, channels, top)
        if single_file:
            page = atlas.report_file(target, theme=theme)
            typer.echo(_file_line(page))
        else:
            page = atlas.report(target, theme=theme)
            typer.echo(f"Report: {page}")
        if open_:
            _browse(page)


@app.command()
def export(
    run: RunArgument,
    csv: Annotated[bool, typer.Option("--csv", help="Tables: channels.csv and hits.csv.")] = False,
    parquet: Annotated[
        bool,
        typer.Option(
            "--parquet", help="The same tables as channels.parquet and hits.parquet; needs pyarrow."
        ),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="All that the report shows: report.json.")] = False,
    png: Annotated[
        bool, typer.Option("--png", help="Plates for print, 24 channels each, with captions.")
    ] = False,
    layer: OnlyLayers = None,
    channels: OnlyChannels = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the files.", show_default="RUN/export")] = None,
    debug: Debug = False,
) -> None:
    """Write tables and figures of a report, with neither the model nor the images."""
    with _errors(debug):
        from onnxviz import export as writers
        from onnxviz.atlas import Atlas

        if not (csv or parquet or json_ or png):
            raise UsageError("Say what to write: --csv, --parquet, --json, --png, or several.")
        atlas = Atlas.load(run)
        if layer or channels is not None:
            atlas = atlas.only(layer, channels)
        target = out or run / "export"
        written: list[Path] = []
        if parquet:  # first: it alone may lack what it needs
            written += writers.export_parquet(atlas, target)
        if csv:
            written += writers.export_csv(atlas, target)
        if json_:
            written.append(writers.export_json(atlas, target))
        if png:
            written += writers.export_png(atlas, target)
        for path in written:
            typer.echo(path)


@app.command()
def layers(
    model: ModelArgument,
    size: Size = None,
    input_: Input = None,
    feed: Feed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List a model's layers: names, aliases, channels, output size, receptive field."""
    with _errors(debug):
        from onnxviz.analysis import open_network

        network, _ = open_network(model, provider="cpu", size=_size(size), image=input_, feeds=_feeds(feed))
        if as_json:
            rows = [
                {
                    "name": layer.name,
                    "aliases": list(layer.aliases),
                    "op": layer.op,
                    "tensor": layer.tensor,
                    "channels": layer.channels,
                    "size": list(layer.size),
                    "receptive_field": list(layer.receptive_field),
                    "stride": list(layer.stride) if layer.stride else None,
                }
                for layer in network.layers
            ]
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
            return
        typer.echo(f"{model}: {network.image}")
        head = ("name", "alias", "op", "channels", "output", "receptive field", "stride")
        rows_ = [
            (
                _short(layer.name),
                ", ".join(map(_short, layer.aliases)),
                layer.op,
                str(layer.channels),
                "×".join(map(str, layer.size)) or "vector",
                "×".join(map(str, layer.receptive_field)) if layer.stride else "whole image",
                "×".join(map(str, layer.stride)) if layer.stride else "–",
            )
            for layer in network.layers
        ]
        for line in _table([head, *rows_]):
            typer.echo(line)


@app.command()
def check(
    model: ModelArgument,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="Check the way from this layer only. Repeat it for more.",
            show_default="all",
        ),
    ] = None,
    method: MethodOption = "deconvnet",
    overlap: Overlap = "sum",
    lrn: Lrn = None,
    activation: Activation = None,
    preprocess: Preset = None,
    size: Size = None,
    input_: Input = None,
    feed: Feed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Say what is understood of a model, how each operator is reversed, and whether it can be analysed."""
    with _errors(debug):
        from dataclasses import asdict

        from onnxviz.check import check as run
        from onnxviz.reverse.methods import make_method

        found = run(
            model,
            make_method(method, overlap=overlap, lrn=lrn, activation=activation),
            layers=layer,
            preprocess=preprocess,
            size=_size(size),
            image=input_,
            feeds=_feeds(feed),
        )
        if as_json:
            typer.echo(json.dumps(asdict(found) | {"verdict": found.verdict}, ensure_ascii=False, indent=1))
        else:
            for line in _check_lines(found):
                typer.echo(line)
        if found.problem:
            raise typer.Exit(1)


@app.command()
def project(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="The image.", show_default=False)],
    layer: Annotated[
        str, typer.Option("--layer", "-l", help="The layer, by name or alias.", show_default=False)
    ],
    channel: Annotated[int, typer.Option("--channel", "-c", min=0, help="The channel.", show_default=False)],
    position: Annotated[
        str | None,
        typer.Option(help="The unit, as Y,X.", show_default="where the channel is strongest"),
    ] = None,
    method: MethodOption = "deconvnet",
    overlap: Overlap = "sum",
    lrn: Lrn = None,
    activation: Activation = None,
    provider: Provider = "auto",
    engine: Engine = "auto",
    memory: Memory = "1G",
    preprocess: Preset = None,
    mean: Mean = None,
    std: Std = None,
    bgr: Bgr = None,
    size: Size = None,
    input_: Input = None,
    feed: Feed = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The PNG to write.", show_default="IMAGE-LAYER-CHANNEL.png beside the image"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Project one unit of one image back to pixels: the image and the projection side by side, as PNG."""
    with _errors(debug):
        from onnxviz.analysis import open_network
        from onnxviz.pictures import project_image
        from onnxviz.places import slugs
        from onnxviz.reverse.methods import make_method

        chosen = make_method(method, overlap=overlap, lrn=lrn, activation=activation)
        network, recipe = open_network(
            model,
            provider=provider,
            engine=engine,
            memory=_bytes(memory),
            preprocess=preprocess,
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
            bgr=bgr,
            size=_size(size),
            image=input_,
            feeds=_feeds(feed),
        )
        found = network.layer(layer)
        network.check([found], chosen)
        at = _position(position)
        if image.is_dir():
            raise UsageError(f"{image} is a folder. Give one image.")
        target = out or image.with_name(f"{image.stem}-{slugs([found])[0]}-{channel}.png")
        if not target.parent.is_dir():
            raise UsageError(f"--out {target}: there is no folder {target.parent}. Make it first.")
        unit, activation_, box = project_image(network, recipe, image, found, channel, at, chosen, target)
        where = f"unit ({unit[0]}, {unit[1]})" if found.size else "unit"
        typer.echo(f"{found}, channel {channel}, {where}: activation {activation_:.4g}, sees {box}")
        typer.echo(f"{recipe.describe()} ({recipe.origin}); {chosen.name}; {network.provider.upper()}")
        typer.echo(f"Picture: {target}")


@app.command("export-deconv")
def export_deconv(
    model: ModelArgument,
    layer: Annotated[
        str, typer.Option("--layer", "-l", help="The layer, by name or alias.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    method: MethodOption = "deconvnet",
    overlap: Overlap = "sum",
    lrn: Lrn = None,
    activation: Activation = None,
    size: Size = None,
    input_: Input = None,
    feed: Feed = None,
    debug: Debug = False,
) -> None:
    """Write a model that takes images and units of a layer and gives these units' projections, in any ONNX runtime.

    Its inputs are the network's own images and units (M, 4): sample, channel, y, x. Its outputs: pixels (M, C, h, w),
    boxes (M, 4) where they lie (top, left, bottom, right), activations (M,) and maps (M, h, w).
    """
    with _errors(debug):
        from onnxviz.analysis import open_network
        from onnxviz.reverse.methods import make_method

        chosen = make_method(method, overlap=overlap, lrn=lrn, activation=activation)
        network, _ = open_network(model, provider="cpu", size=_size(size), image=input_, feeds=_feeds(feed))
        found = network.layer(layer)
        path = network.export_deconv(found, out, chosen)
        typer.echo(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB. It takes {network.image} and units: int64 M×4."
        )


@app.command()
def operators(debug: Debug = False) -> None:
    """List the operators that have a reverse rule: what it does, asks for, and where it approximates."""
    with _errors(debug):
        from onnxviz.reverse.operators import table

        rows = [
            (one.op, one.rule, "; ".join(filter(None, (one.restrictions, one.approximation))) or "–")
            for one in table()
        ]
        for line in _table([("operator", "rule", "asks for, or approximates"), *rows]):
            typer.echo(line)


@app.command()
def convert(
    network: Annotated[str, typer.Argument(help="alexnet, vgg16 or simple.", show_default=False)],
    weights: Annotated[
        Path,
        typer.Argument(
            help="Its weights: bvlc_alexnet.npy, vgg16_weights.npz, or the simple net's .npz.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write.", show_default=False)],
    conv1_padding: Annotated[
        str | None,
        typer.Option(
            help="alexnet only: valid (as in Caffe) or same (as in a TensorFlow port).",
            show_default="valid",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a classic network, from its published weight file, as ONNX."""
    with _errors(debug):
        from onnxviz.converters import CONVERTERS

        path = CONVERTERS[network].run(weights, out, {"conv1_padding": conv1_padding})
        typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB. 'onnxviz layers {path}' lists its layers.")


def _file_line(file: Path) -> str:
    size = file.stat().st_size
    note = ""
    if size > _LARGE_FILE:
        note = ". A browser needs a while and as much memory to open it; fewer channels make a smaller file"
    return f"Single file: {file} ({size / 1e6:.1f} MB){note}"


def _browse(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.resolve().as_uri())


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of cells in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _short(name: str) -> str:
    """A name of at most 48 characters on one line: its middle left out, if need be."""
    plain = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)
    return plain if len(plain) <= 48 else f"{plain[:23]}…{plain[-24:]}"


def _listed(names: Sequence[str]) -> str:
    """The first ten names, and how many there are more."""
    more = len(names) - 10
    return ", ".join(map(_short, names[:10])) + (f" and {more} more" if more > 0 else "")


def _check_lines(found: Check) -> Iterator[str]:
    """A check for people to read."""
    opset = str(found.opset)
    if found.stated_opset != found.opset:
        opset = f"{found.stated_opset}, converted to {found.opset}"
    facts = [
        ("file", found.file),
        ("made by", found.producer or "unknown"),
        ("opset", opset),
        ("size", f"{found.nodes:,} nodes, {found.parameters:,} parameters"),
        ("inputs", "; ".join(found.inputs) or "none"),
        ("outputs", _listed(found.outputs)),
    ]
    if found.image and found.size:
        facts += [
            ("images", f"{found.image}, used at {found.size[0]}×{found.size[1]}"),
            ("preprocessing", f"{found.preprocess} ({found.preprocess_origin})"),
            ("method", "; ".join([found.method, *(f"{name}: {choice}" for name, choice in found.policies)])),
        ]
    yield from _table(facts)
    if found.operators:
        yield ""
        head = ("operator", "nodes", "rule", "how it is reversed")
        rows = []
        for one in found.operators:
            how = f"{one} (first: {_short(one.first)})" if one.problem else str(one)
            rows.append((one.op, str(one.count), one.rule or "–", how))
        yield from _table([head, *rows])
    if found.layers:
        good = [layer for layer in found.layers if layer.problem is None]
        yield ""
        shown = ", ".join(_short(layer.alias) for layer in good[:3]) + (" …" if len(good) > 3 else "")
        yield f"{len(found.layers)} layers, {len(good)} can be analysed" + (f" ({shown})" if good else "")
    for warning in found.warnings:
        yield f"Note: {warning}"
    yield ""
    yield found.verdict


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: write numbers with commas between them, such as 0.5,0.5,0.5."
        ) from None


def _feeds(texts: list[str] | None) -> dict[str, NDArray[Any]]:
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


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--size {text!r}: write 224, or 224x320 for height x width.")
    height, width = int(parts[0]), int(parts[-1])
    return height, width


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LEAST_MEMORY = 16 << 20


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"--memory {text!r}: write a number of bytes, such as 512M or 2G.")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < _LEAST_MEMORY:
        raise UsageError(
            f"--memory {text!r}: less than {_LEAST_MEMORY >> 20}M; projecting needs more than that."
        )
    return size


def _position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--position {text!r}: write Y,X, the row and column of the unit, such as 6,7.")
    return int(parts[0]), int(parts[1])


class _Bar(Progress):
    """Progress bars on standard error if that is a terminal, and notes on standard output."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._task: TaskID | None = None
        self._make: Callable[[str], Any] | None = _bar_of if sys.stderr.isatty() else None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def note(self, text: str) -> None:
        """Print a line."""
        typer.echo(text)

    def start(self, task: str, total: int, unit: str) -> None:
        """Show a bar with rate and time left."""
        if self._make:
            self._shown = self._make(unit)
            self._shown.start()
            self._task = self._shown.add_task(task, total=total)

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._shown:
            self._shown.advance(self._task, count)

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self._shown:
            self._shown.stop()
            self._shown = None


def _bar_of(unit: str) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            """The rate, or nothing before there is one."""
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
