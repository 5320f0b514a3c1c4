"""The networks that tools/train_emotion.py trains: our own, what it begins as, and two classics of FER2013.

Each comes with the recipe that suits it: its optimiser, what it learns from, and when it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import backend  # noqa: F401  # before Keras
import keras
from embedding_network import WIDTHS, body, convolution
from keras import layers
from muon import Muon
from training import warm_cosine

Rates = Any  # a schedule or a number: Keras has no types
SIZE = 48
NARROW = ((), (32,), (48, 48, 64), ())
"""The further convolutions of the stages at 48x48, 24x24, 12x12 and 6x6, and by way of how many channels each goes in
`edgefer`: 74 million multiply-adds and 0.62 million parameters (`faces`: 117 and 0.87 million)."""


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
    """`faces` at two thirds of its cost: each further convolution goes by way of fewer channels.

    It may begin as a trained `faces` (`--start`), whose convolutions are parted along what they write most.
    """
    x = image = keras.Input((SIZE, SIZE, 1), name="image")
    for number, (width, narrow) in enumerate(zip(WIDTHS, NARROW, strict=True)):
        x = convolution(x, width, stride=2 if number else 1)
        for channels in narrow:
            by_way = convolution(x, channels, activate=False)
            x = layers.ReLU()(x + convolution(by_way, width, kernel=1, activate=False))
    return told_from_mean(image, x, classes)


def faces(classes: int) -> keras.Model:
    """The embedding's body with fewer convolutions, too large for a Pi: to teach, and for `edgefer` to begin as.

    The embedding's first layer takes steps of 2; on faces half as large, this one's of 1 sees the same. So it may begin
    with what that has learnt (`--start`).
    """
    image = keras.Input((SIZE, SIZE, 1), name="image")
    return told_from_mean(image, body(image, [len(stage) for stage in NARROW], stride=1), classes)


def told_from_mean(image: keras.KerasTensor, x: keras.KerasTensor, classes: int) -> keras.Model:
    """The network that tells its scores from the mean over all places."""
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, scores(x, classes), name="emotion")


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
    "edgefer": Network(edgefer, 0.006, warm_cosine, averaged_muon, averages=True, votes=True, patience=None),
    "faces": Network(faces, 0.006, warm_cosine, averaged_muon, averages=True, votes=True, patience=None),
    "fer2013-cnn": Network(fer2013_cnn, 1e-4, steady, keras.optimizers.Adam, averages=False, votes=False, patience=10),
    "little-vgg": Network(little_vgg, 1e-3, steady, keras.optimizers.Adam, averages=False, votes=False, patience=10),
}
