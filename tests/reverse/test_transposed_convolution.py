"""The transposed convolution and unpooling, step by step on small arrays.

A convolution layer takes a map and a kernel to a feature map. Deconvnet runs that backwards: it takes a feature map
to where its values came from (Zeiler & Fergus 2014, 2.1: "we use transposed versions of the same filters"). This
file shows what that means, and that onnxviz does it:

1. a single value comes back as the kernel, times the value, where the layer had looked;
2. so the whole map comes back as the *convolution of the full-padded map with the flipped kernel*;
3. with a stride, zeros first go between the map's values;
4. with padding, the part that lies in the padding is cut off;
5. unpooling puts each value back where the maximum was;
6. and together: one channel of a one-layer net, projected.

As in all deep learning frameworks, "convolution" is the sum of products without flipping; `flipped` flips.
"""

from __future__ import annotations

import numpy as np
import pytest

from onnxviz.reverse.kernels import conv_transpose, dilate, switches, unpool
from onnxviz.reverse.methods import make_method
from tests.reverse import models
from tests.reverse.cases import Array
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node


def convolution(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Slide ``kernel`` over ``x`` and sum the products; nothing is padded."""
    (h, w), (kh, kw) = x.shape, kernel.shape
    rows, columns = range(0, h - kh + 1, stride), range(0, w - kw + 1, stride)
    return np.array([[(x[i : i + kh, j : j + kw] * kernel).sum() for j in columns] for i in rows])


def flipped(kernel: Array) -> Array:
    """The kernel turned by half a turn."""
    return kernel[::-1, ::-1]


def full_padded(a: Array, kernel: Array) -> Array:
    """Padded with zeros on every side by the kernel's size less one: the kernel may overlap by a single cell."""
    kh, kw = kernel.shape
    return np.pad(a, ((kh - 1, kh - 1), (kw - 1, kw - 1)))


def zero_stuffed(a: Array, stride: int) -> Array:
    """``stride`` − 1 zeros between neighbours."""
    stuffed = np.zeros([(n - 1) * stride + 1 for n in a.shape])
    stuffed[::stride, ::stride] = a
    return stuffed


def reverse(feature_map: Array, kernel: Array, stride: int = 1) -> Array:
    """What onnxviz makes of a feature map, for one input and one output channel."""
    found = conv_transpose(feature_map[None, None], kernel[None, None], (stride, stride), (1, 1), 1)
    return np.asarray(found[0, 0])


def test_one_value_comes_back_as_the_kernel():
    kernel = np.array([[1.0, 2, 3], [4, 5, 6]])
    feature_map = np.zeros((3, 3))
    feature_map[1, 0] = 10  # it had looked at rows 1 to 2 and columns 0 to 2
    expected = np.array(
        [
            [0.0, 0, 0, 0, 0],
            [10, 20, 30, 0, 0],
            [40, 50, 60, 0, 0],
            [0, 0, 0, 0, 0],
        ]
    )
    np.testing.assert_array_equal(reverse(feature_map, kernel), expected)


def test_in_numbers():
    feature_map = np.array([[1.0, 2], [3, 4]])
    kernel = np.array([[1.0, 0], [2, -1]])
    padded = np.array([[0.0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]])
    turned = np.array([[-1.0, 2], [0, 1]])
    by_hand = np.array([[1.0, 2, 0], [5, 7, -2], [6, 5, -4]])
    np.testing.assert_array_equal(full_padded(feature_map, kernel), padded)
    np.testing.assert_array_equal(flipped(kernel), turned)
    np.testing.assert_array_equal(convolution(padded, turned), by_hand)
    np.testing.assert_array_equal(reverse(feature_map, kernel), by_hand)


kernels = pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (5, 5), (2, 3), (4, 1)], ids=str)
strides = pytest.mark.parametrize("stride", [1, 2, 3])


@kernels
def test_valid_the_reverse_is_a_full_convolution_with_the_flipped_kernel(size: tuple[int, int]):
    rng = np.random.default_rng(0)
    kernel, image = rng.standard_normal(size), rng.standard_normal((7, 9))
    feature_map = convolution(image, kernel)
    back = reverse(feature_map, kernel)
    np.testing.assert_allclose(back, convolution(full_padded(feature_map, kernel), flipped(kernel)))
    assert back.shape == image.shape


@kernels
@strides
def test_with_a_stride_the_map_is_zero_stuffed_first(size: tuple[int, int], stride: int):
    rng = np.random.default_rng(1)
    kernel, feature_map = rng.standard_normal(size), rng.standard_normal((4, 3))
    stuffed = zero_stuffed(feature_map, stride)
    np.testing.assert_array_equal(dilate(feature_map, (stride, stride)), stuffed)
    np.testing.assert_allclose(
        reverse(feature_map, kernel, stride),
        convolution(full_padded(stuffed, kernel), flipped(kernel)),
        atol=1e-12,
    )


@kernels
@strides
def test_it_is_the_transpose_of_the_layers_matrix(size: tuple[int, int], stride: int):
    """A convolution is a matrix times the image as a long vector. The reverse is that matrix transposed."""
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal(size)
    h, w = 8 * stride, 7 * stride
    # Column by column: what the layer makes of an image with one lit pixel.
    pixels = np.eye(h * w).reshape(-1, h, w)
    matrix = np.stack([convolution(pixel, kernel, stride).ravel() for pixel in pixels], axis=1)
    feature_map = rng.standard_normal(convolution(pixels[0], kernel, stride).shape)
    expected = (matrix.T @ feature_map.ravel()).reshape(h, w)
    back = np.zeros((h, w))
    seen = reverse(feature_map, kernel, stride)  # the last pixels may not have been seen at all
    back[: seen.shape[0], : seen.shape[1]] = seen
    np.testing.assert_allclose(back, expected, atol=1e-12)


def paddings() -> list[object]:
    """Kernels, strides and paddings; onnxruntime has no SAME_LOWER that would pad by less than nothing."""
    return [
        pytest.param(size, stride, padding, id=f"{size}-{stride}-{padding}")
        for size in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 2), (2, 3))
        for stride in (1, 2, 3)
        for padding in ("VALID", "SAME_UPPER", "SAME_LOWER")
        if padding != "SAME_LOWER" or stride <= min(size)
    ]


@pytest.mark.parametrize(("size", "stride", "padding"), paddings())
def test_a_padded_layer_cuts_off_what_lies_in_the_padding(
    size: tuple[int, int], stride: int, padding: str, opened: Opener
):
    """SAME padding with an even kernel is uneven: UPPER has the odd line at the end, LOWER at the beginning."""
    rng = np.random.default_rng(3)
    image, kernel = rng.standard_normal((8, 9)), rng.standard_normal(size)
    pads = [(0, 0), (0, 0)]
    if padding != "VALID":
        for axis, (n, k) in enumerate(zip(image.shape, size, strict=True)):
            total = max((-(-n // stride) - 1) * stride + k - n, 0)
            small, large = total // 2, total - total // 2
            pads[axis] = (small, large) if padding == "SAME_UPPER" else (large, small)
    padded = np.pad(image, pads)
    feature_map = convolution(padded, kernel, stride)

    model = network(
        [node("Conv", "x w", "y", strides=[stride, stride], auto_pad=padding)],
        {"w": kernel[None, None].astype(np.float32)},
        image=("N", 1, 8, 9),
    )
    net = opened(model)
    x = image[None, None].astype(np.float32)
    np.testing.assert_allclose(net.activations(x, "conv1")[0, 0], feature_map, rtol=1e-4, atol=1e-5)

    back = np.zeros(padded.shape)
    seen = convolution(full_padded(zero_stuffed(feature_map, stride), kernel), flipped(kernel))
    back[: seen.shape[0], : seen.shape[1]] = seen
    (top, _), (left, _) = pads
    cut = back[top : top + 8, left : left + 9]
    found = net.project(x, "conv1", channel=0, position=None)[0, 0]
    np.testing.assert_allclose(found, cut, rtol=1e-4, atol=1e-4)


def test_unpooling_puts_values_back_at_the_switches():
    image = np.array(
        [
            [1.0, 9, 2, 3],
            [4, 5, 8, 6],
            [3, 1, 0, 2],
            [7, 2, 1, 5],
        ]
    )
    # Pooling 2×2 by 2 keeps 9, 8, 7 and 5.
    pooled = np.array([[[[9.0, 8], [7, 5]]]])
    where = switches(image[None, None], pooled, (2, 2), (2, 2), (1, 1), (0, 0))
    # A switch is the number of the cell in its window: top left 0, top right 1, bottom left 2, bottom right 3.
    assert where[0, 0].tolist() == [[1, 2], [2, 3]]
    pooled = np.array([[[[10.0, 20], [30, 40]]]])
    expected = np.array(
        [
            [0.0, 10, 0, 0],
            [0, 0, 20, 0],
            [0, 0, 0, 0],
            [30, 0, 0, 40],
        ]
    )
    np.testing.assert_array_equal(unpool(pooled, where, (2, 2), (2, 2), (1, 1))[0, 0], expected)


OVERLAPPING = np.array(
    [
        [0.0, 1, 2, 0, 1],
        [1, 0, 3, 1, 0],
        [2, 3, 9, 0, 2],
        [0, 1, 2, 3, 0],
        [1, 0, 3, 0, 4],
    ]
)
"""Pooled 3×3 by 2, all four windows find the 9 in the middle."""


@pytest.mark.parametrize(("overlap", "middle"), [("sum", 1 + 2 + 3 + 4), ("mean", (1 + 2 + 3 + 4) / 4)])
def test_windows_that_overlap_on_a_switch_sum_or_average(overlap: str, middle: float, opened: Opener):
    net = opened(
        network([node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2])], image=("N", 1, 5, 5))
    )
    x = OVERLAPPING[None, None].astype(np.float32)
    np.testing.assert_array_equal(net.activations(x, "pool1"), np.full((1, 1, 2, 2), 9))
    g = np.array([[[[1, 2], [3, 4]]]], np.float32)
    found = net.vjp({"x": x}, {"y": g}, method=make_method("deconvnet", overlap=overlap))["x"][0, 0]
    expected = np.zeros((5, 5))
    expected[2, 2] = middle
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pads", [0, 1, 2])
def test_the_fifth_channel_of_one_layer_reconstructs(pads: int, opened: Opener):
    """Its strongest unit comes back as activation × kernel, at the patch that it saw; nothing else is there."""
    rng = np.random.default_rng(4)
    kernel = rng.standard_normal((7, 3, 4, 5)).astype(np.float32)
    bias = rng.standard_normal(7).astype(np.float32)
    model = network(
        [node("Conv", "x w b", "conv", pads=[pads] * 4, strides=[2, 1]), node("Relu", "conv", "y")],
        {"w": kernel, "b": bias},
        image=("N", 3, 12, 11),
    )
    net = opened(model)
    x = models.pictures(model, 2)
    maps = net.activations(x, "relu1")
    found = net.project(x, "relu1", channel=4, position="max")
    for image, feature_map in zip(found, maps[:, 4], strict=True):
        y, x_ = np.unravel_index(feature_map.argmax(), feature_map.shape)
        patch = np.zeros((3, 12 + 2 * pads, 11 + 2 * pads), np.float32)
        patch[:, 2 * y : 2 * y + 4, x_ : x_ + 5] = feature_map[y, x_] * kernel[4]
        expected = patch[:, pads : pads + 12, pads : pads + 11]
        np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)


def test_an_image_made_of_the_kernel_comes_back_as_itself(opened: Opener):
    """If the image is the fifth kernel in an empty frame, of length 1, the projection is the image."""
    rng = np.random.default_rng(5)
    kernel = rng.standard_normal((7, 3, 4, 5)).astype(np.float32)
    kernel /= np.sqrt((kernel**2).sum((1, 2, 3), keepdims=True))
    net = opened(network([node("Conv", "x w", "y")], {"w": kernel}, image=("N", 3, 10, 9)))
    x = np.zeros((1, 3, 10, 9), np.float32)
    x[0, :, 2:6, 3:8] = kernel[4]
    np.testing.assert_allclose(net.project(x, "conv1", channel=4), x, atol=1e-6)
