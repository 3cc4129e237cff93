"""Makes the stored graphs that come from Keras through tf2onnx: images with their channels last.

Run by hand, with TensorFlow 2.15 and tf2onnx installed: ``python tests/graphs/make_keras.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tensorflow as tf
import tf2onnx
from keras.src.applications import efficientnet as efficientnets
from keras.src.applications import mobilenet_v2, resnet
from storage import store
from tensorflow.keras import layers

HERE = Path(__file__).parent


def mobilenet():
    return mobilenet_v2.MobileNetV2(alpha=0.35, weights=None, input_shape=(64, 64, 3), classes=10)


def efficientnet():
    return efficientnets.EfficientNet(
        0.35, 0.6, 64, weights=None, input_shape=(64, 64, 3), classes=10, model_name="efficientnet"
    )


def resnet_v2():
    def stack(x):
        for number, (filters, blocks) in enumerate(((8, 2), (16, 2), (24, 2), (32, 2)), 2):
            x = resnet.stack2(x, filters, blocks, stride1=2, name=f"conv{number}")
        return x

    return resnet.ResNet(stack, True, True, "resnet_v2", weights=None, input_shape=(64, 64, 3), classes=10)


def mixture():
    """Uneven SAME padding, PReLU, depthwise and separable convolutions, transposed ones, upsampling, two outputs."""
    image = layers.Input((57, 62, 3))
    x = layers.Conv2D(12, 5, strides=2, padding="same")(image)
    x = layers.PReLU(shared_axes=(1, 2))(x)
    x = skip = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.LeakyReLU(0.2)(x)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = layers.SeparableConv2D(20, 3, strides=2, padding="same", activation="swish")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(20, 3, dilation_rate=2, padding="same", activation="elu")(x)
    x = layers.LayerNormalization()(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.Conv2DTranspose(16, 4, strides=2, padding="same", activation=tf.nn.gelu)(x)
    x = layers.Cropping2D(((1, 2), (0, 1)))(x)
    x = layers.Concatenate()([x, skip])
    x = layers.Conv2D(14, 3, strides=3, activation="relu6")(layers.ZeroPadding2D(((0, 1), (2, 1)))(x))
    x = layers.AveragePooling2D(3, 2, padding="same")(x)
    heat = layers.Conv2D(4, 1, activation="sigmoid", name="heat")(x)
    scores = layers.Dense(10, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
    return tf.keras.Model(image, [scores, heat])


NETWORKS = {"mobilenet": mobilenet, "efficientnet": efficientnet, "resnet_v2": resnet_v2, "mixture": mixture}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    for name in args.names:
        tf.keras.utils.set_random_seed(0)
        net = NETWORKS[name]()
        # Equal tensors would be stored once.
        net.set_weights([tf.random.uniform(w.shape, 0.5, 1.5).numpy() for w in net.get_weights()])
        shape = net.input_shape[1:]
        signature = [tf.TensorSpec((None, *shape), tf.float32, name="image")]
        model, _ = tf2onnx.convert.from_keras(net, signature, opset=15)
        store(model, (), (1, *shape), args.out, f"{name}_keras")


if __name__ == "__main__":
    main()
