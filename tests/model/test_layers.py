"""Layers: which there are, their aliases, and finding one by whatever name."""

from __future__ import annotations

import numpy as np
import pytest

import onnxviz
from onnxviz.errors import LayerNotFoundError
from onnxviz.model.layers import Layer, find_layer, find_layers
from tests.model.nets import build, conv_weights, node, small, write

RNG = np.random.default_rng(0)
W = conv_weights(RNG, 3, 3, 3, 3)
SAME = {"pads": [1, 1, 1, 1]}


def _net(tmp_path, nodes, weights=None, **options):
    path = write(tmp_path / "model.onnx", build(nodes, {"w": W, **(weights or {})}, **options))
    return onnxviz.load(path, provider="cpu")


def _layer(name: str, *aliases: str, op: str = "Conv", tensor: str | None = None) -> Layer:
    return Layer(
        name,
        op,
        tensor or f"{name}:0",
        aliases[0],
        aliases,
        4,
        (8, 8),
        (0, 1, 2, 3),
        (3, 3),
        (1, 1),
        (-1, -1),
    )


# Which layers there are


def test_the_small_net(tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider="cpu")
    found = [(x.name, x.op, x.tensor, x.alias, x.channels, x.size) for x in net.layers]
    assert found == [
        ("conv1", "Conv", "c1", "conv1", 5, (12, 12)),
        ("relu1", "Relu", "r1", "relu1", 5, (12, 12)),
        ("pool1", "MaxPool", "p1", "pool1", 5, (5, 5)),
        ("conv2", "Conv", "c2", "conv2", 7, (5, 5)),
        ("relu2", "Relu", "r2", "relu2", 7, (5, 5)),
        ("gap", "GlobalAveragePool", "g", "pool2", 7, (1, 1)),
        ("dense1", "Gemm", "d1", "fc1", 8, ()),
        ("relu3", "Relu", "r3", "relu3", 8, ()),
        ("dense2", "Gemm", "d2", "fc2", 6, ()),
    ]
    assert [x.stride for x in net.layers] == [(1, 1), (1, 1), (2, 2), (2, 2), (2, 2), None, None, None, None]
    assert str(net.layer("dense1")) == "dense1 (fc1)"
    assert str(net.layer("conv1")) == "conv1"


def test_layers_are_a_tuple_and_frozen(tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider="cpu")
    assert isinstance(net.layers, tuple)
    with pytest.raises(AttributeError):
        net.layers[0].name = "other"


def test_nodes_beside_the_path_from_the_image_are_no_layers(tmp_path):
    nodes = [
        node("Relu", "w", "w1", "of-weights"),
        node("Conv", "x w1", "c", "conv"),
        node("Shape", "c", "s", "shape"),
        node("Relu", "c", "r", "relu"),
    ]
    net = _net(tmp_path, nodes, outputs=["r", "s"])
    assert [x.name for x in net.layers] == ["conv", "relu"]
    with pytest.raises(LayerNotFoundError):  # it carries no values of the convolution
        net.layer("shape")


def test_blocks_of_convolutions_have_aliases(tmp_path):
    def pool(x, y):
        return node("MaxPool", x, y, kernel_shape=[2, 2], strides=[2, 2])

    nodes = [
        node("Conv", "x w", "a", **SAME),
        node("Conv", "a w", "b", **SAME),
        pool("b", "p"),
        node("Conv", "p w", "c", **SAME),
        node("MaxPool", "c", "q", kernel_shape=[3, 3], **SAME),  # keeps the size: the block goes on
        node("Conv", "q w", "d", **SAME),
        pool("d", "r"),
        node("Conv", "r w", "e", **SAME),
    ]
    net = _net(tmp_path, nodes)
    found = {x.tensor: x.aliases for x in net.layers if x.op == "Conv"}
    assert found == {
        "a": ("conv1", "conv1_1"),
        "b": ("conv2", "conv1_2"),
        "c": ("conv3", "conv2_1"),
        "d": ("conv4", "conv2_2"),
        "e": ("conv5", "conv3_1"),
    }
    assert net.layer("conv2_2").tensor == "d"
    assert [x.alias for x in net.layers if x.op == "MaxPool"] == ["pool1", "pool2", "pool3"]


def test_single_convolutions_between_poolings_have_no_block_alias(tmp_path):
    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider="cpu")
    assert net.layer("conv2").aliases == ("conv2",)


def test_aliases_by_kind(tmp_path):
    nodes = [
        node("BatchNormalization", "x s s s s", "n"),
        node("LeakyRelu", "n", "l"),
        node("AveragePool", "l", "a", kernel_shape=[2, 2]),
        node("LRN", "a", "m", size=3),
        node("Add", "m a", "d"),
        node("Sigmoid", "d", "g"),
        node("Flatten", "g", "f"),
        node("MatMul", "f k", "h"),
        node("MatMul", "h k2", "j"),
        node("Softmax", "j", "z"),
    ]
    weights = {
        "s": np.ones(3, np.float32),
        "k": conv_weights(RNG, 3 * 11 * 11, 7),
        "k2": conv_weights(RNG, 7, 5),
    }
    net = _net(tmp_path, nodes, weights)
    assert [x.alias for x in net.layers] == [
        "bn1",
        "leakyrelu1",
        "pool1",
        "lrn1",
        "add1",
        "sigmoid1",
        "fc1",
        "fc2",
        "softmax1",
    ]
    assert [x.channels for x in net.layers] == [3, 3, 3, 3, 3, 3, 7, 5, 5]


def test_channels_last_inside_the_graph(tmp_path):
    """A Transpose to N×H×W×C and back: layers on either side know where their channels are."""
    nodes = [
        node("Transpose", "x", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first k", "c", "conv", **SAME),
        node("Transpose", "c", "last", perm=[0, 2, 3, 1]),
        node("Relu", "last", "r", "relu"),
        node("Add", "r bias", "a", "add"),
        node("Transpose", "a", "again", perm=[0, 3, 1, 2]),
        node("MaxPool", "again", "p", "pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    weights = {"k": conv_weights(RNG, 5, 3, 3, 3), "bias": np.arange(5, dtype=np.float32)}
    net = _net(tmp_path, nodes, weights, x=("N", 10, 14, 3))
    assert {x.name: (x.channels, x.size, x.order) for x in net.layers} == {
        "conv": (5, (10, 14), (0, 1, 2, 3)),
        "relu": (5, (10, 14), (0, 3, 1, 2)),
        "add": (5, (10, 14), (0, 3, 1, 2)),
        "pool": (5, (5, 7), (0, 1, 2, 3)),
    }
    assert net.layer("add").receptive_field == (3, 3)
    x = RNG.normal(size=(2, 10, 14, 3)).astype(np.float32)
    np.testing.assert_array_equal(net.activations(x, "relu"), np.maximum(net.activations(x, "conv"), 0))


def test_nodes_without_names_or_with_the_same_are_called_by_their_tensors(tmp_path):
    nodes = [
        node("Conv", "x w", "a", "conv", **SAME),
        node("Conv", "a w", "b", "conv", **SAME),
        node("Relu", "b", "c"),
        node("Conv", "c w", "d", "", **SAME),
    ]
    net = _net(tmp_path, nodes)
    assert [x.name for x in net.layers] == ["conv", "b", "c", "d"]
    assert net.layer("conv").tensor == "a"
    assert net.layer("b").alias == "conv2"
    assert net.layer("conv3").tensor == "d"
    assert len({x.name for x in net.layers}) == len(net.layers)


# Names that are carried on


def test_dropout_identity_and_flatten_name_the_layer_whose_values_they_carry(tmp_path):
    nodes = [
        node("Conv", "x w", "c", "conv"),
        node("Relu", "c", "r", "relu"),
        node("Dropout", "r", "d", "drop"),
        node("Identity", "d", "i", "same"),
        node("Conv", "i w", "e", "next"),
        node("Flatten", "e", "f", "flat"),
    ]
    net = _net(tmp_path, nodes)
    for name in ("drop", "d", "same", "i"):
        assert net.layer(name).name == "relu"
    assert net.layer("flat").name == net.layer("f").name == "next"
    assert [x.name for x in net.select(["drop", "flat"])] == ["relu", "next"]


def test_every_output_of_a_split_can_be_named(tmp_path):
    """``layer`` takes a layer's, node's or tensor's name, everywhere."""
    nodes = [
        node("Conv", "x k", "c", "conv"),
        node("Split", "c", "left right", "split", axis=1),
        node("Relu", "right", "r", "relu"),
    ]
    net = _net(tmp_path, nodes, {"k": conv_weights(RNG, 6, 3, 3, 3)}, outputs=["left", "r"])
    x = RNG.normal(size=(1, 3, 12, 12)).astype(np.float32)
    whole = net.activations(x, "conv")
    np.testing.assert_array_equal(net.activations(x, "left"), whole[:, :3])
    np.testing.assert_array_equal(net.activations(x, "right"), whole[:, 3:])


# Finding one

RESNET = [
    _layer("/conv1/Conv", "conv1", tensor="/conv1/Conv_output_0"),
    _layer("/layer1/layer1.0/conv1/Conv", "conv2", tensor="/layer1/layer1.0/conv1/Conv_output_0"),
    _layer("/layer1/layer1.0/conv3/Conv", "conv3", tensor="/layer1/layer1.0/conv3/Conv_output_0"),
    _layer("/layer4/layer4.2/conv3/Conv", "conv52", tensor="/layer4/layer4.2/conv3/Conv_output_0"),
    _layer(
        "/layer4/layer4.2/relu_2/Relu", "relu49", op="Relu", tensor="/layer4/layer4.2/relu_2/Relu_output_0"
    ),
    _layer("/fc/Gemm", "fc1", op="Gemm", tensor="logits"),
]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("/layer4/layer4.2/conv3/Conv", "/layer4/layer4.2/conv3/Conv"),
        ("/layer4/layer4.2/conv3/Conv_output_0", "/layer4/layer4.2/conv3/Conv"),
        ("/LAYER4/layer4.2/CONV3/conv", "/layer4/layer4.2/conv3/Conv"),
        ("layer4.2/conv3/Conv", "/layer4/layer4.2/conv3/Conv"),
        ("layer4.2/conv3", "/layer4/layer4.2/conv3/Conv"),
        ("/layer4.2/conv3", "/layer4/layer4.2/conv3/Conv"),
        ("Layer4.2/Conv3", "/layer4/layer4.2/conv3/Conv"),
        ("layer4/layer4.2/conv3", "/layer4/layer4.2/conv3/Conv"),
        ("relu_2", "/layer4/layer4.2/relu_2/Relu"),
        ("relu_2/Relu", "/layer4/layer4.2/relu_2/Relu"),
        ("relu49", "/layer4/layer4.2/relu_2/Relu"),
        ("RELU49", "/layer4/layer4.2/relu_2/Relu"),
        ("conv52", "/layer4/layer4.2/conv3/Conv"),
        (" conv52 ", "/layer4/layer4.2/conv3/Conv"),
        ("fc", "/fc/Gemm"),
        ("Gemm", "/fc/Gemm"),
        ("logits", "/fc/Gemm"),
        ("layer1.0/conv1", "/layer1/layer1.0/conv1/Conv"),
    ],
)
def test_find(query, name):
    assert find_layer(RESNET, query).name == name


@pytest.mark.parametrize("query", ["conv3/Conv", "conv3", "CONV3"])
def test_several_matches_are_listed(query):
    with pytest.raises(LayerNotFoundError, match="ambiguous") as error:
        find_layer(RESNET, query)
    message = str(error.value)
    assert "/layer1/layer1.0/conv3/Conv (conv3)" in message
    assert "/layer4/layer4.2/conv3/Conv (conv52)" in message
    assert "relu" not in message
    assert len(message.splitlines()) == 1


def test_the_order_of_names():
    """Exact before case, case before path, path before alias."""
    layers = [
        _layer("deep/conv2", "conv1"),
        _layer("conv1", "conv2"),
        _layer("CONV2", "conv3"),
        _layer("block/conv3", "conv4"),
    ]
    assert find_layer(layers, "conv1").name == "conv1"
    assert find_layer(layers, "conv2").name == "CONV2"
    assert find_layer(layers, "conv3").name == "block/conv3"
    assert find_layer(layers, "conv4").name == "block/conv3"


def test_exact_case_wins_over_the_other():
    layers = [_layer("conv", "conv1"), _layer("Conv", "conv2")]
    assert find_layer(layers, "Conv").alias == "conv2"
    assert find_layer(layers, "conv").alias == "conv1"
    with pytest.raises(LayerNotFoundError, match="ambiguous"):
        find_layer(layers, "CONV")


def test_half_a_component_is_no_match():
    layers = [_layer("/block10/conv/Conv", "conv1"), _layer("/block0/conv/Conv", "conv2")]
    assert find_layer(layers, "block0/conv").alias == "conv2"


@pytest.mark.parametrize(
    ("query", "closest"),
    [("conv53", "conv52"), ("rellu49", "relu49"), ("layer4.2/conv5", "layer4.2/conv3"), ("fc2", "fc1")],
)
def test_no_match_lists_the_closest(query, closest):
    with pytest.raises(LayerNotFoundError, match="Closest") as error:
        find_layer(RESNET, query)
    message = str(error.value)
    assert repr(query) in message
    assert closest in message
    assert "onnxviz layers" in message
    assert len(message.splitlines()) == 1
    assert error.value.exit_code == 2


def test_a_name_like_nothing_still_lists_some():
    with pytest.raises(LayerNotFoundError, match=r"Closest: ."):
        find_layer(RESNET, "€€€€")


def test_a_long_list_is_cut():
    layers = [_layer(f"/block{i}/conv/Conv", f"conv{i}") for i in range(1, 40)]
    with pytest.raises(LayerNotFoundError, match="and 34 more"):
        find_layer(layers, "conv/Conv")


def test_a_model_without_layers_says_so():
    with pytest.raises(LayerNotFoundError, match="no layer"):
        find_layer([], "conv1")


# Finding several

CHAIN = [
    layer
    for i in range(1, 6)
    for layer in (_layer(f"c{i}", f"conv{i}"), _layer(f"r{i}", f"relu{i}", op="Relu"))
] + [_layer("d1", "fc1", op="Gemm"), _layer("s", "softmax1", op="Softmax")]


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        (["conv5"], "c5"),
        (["conv5", "conv1"], "c1 c5"),
        (["conv5", "c5", "CONV5"], "c5"),
        (["conv1,conv3"], "c1 c3"),
        (["conv1, conv3 ,relu2"], "c1 r2 c3"),
        (["all"], "c1 c2 c3 c4 c5 d1"),
        (["ALL"], "c1 c2 c3 c4 c5 d1"),
        (["*"], "c1 r1 c2 r2 c3 r3 c4 r4 c5 r5 d1 s"),
        (["relu*"], "r1 r2 r3 r4 r5"),
        (["c[12]"], "c1 c2"),
        (["conv?"], "c1 c2 c3 c4 c5"),
        (["conv2..conv4"], "c2 c3 c4"),
        (["c2..c4"], "c2 c3 c4"),
        (["conv2..relu3"], "c2 r2 c3 r3"),
        (["conv3..conv3"], "c3"),
        (["conv1..conv2", "fc1"], "c1 c2 d1"),
        (["conv1..conv2,relu5"], "c1 c2 r5"),
    ],
)
def test_find_several(queries, names):
    assert " ".join(layer.name for layer in find_layers(CHAIN, queries)) == names


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("conv4..conv2", "comes before"),
        ("conv9", "Closest"),
        ("conv1,conv9", "conv9"),
        ("nothing*", "No layer matches 'nothing\\*'"),
        ("conv1..conv9", "conv9"),
        ("conv1..", "No layer is called ''"),
        ("..", "No layer is called ''"),
    ],
)
def test_what_names_no_layer(query, message):
    with pytest.raises(LayerNotFoundError, match=message) as error:
        find_layers(CHAIN, [query])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("queries", [[], [""], [","], ["  "]])
def test_asking_for_nothing_is_an_error(queries):
    """A scan of no layers has nothing to show: better said before than after."""
    with pytest.raises(LayerNotFoundError):
        find_layers(CHAIN, queries)


def test_all_where_nothing_has_weights_is_an_error():
    with pytest.raises(LayerNotFoundError):
        find_layers([_layer("r1", "relu1", op="Relu")], ["all"])


def test_a_name_that_holds_a_comma_dots_or_a_star_is_itself():
    layers = [_layer("a,b", "conv1"), _layer("c..d", "conv2"), _layer("e*", "conv3"), _layer("ex", "conv4")]
    for query in ("a,b", "c..d", "e*"):
        assert [layer.name for layer in find_layers(layers, [query])] == [query]
    assert [layer.name for layer in find_layers(layers, ["a,b", "conv2"])] == ["a,b", "c..d"]
    assert [layer.name for layer in find_layers(layers, ["EX"])] == ["ex"]


def test_globs_look_at_names_tensors_and_aliases_without_case():
    found = find_layers(RESNET, ["*/CONV3/*"])
    assert [layer.alias for layer in found] == ["conv3", "conv52"]
    assert [layer.alias for layer in find_layers(RESNET, ["logit?"])] == ["fc1"]


def test_box():
    layer = _layer("c", "conv1")
    assert layer.box(0, 0) == (-1, -1, 2, 2)
    assert layer.box(3, 5) == (2, 4, 5, 7)
    from dataclasses import replace

    whole = replace(layer, receptive_field=(12, 14), stride=None, offset=(0, 0))
    assert whole.box(3, 5) == (0, 0, 12, 14)
