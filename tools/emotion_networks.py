"""The networks that tools/train_emotion.py trains: our own, its teacher, and two classics of FER2013 that people have.

Each comes with the recipe that suits it: its optimiser, what it learns from, and when it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import backend  # noqa: F401  # before Keras
import keras
from embedding_network import body
from former_network import ADDED
from keras import layers
from muon import Muon
from training import warm_cosine

Rates = Any  # a schedule or a number: Keras has no types
SIZE = 48
FIRST = 32
STAGES = ((32, 1), (64, 1), (128, 1), (192, 1))
"""Channels of the first convolution; channels and blocks at 24x24, 12x12, 6x6 and 3x3: 33 million multiply-adds and
0.89 million parameters."""
FACES_SIZE = 80
"""To what `faces` enlarges an image: 127 million multiply-adds."""


@dataclass(frozen=True, slots=True)
class Network:
    """How to build a network for a number of classes, and how to train it.

    `rate` is the highest learning rate, which `rates` spreads over a number of steps for the `optimizer`. `averages`
    tells whether that averages the weights, `votes` whether FER+'s votes are mixed into the labels, `patience` after
    how many epochs without a better validation it stops (None: never).
    """

    build: Callable[[int], keras.Model]
    rate: float
    rates: Callable[[float, int], Rates]
    optimizer: Callable[[Rates], keras.optimizers.Optimizer]
    averages: bool
    votes: bool
    patience: int | None


def edgefer(classes: int) -> keras.Model:
    """A small residual network of plain 3x3 convolutions and ReLU, which XNNPACK runs fast at int8."""
    image = keras.Input((SIZE, SIZE, 1), name="image")
    # 5x5 by steps of 2: half of what training would cost is in the layers at full size, for little gain.
    x = convolve(image, FIRST, kernel=5, stride=2)
    for stage, (width, blocks) in enumerate(STAGES):
        x = residual_block(x, width, stride=2 if stage else 1)
        for _ in range(blocks - 1):
            with keras.name_scope(ADDED):
                x = residual_block(x, width, begin=0)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(image, scores(x, classes), name="emotion")


def residual_block(x: keras.KerasTensor, width: int, stride: int = 1, begin: float = 1) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    `begin` scales what is added to the shortcut; a block that begins with 0 changes nothing until it has learnt.
    """
    short = x if stride == 1 and x.shape[-1] == width else convolve(x, width, kernel=1, stride=stride, relu=False)
    x = convolve(x, width, stride=stride)
    x = convolve(x, width, relu=False, scale=begin)
    return layers.ReLU()(layers.Add()([short, x]))


def convolve(
    x: keras.KerasTensor, width: int, kernel: int = 3, stride: int = 1, relu: bool = True, scale: float = 1
) -> keras.KerasTensor:
    """A convolution with batch normalisation, which begins at a scale, and ReLU where asked for."""
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.98, gamma_initializer=keras.initializers.Constant(scale))(x)
    return layers.ReLU()(x) if relu else x


def fer2013_cnn(classes: int) -> keras.Model:
    """The classic FER2013 network: pairs of 3x3 convolutions of 64, 128 and 256 filters, and a dense layer with L2."""
    image = keras.Input((SIZE, SIZE, 1), name="image")
    x = image
    for width, pool in ((64, True), (128, False), (256, True)):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        if pool:
            x = layers.Dropout(0.25)(layers.MaxPooling2D()(x))
    x = layers.Dense(256, activation="relu", kernel_regularizer=keras.regularizers.L2(0.001))(layers.Flatten()(x))
    x = layers.Dropout(0.5)(x)
    return keras.Model(image, scores(x, classes), name="fer2013-cnn")


def little_vgg(classes: int) -> keras.Model:
    """Five blocks of two 3x3 convolutions with ELU, batch normalisation and max pooling, then two dense layers."""
    image = keras.Input((SIZE, SIZE, 1), name="image")
    x = image
    for width in (32, 64, 128, 256, 256):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="elu", kernel_initializer="he_normal")(x)
            x = layers.BatchNormalization()(x)
        x = layers.Dropout(0.2)(layers.MaxPooling2D()(x))
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dense(64, activation="elu", kernel_initializer="he_normal")(x)
        x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    return keras.Model(image, scores(x, classes), name="little-vgg")


def faces(classes: int) -> keras.Model:
    """What knows faces already: the embedding's body on enlarged images. Too large for a Pi, it is to teach."""
    image = keras.Input((SIZE, SIZE, 1), name="image")
    x = layers.Resizing(FACES_SIZE, FACES_SIZE, dtype="float32")(image)
    x = layers.Rescaling(2.0, -1.0, dtype="float32")(x)
    x = body(layers.Concatenate()([x, x, x]))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.3)(x)
    return keras.Model(image, scores(x, classes), name="faces")


def scores(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """The last layer: a probability for each class."""
    return layers.Dense(classes, activation="softmax", name="emotion", dtype="float32")(x)


def steady(rate: float, _: int) -> Rates:
    """One rate for all steps."""
    return rate


def averaged_muon(rates: Rates) -> keras.optimizers.Optimizer:
    """Muon for the convolutions, Adam for the rest, weight decay, and an average of the weights."""
    return Muon(rates, weight_decay=0.02, adam_weight_decay=0.02, adam_lr_ratio=0.25, use_ema=True, ema_momentum=0.998)


NETWORKS = {
    "edgefer": Network(edgefer, 0.01, warm_cosine, averaged_muon, averages=True, votes=True, patience=None),
    "faces": Network(faces, 0.004, warm_cosine, averaged_muon, averages=True, votes=True, patience=None),
    "fer2013-cnn": Network(fer2013_cnn, 1e-4, steady, keras.optimizers.Adam, averages=False, votes=False, patience=10),
    "little-vgg": Network(little_vgg, 1e-3, steady, keras.optimizers.Adam, averages=False, votes=False, patience=10),
}
