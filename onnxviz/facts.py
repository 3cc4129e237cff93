"""What a report says about the model and the run, gathered from them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from onnxviz.errors import UsageError
from onnxviz.forward.part import Scan
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
from onnxviz.model.graph import REAL_VALUES, ModelFile, Node
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.report.data import DiagramNode, ModelData, Provenance, Variant
from onnxviz.reverse.engine import on_path
from onnxviz.reverse.methods import Method
from onnxviz.reverse.treatment import treatments

__all__ = ["diagram", "model_data", "output_names", "provenance"]

LABELS_KEY = "onnxviz.labels"
_RANKING = {
    "max": "largest activation in the image",
    "sum": "sum of the activation map",
    "first": "none: the first images, in order",
}
_SEED = {
    (False, "unit"): "the activation of the strongest unit",
    (False, "map"): "the positive part of the channel's whole map",
    (True, "unit"): "1 at the strongest unit",
    (True, "map"): "1 at every unit of the channel's map",
}


def model_data(network: Network) -> ModelData:
    """The model's own facts."""
    model = network.model
    return ModelData(
        name=model.path.stem,
        file=model.path.name,
        sha256=model.sha256,
        producer=model.producer_name,
        opset=model.opset,
        input=str(network.image),
        nodes=model.size,
        parameters=model.parameters,
    )


def output_names(model: ModelFile, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names of the output units: as given, or from the model's metadata.

    Raises:
        UsageError: the metadata is not a JSON list of names.
    """
    if labels is not None:
        return tuple(labels)
    if (text := model.metadata.get(LABELS_KEY)) is None:
        return None
    try:
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("not a list of names")
    except ValueError as error:
        raise UsageError(f"{model.path}: its metadata {LABELS_KEY!r} cannot be read: {error}.") from error
    return tuple(found)


def diagram(network: Network, slugs: Mapping[str, str]) -> tuple[DiagramNode, ...]:
    """The nodes that depend on the image, and the image. ``slugs``: of analysed layers, by tensor."""
    layers = {layer.tensor: layer for layer in network.layers}
    image = network.image
    nodes = [
        DiagramNode(image.name, "Input", image.name, str(image), "×".join(map(str, network.size)), (), None)
    ]
    known = {image.name: image.name}
    for node in network.graph.nodes:
        inputs = tuple(dict.fromkeys(known[name] for name in node.inputs if name in known))
        if not inputs or node.output.endswith(REAL_VALUES) or node.output not in network.live:
            continue
        known.update((name, node.output) for name in node.outputs if name)
        layer = layers.get(node.output) or layers.get(node.output + REAL_VALUES)
        detail = "×".join(str(n) for n in (layer.channels, *layer.size)) if layer else ""
        nodes.append(
            DiagramNode(
                id=node.output,
                op=node.op,
                label=layer.alias if layer else node.op,
                title=node.name,
                detail=detail,
                inputs=inputs,
                slug=slugs.get(layer.tensor) if layer else None,
                setting=_setting(node, layer.channels if layer else None),
            )
        )
    return tuple(nodes)


def _setting(node: Node, channels: int | None) -> str:
    """A window operator's kernel and, where they are not 1, its stride, dilation and groups."""
    words = []
    for name, word in (("kernel_shape", ""), ("strides", "stride "), ("dilations", "dilation ")):
        value = node.attrs.get(name)
        if isinstance(value, tuple | list) and value and (not word or set(value) != {1}):
            alike = word and len(set(value)) == 1
            words.append(word + ("×".join(map(str, value[:1] if alike else value))))
    groups = node.attrs.get("group", 1)
    if isinstance(groups, int) and groups > 1:
        words.append("depthwise" if groups == channels else f"{groups} groups")
    return ", ".join(words)


def provenance(
    network: Network,
    source: Source,
    scan: Scan,
    preprocess: Preprocess,
    methods: Sequence[Method],
    layers: Sequence[Layer],
    *,
    control: bool,
    rank: str,
    seed: str,
    limit: int | None,
    command: str | None,
) -> Provenance:
    """How the run came about; ``control``: each method was used on shuffled weights, too."""
    method, *others = methods
    variants = [(one, False) for one in others] + [(one, True) for one in methods if control]
    data_set = source.description
    if limit is not None and limit < len(source.samples):
        data_set += f", the first {limit:,} of them"
    ort = "onnxruntime-gpu" if _installed("onnxruntime-gpu") else "onnxruntime"
    names = ("onnxviz", "onnx", ort, "numpy", "pillow")
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        data_set=data_set,
        images=scan.images,
        sampled=len(scan.layers[0].responses.image),
        skipped=scan.skipped,
        classes=tuple(source.classes.items()),
        input_size=network.size,
        preprocess=preprocess.describe(),
        preprocess_origin=preprocess.origin,
        method=method.name,
        policies=(*method.policies, *_treated(network, method, layers)),
        compared=tuple(
            Variant(one.name, shuffled, (*one.policies, *_treated(network, one, layers)))
            for one, shuffled in variants
        ),
        ranking=_RANKING[rank],
        seed=_SEED[method.unit_seed, seed] + "; for all channels together, all their maps",
        provider={"cpu": "CPU", "cuda": "CUDA"}[network.provider],
        versions=(("Python", platform.python_version()), *((name, version(name)) for name in names)),
        notes=tuple(_notes(network, source, scan, preprocess, layers)),
    )


def _notes(
    network: Network, source: Source, scan: Scan, preprocess: Preprocess, layers: Sequence[Layer]
) -> list[str]:
    notes = [scan.note] if scan.note else []
    if source.builtin:
        notes.append(
            "No images were given: the hits are among the built-in samples, which are few and general. "
            "With --images the report shows your own."
        )
    if preprocess.guessed:
        notes.append(
            "The preprocessing is a guess. If the model was trained on other values, name them with "
            "--preprocess, --mean and --std, or in a sidecar file."
        )
    if network.image.height is None or network.image.width is None:
        notes.append(f"The model takes images of any size; {network.size[0]}×{network.size[1]} was used.")
    if any(layer.stride is None for layer in layers):
        notes.append(
            "In layers without a stride every unit sees the whole image, so patch and image are the same."
        )
    if lost := _not_finite(network, layers):
        listed = ", ".join(f"{count:,} in {name}" for name, count in list(lost.items())[:3])
        more = f" and in {len(lost) - 3:,} more tensors" if len(lost) > 3 else ""
        notes.append(f"{sum(lost.values()):,} weights are NaN or infinity ({listed}{more}).")
    spoilt = {str(one.layer): int(one.stats.not_finite.max(initial=0)) for one in scan.layers}
    notes += [
        f"In layer {name} up to {count:,} image(s) gave NaN or infinity; they are counted but not ranked."
        for name, count in spoilt.items()
        if count
    ]
    return notes


def _not_finite(network: Network, layers: Sequence[Layer]) -> dict[str, int]:
    """How many values of each stored tensor that the layers depend on are NaN or infinity, where there are some."""
    needed = network.model.graph.ancestors(layer.tensor for layer in layers)
    found = {}
    for name in network.model.initializers:
        if name in needed and (values := network.constants[name]).dtype.kind == "f":
            count = values.size - int(np.isfinite(values).sum())
            # Infinity alone in a tensor of one element is a bound that is open, as of Clip.
            if count and values.size > 1:
                found[name] = count
    return found


def _treated(network: Network, method: Method, layers: Sequence[Layer]) -> list[tuple[str, str]]:
    """What was not pulled back exactly as the file writes it: policies, approximations, activations in pieces."""
    nodes = on_path(network.graph, [network.image.name], [layer.tensor for layer in layers], method)
    return [
        (f"{one.count} × {one.op}", str(one))
        for one in treatments(nodes, network.constants, method)
        if one.how != "exact" or one.pieces
    ]


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
