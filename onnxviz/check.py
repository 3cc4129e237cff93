"""What onnxviz makes of a model, without running an image: `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxviz.errors import OnnxvizError
from onnxviz.images.preprocess import Preprocess
from onnxviz.model.graph import ModelFile, Node
from onnxviz.model.inputs import ImageInput, image_input
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.reverse.engine import on_path
from onnxviz.reverse.methods import Method
from onnxviz.reverse.rules.registry import RULES
from onnxviz.reverse.treatment import Treatment, problem, treatments
from onnxviz.runtime import open_session
from onnxviz.setup import preprocess_for

__all__ = ["Check", "LayerCheck", "check"]


@dataclass(frozen=True)
class LayerCheck:
    """A layer, and why it cannot be analysed (None: it can)."""

    name: str
    alias: str
    op: str
    channels: int
    size: tuple[int, ...]
    receptive_field: tuple[int, int]
    problem: str | None


@dataclass(frozen=True)
class Check:
    """What is known of a model. ``problem`` says why it cannot be analysed; None if it can."""

    file: str
    opset: int
    stated_opset: int
    producer: str
    nodes: int
    parameters: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    image: str | None = None
    image_name: str | None = None
    layout: str | None = None
    batch: int | None = None
    size: tuple[int, int] | None = None
    preprocess: str | None = None
    preprocess_origin: str | None = None
    method: str = ""
    policies: tuple[tuple[str, str], ...] = ()
    operators: tuple[Treatment, ...] = ()
    layers: tuple[LayerCheck, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    problem: str | None = None

    @property
    def verdict(self) -> str:
        """One line: what can be analysed."""
        if self.problem:
            return f"It cannot be analysed: {self.problem}"
        good = [layer for layer in self.layers if layer.problem is None]
        if len(good) == len(self.layers):
            return f"It can be analysed: all {len(good)} layers." if len(good) > 1 else "It can be analysed."
        first = next(layer for layer in self.layers if layer.problem)
        return (
            f"It can be analysed in part: {len(good)} of {len(self.layers)} layers. "
            f"The first that cannot is {first.name} ({first.alias}): {first.problem}"
        )


def check(
    model: str | Path,
    method: Method,
    *,
    layers: Sequence[str] | None = None,
    preprocess: str | None = None,
    size: tuple[int, int] | None = None,
    image: str | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
) -> Check:
    """Look at a model, all its layers or some.

    Args:
        layers: names as for `Network.select`; None is every layer.
        image, feeds, size: see `network.load`.

    Raises:
        UsageError: an option or layer that the model does not have.
        ModelError: the file is no ONNX model.
    """
    file = ModelFile(model, feeds)
    found = Check(
        file=str(model),
        opset=file.opset,
        stated_opset=file.stated_opset,
        producer=file.producer_name,
        nodes=file.size,
        parameters=file.parameters,
        inputs=tuple(map(str, file.graph.inputs)),
        outputs=file.graph.outputs,
        method=method.name,
        policies=method.policies,
    )
    try:
        taken = image_input(file, image)
        recipe = preprocess_for(file, taken, preset=preprocess, size=size)
        network = Network(file, size=(recipe.height, recipe.width), image=taken.name)
        found = replace(
            found,
            image=str(taken),
            image_name=taken.name,
            layout=taken.layout,
            batch=taken.batch,
            size=network.size,
            preprocess=recipe.describe(),
            preprocess_origin=recipe.origin,
        )
        chosen = network.select(layers) if layers is not None else network.layers
    except OnnxvizError as error:
        if error.exit_code == 2:
            raise
        return replace(found, problem=_reason(error, file))
    nodes = on_path(network.graph, [taken.name], [layer.tensor for layer in chosen], method)
    problems = {
        n.name: reason
        for n in nodes
        if (reason := problem(n, network.constants, method) or network.unsteady(n))
    }
    judged = _runnable(network, _judged(network, chosen, nodes, problems, method), chosen)
    blocked = next((layer.problem for layer in judged if layer.problem), None)
    hopeless = blocked if layers is not None else blocked and all(layer.problem for layer in judged)
    verdict = blocked if hopeless else None
    if not judged:
        verdict = "no layer of it depends on the image"
    return replace(
        found,
        operators=treatments(nodes, network.constants, method),
        layers=judged,
        warnings=tuple(_warnings(network, taken, recipe, nodes)),
        problem=verdict,
    )


def _judged(
    network: Network,
    layers: Sequence[Layer],
    nodes: Sequence[Node],
    problems: Mapping[str, str],
    method: Method,
) -> tuple[LayerCheck, ...]:
    """Each layer with the first node on its way to the image that stands in it."""
    blocked: dict[str, str | None] = {network.image.name: None}
    for node in nodes:
        rule = method.rule(node)
        above = [n for i, n in enumerate(node.inputs) if n in blocked and (rule is None or rule.can_carry(i))]
        above += [n for n in node.captures if n in blocked]
        earlier = next((blocked[name] for name in above if blocked[name]), None)
        own = f"{node.kind} {node.name!r}: {problems[node.name]}" if node.name in problems else None
        blocked.update((name, earlier or own) for name in node.outputs if name)
    judged = []
    for layer in layers:
        reason = blocked.get(layer.tensor, "no small change of the image changes it")
        if reason is None:
            try:
                network.check_layer(layer)
            except OnnxvizError as error:
                reason = _reason(error, network.file)
        judged.append(
            LayerCheck(
                name=layer.name,
                alias=layer.alias,
                op=layer.op,
                channels=layer.channels,
                size=layer.size,
                receptive_field=layer.receptive_field,
                problem=reason,
            )
        )
    return tuple(judged)


def _runnable(
    network: Network, judged: Sequence[LayerCheck], layers: Sequence[Layer]
) -> tuple[LayerCheck, ...]:
    """The layers, those marked that onnxruntime cannot compute."""
    good = [layer for layer, one in zip(layers, judged, strict=True) if one.problem is None]
    if (error := _run_error(network, good)) is None:
        return tuple(judged)
    low, high = 0, len(good)  # the first `low` run, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        found = _run_error(network, good[:middle])
        low, high, error = (middle, high, error) if found is None else (low, middle, found)
    beyond = {layer.tensor for layer in good[low:]}
    return tuple(
        replace(one, problem=error) if layer.tensor in beyond else one
        for layer, one in zip(layers, judged, strict=True)
    )


def _run_error(network: Network, layers: Sequence[Layer]) -> str | None:
    """Why onnxruntime cannot compute some layers, or None."""
    if not layers:
        return None
    model = network.model
    try:
        open_session(model.cut([layer.tensor for layer in layers]), model.path, optimise=False)
    except OnnxvizError as error:
        return _reason(error, model)
    return None


def _reason(error: OnnxvizError, file: ModelFile) -> str:
    """An error's text without the file's name, which is known."""
    return str(error).removeprefix(f"{file.path}: ").replace(f"{file.path} has", "it has")


def _warnings(
    network: Network, image: ImageInput, recipe: Preprocess, nodes: Sequence[Node]
) -> Iterator[str]:
    file = network.file
    if recipe.guessed:
        yield (
            "The preprocessing is a guess. Name it with --preprocess, --mean and --std, or in a sidecar file "
            f"{file.path.with_suffix('.onnxviz.json').name}."
        )
    if image.batch is not None and image.batch > 1:
        yield f"The batch is fixed at {image.batch}: images go through in that many."
    elif image.batch == 1:
        yield "The batch is fixed at 1: larger ones are used if they prove to give the same, else images go one by one."
    if image.height is None or image.width is None:
        yield f"It takes images of any size; {network.size[0]}×{network.size[1]} is used. --size gives another."
    if image.dtype == "float16" or any(node.op == "Cast" and node.attrs.get("to") == 10 for node in nodes):
        yield "Half precision: activations are recorded in float16 and pulled back in float32."
    if file.stated_opset != file.opset:
        yield f"Opset {file.stated_opset} was converted to {file.opset}: older ones do not give pool indices."
    others = [i for i in file.graph.inputs if i.name != image.name]
    if others:
        yield (
            f"Besides the image it has the input(s) {'; '.join(map(str, others))}; layers that need them ask for "
            f"--feed {others[0].name}=VALUE."
        )
    approximations = {rule.approximation for n in nodes if (rule := RULES.get(n.op)) and rule.approximation}
    for words in sorted(approximations):
        yield f"Approximation: {words}."
    foreign = sorted({node.kind for node in network.graph.nodes if node.domain})
    if foreign:
        yield f"Operators of other domains: {', '.join(foreign)}. They stand in the way only where they lie on a path."
    left = sorted({node.op for node in network.graph.nodes if node.op in ("If", "Loop", "Scan")})
    if left:
        yield f"Control flow that depends on the images' values: {', '.join(left)}."
