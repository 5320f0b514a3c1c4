"""The embedding's network: plain 3x3 convolutions and ReLU, which cost little and lose little at int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import backend  # noqa: F401  # before Keras
import keras
from former_network import ADDED
from keras import layers

from edgefer.vision.preprocess import TEMPLATE_SIZE as SIZE

WIDTHS = (32, 64, 128, 256)
"""Channels at 56x56, 28x28, 14x14 and 7x7: 248 million multiply-adds and 2.7 million parameters."""
DEPTHS = (0, 1, 2, 3)
"""Further 3x3 convolutions at each of these sizes."""
ADDITIONS = (0, 0, 1, 0)
"""Still further ones, which a former network to go on from may lack."""
EMBEDDING = 128


def network() -> keras.Model:
    """Aligned faces to 128 values each; their direction is the embedding (edgefer makes the length 1)."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = body(image, DEPTHS, ADDITIONS)
    # A weight for each place: an eye's corner tells more than a cheek (MobileFaceNet's "global depthwise convolution").
    x = layers.DepthwiseConv2D(SIZE // 16, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.97)(x)
    x = layers.Dense(EMBEDDING, name="embedding", dtype="float32")(layers.Flatten()(x))
    return keras.Model(image, x, name="identity")


def body(x: Any, depths: Sequence[int], additions: Sequence[int] = (0, 0, 0, 0), stride: int = 2) -> Any:
    """Faces to what is to be known of each place: a sixteenth of their size, or an eighth by a first step of 1.

    The embedding's faces are BGR, -1..1. What knows faces and learns emotions (`--arch faces`) has this body too.
    """
    for width, depth, more in zip(WIDTHS, depths, additions, strict=True):
        x = convolution(x, width, stride)
        for _ in range(depth):
            x = layers.ReLU()(x + convolution(x, width, activate=False))
        for _ in range(more):
            with keras.name_scope(ADDED):
                x = layers.ReLU()(x + convolution(x, width, activate=False, begin=0))
        stride = 2
    return x


def convolution(
    x: Any, width: int, stride: int = 1, *, kernel: int = 3, activate: bool = True, begin: float = 1
) -> Any:
    """A convolution with batch normalisation, whose scale begins as told, and ReLU unless told otherwise."""
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.97, gamma_initializer=keras.initializers.Constant(begin))(x)
    return layers.ReLU()(x) if activate else x
