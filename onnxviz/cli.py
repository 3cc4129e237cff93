"""The command line: parse, call, print, map errors to exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxviz.console.console import console
from onnxviz.console.tables import check_lines, short, table
from onnxviz.errors import UsageError
from onnxviz.interrupts import held_interrupts
from onnxviz.options import (
    Activation,
    BatchSize,
    Bgr,
    Cluster,
    Debug,
    Engine,
    Feed,
    Images,
    Input,
    JsonProgress,
    Labels,
    LayersOption,
    Limit,
    LogFileOption,
    Lrn,
    Mean,
    Memory,
    MethodOption,
    ModelArgument,
    OnlyChannels,
    OnlyLayers,
    Overlap,
    Preset,
    Provider,
    Quiet,
    Rank,
    Restart,
    RunArgument,
    SaveEvery,
    Size,
    Std,
    Theme,
    Top,
    Workers,
    parse_bytes,
    parse_feeds,
    parse_numbers,
    parse_position,
    parse_shard,
    parse_size,
)

if TYPE_CHECKING:
    pass

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

_NOT_A_PART = "A part of a report must not replace the whole: give it a place of its own with --out."
_LARGE_FILE = 500_000_000  # bytes of a report in one file, from which on there is a note


def main() -> None:
    """Run the command line."""
    app()


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
    layer: LayersOption,
    images: Images = None,
    top: Top = 9,
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
    rank: Rank = "max",
    seed: Annotated[
        str, typer.Option(help="Project the strongest unit (unit) or its whole map (map).")
    ] = "unit",
    overlap: Overlap = "sum",
    lrn: Lrn = None,
    activation: Activation = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
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
    labels: Labels = None,
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
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="Keep the scan here: the same command goes on where it was broken off.",
            show_default="the report's folder",
        ),
    ] = None,
    restart: Restart = False,
    save_every: SaveEvery = 60,
    workers: Workers = None,
    cluster: Cluster = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    quiet: Quiet = False,
    json_progress: JsonProgress = False,
    log_file: LogFileOption = None,
    debug: Debug = False,
) -> None:
    """Find what every channel of a layer responds to, and write the report."""
    with console(quiet=quiet, json_progress=json_progress, log_file=log_file, debug=debug) as progress:
        # An extension module whose import is broken off may take the process with it.
        with held_interrupts():
            from onnxviz.analysis import analyze as do
        from onnxviz.report.single import check_file, file_beside

        target = out or Path("reports") / model.stem
        if single_file and target.suffix == ".html":
            target = target.with_suffix("")
        file = file_beside(target) if single_file else None
        if file:
            check_file(file)
        atlas = do(
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
            memory=parse_bytes(memory),
            preprocess=preprocess,
            mean=parse_numbers("--mean", mean),
            std=parse_numbers("--std", std),
            bgr=bgr,
            size=parse_size(size),
            image=input_,
            feeds=parse_feeds(feed),
            labels=labels,
            montage=montage,
            progress=progress,
            report=target,
            theme=theme,
            run=run,
            restart=restart,
            save_every=save_every,
            workers=workers,
            cluster=cluster,
            command=_command(),
        )
        lines = [f"Report: {target / 'index.html'}"]
        made = {"report": target / "index.html"}
        if file:
            progress.start("Packing", 0, "")
            made["single_file"] = atlas.report_file(file, theme=theme)
            lines.append(_file_line(file))
            progress.finish()
        for one in atlas.layers:
            dead = sum(one.dead(c) for c in one.pictured)
            spoilt = int((one.stats.not_finite > 0).sum())
            lost = f", {spoilt} with NaN or infinity in some images (not ranked there)" if spoilt else ""
            progress.note(f"{one.layer}: {len(one.pictured)} channels, {dead} dead{lost}")
        progress.result(lines, **made)
        if open_:
            _browse(made["report"])


@app.command()
def scan(
    model: ModelArgument,
    layer: LayersOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Where to keep the scan: a file that ends in .atlas, or a folder. The same command goes on where it "
            "was broken off.",
            show_default=False,
        ),
    ],
    images: Images = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Scan only this part of the images, as 3/16: the third of sixteen.", show_default=False
        ),
    ] = None,
    top: Top = 9,
    rank: Rank = "max",
    limit: Limit = None,
    batch_size: BatchSize = None,
    provider: Provider = "auto",
    preprocess: Preset = None,
    mean: Mean = None,
    std: Std = None,
    bgr: Bgr = None,
    size: Size = None,
    input_: Input = None,
    feed: Feed = None,
    labels: Labels = None,
    restart: Restart = False,
    save_every: SaveEvery = 60,
    workers: Workers = None,
    cluster: Cluster = None,
    quiet: Quiet = False,
    json_progress: JsonProgress = False,
    log_file: LogFileOption = None,
    debug: Debug = False,
) -> None:
    """Find each channel's strongest images and keep them, without a report: report draws it, merge joins shards."""
    with console(quiet=quiet, json_progress=json_progress, log_file=log_file, debug=debug) as progress:
        with held_interrupts():
            from onnxviz.analysis import scan as do

        saved = do(
            model,
            out,
            layers=layer,
            images=images,
            top=top,
            rank=rank,
            limit=limit,
            shard=parse_shard(shard),
            batch_size=batch_size,
            provider=provider,
            preprocess=preprocess,
            mean=parse_numbers("--mean", mean),
            std=parse_numbers("--std", std),
            bgr=bgr,
            size=parse_size(size),
            image=input_,
            feeds=parse_feeds(feed),
            labels=labels,
            restart=restart,
            save_every=save_every,
            workers=workers,
            cluster=cluster,
            progress=progress,
        )
        then = "onnxviz report" if saved.whole else "onnxviz merge"
        progress.result([f"Scan: {out} ({then} goes on from here)"], scan=out)


@app.command()
def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(help="What scan wrote for each shard, in any order.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Where to put the whole: a folder, or a file that ends in .atlas.",
            show_default=False,
        ),
    ],
    restart: Annotated[bool, typer.Option("--restart", help="Replace a scan that is there.")] = False,
    debug: Debug = False,
) -> None:
    """Put the shards of a scan together, and say which are missing or double."""
    with console(debug=debug) as progress:
        with held_interrupts():
            from onnxviz.analysis import merge as do

        saved = do(parts, out, restart=restart)
        count, skipped = saved.part.images, len(saved.part.skipped)
        progress.note(f"{len(parts):,} parts: {count:,} images scanned, {skipped:,} skipped")
        progress.result([f"Scan: {out} (onnxviz report goes on from here)"], scan=out)


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder of a report that analyze wrote, or of a saved atlas; or what scan or merge wrote."
        ),
    ],
    layer: OnlyLayers = None,
    channels: OnlyChannels = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Only so many images of each channel.", show_default="all")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw the scan anew by this method (deconvnet, guided, gradient). Repeat it to compare."
        ),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Draw the scan anew, also with shuffled weights.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="Where the model is now, to draw a scan.", show_default="where it was")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="Where the images are now, to draw a scan.", show_default="where they were"),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Where to run the network to draw a scan: auto, cuda or cpu.", show_default="where it ran"
        ),
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
    quiet: Quiet = False,
    json_progress: JsonProgress = False,
    log_file: LogFileOption = None,
    debug: Debug = False,
) -> None:
    """Write a report once more, or a part of it, with neither the model nor the images; or draw a scan's."""
    with console(quiet=quiet, json_progress=json_progress, log_file=log_file, debug=debug) as progress:
        from onnxviz.report.single import check_file, file_beside

        whole = file_beside(run) if single_file else run
        target = out or whole
        if single_file:
            check_file(target)
        redrawn = method or control or model or images or provider
        if redrawn or _undrawn(run):
            page = _draw(
                run,
                target,
                whole,
                single_file,
                layers=layer,
                channels=channels,
                top=top,
                method=method or "deconvnet",
                control=control,
                model=model,
                images=images,
                provider=provider,
                theme=theme,
                progress=progress,
            )
        else:
            page = _render(run, target, whole, layer, channels, top, theme, single_file)
        line = _file_line(page) if single_file else f"Report: {page}"
        progress.result([line], **{"single_file" if single_file else "report": page})
        if open_:
            _browse(page)


def _undrawn(run: Path) -> bool:
    """Whether there is a scan, and no atlas with pictures."""
    from onnxviz.scans.runs import scan_file

    return scan_file(run).is_file() and not (run / "atlas.json").exists()


def _draw(run: Path, target: Path, whole: Path, single_file: bool, **options: Any) -> Path:
    """Draw the report of a scan."""
    from onnxviz.analysis import draw

    if run.is_file() and target == whole:
        what = "file for it with --out FILE.html" if single_file else "folder for its report with --out"
        raise UsageError(f"{run} is a file: name a {what}.")
    part = options["layers"] or options["channels"] is not None or options["top"] is not None
    if part and target.resolve() == whole.resolve():
        raise UsageError(_NOT_A_PART)
    if single_file:
        atlas = draw(run, command=_command(), **options)
        return atlas.report_file(target, theme=options["theme"])
    draw(run, target, command=_command(), **options)
    return target / "index.html"


def _render(
    run: Path,
    target: Path,
    whole: Path,
    layer: list[str] | None,
    channels: str | None,
    top: int | None,
    theme: str,
    single_file: bool,
) -> Path:
    """Write the report of an atlas, or of a part of it."""
    from onnxviz.atlas import Atlas
    from onnxviz.locks import locked

    atlas = Atlas.load(run)
    if layer or channels is not None or top is not None:
        if target.resolve() == whole.resolve():
            raise UsageError(_NOT_A_PART)
        atlas = atlas.only(layer, channels, top)
    if single_file:
        return atlas.report_file(target, theme=theme)
    with locked(target):
        return atlas.report(target, theme=theme)


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
    with console(debug=debug):
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
    with console(debug=debug):
        from onnxviz.setup import open_network

        network, _ = open_network(
            model, provider="cpu", size=parse_size(size), image=input_, feeds=parse_feeds(feed)
        )
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
                short(layer.name),
                ", ".join(map(short, layer.aliases)),
                layer.op,
                str(layer.channels),
                "×".join(map(str, layer.size)) or "vector",
                "×".join(map(str, layer.receptive_field)) if layer.stride else "whole image",
                "×".join(map(str, layer.stride)) if layer.stride else "–",
            )
            for layer in network.layers
        ]
        for line in table([head, *rows_]):
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
    with console(debug=debug):
        from dataclasses import asdict

        from onnxviz.check import check as run
        from onnxviz.reverse.methods import make_method

        found = run(
            model,
            make_method(method, overlap=overlap, lrn=lrn, activation=activation),
            layers=layer,
            preprocess=preprocess,
            size=parse_size(size),
            image=input_,
            feeds=parse_feeds(feed),
        )
        if as_json:
            typer.echo(json.dumps(asdict(found) | {"verdict": found.verdict}, ensure_ascii=False, indent=1))
        else:
            for line in check_lines(found):
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
    with console(debug=debug):
        from onnxviz.pictures import project_image
        from onnxviz.places import slugs
        from onnxviz.reverse.methods import make_method
        from onnxviz.setup import open_network

        chosen = make_method(method, overlap=overlap, lrn=lrn, activation=activation)
        network, recipe = open_network(
            model,
            provider=provider,
            engine=engine,
            memory=parse_bytes(memory),
            preprocess=preprocess,
            mean=parse_numbers("--mean", mean),
            std=parse_numbers("--std", std),
            bgr=bgr,
            size=parse_size(size),
            image=input_,
            feeds=parse_feeds(feed),
        )
        found = network.layer(layer)
        network.check([found], chosen)
        at = parse_position(position)
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
    with console(debug=debug):
        from onnxviz.reverse.methods import make_method
        from onnxviz.setup import open_network

        chosen = make_method(method, overlap=overlap, lrn=lrn, activation=activation)
        network, _ = open_network(
            model, provider="cpu", size=parse_size(size), image=input_, feeds=parse_feeds(feed)
        )
        found = network.layer(layer)
        path = network.export_deconv(found, out, chosen)
        typer.echo(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB. It takes {network.image} and units: int64 M×4."
        )


@app.command()
def operators(debug: Debug = False) -> None:
    """List the operators that have a reverse rule: what it does, asks for, and where it approximates."""
    with console(debug=debug):
        from onnxviz.reverse import operators as known

        rows = [
            (one.op, one.rule, "; ".join(filter(None, (one.restrictions, one.approximation))) or "–")
            for one in known.table()
        ]
        for line in table([("operator", "rule", "asks for, or approximates"), *rows]):
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
    with console(debug=debug):
        from onnxviz.converters import CONVERTERS

        path = CONVERTERS[network].run(weights, out, {"conv1_padding": conv1_padding})
        typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB. 'onnxviz layers {path}' lists its layers.")


def _command() -> str:
    """How the program was called, without the secrets of URLs."""
    from onnxviz.images.urls import masked

    return shlex.join(["onnxviz", *map(masked, sys.argv[1:])])


def _file_line(file: Path) -> str:
    size = file.stat().st_size
    note = ""
    if size > _LARGE_FILE:
        note = ". A browser needs a while and as much memory to open it; fewer channels make a smaller file"
    return f"Single file: {file} ({size / 1e6:.1f} MB){note}"


def _browse(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.resolve().as_uri())
