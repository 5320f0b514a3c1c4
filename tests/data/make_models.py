"""Make the tiny .tflite files of this folder: one network, its input and output as int8, uint8 and float32.

    PYTHONPATH=tools python tests/data/make_models.py

8x8 gray in, range 0..1, three softmax outputs; random weights; and once with weights of 8 bits, computed in float, as
quantize.py's `--precision dynamic` has it. Needs TensorFlow, which the tests themselves don't.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow
from keras import layers
from numpy.typing import NDArray
from precisions import dynamic

FOLDER = Path(__file__).parent


def main() -> None:
    """Write the files."""
    keras.utils.set_random_seed(1)
    image = keras.Input(batch_shape=(1, 8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, 2, activation="relu", bias_initializer="he_normal")(image)
    # Large weights: the outputs then tell pictures apart.
    spread = keras.initializers.RandomNormal(stddev=3.0)
    answers = layers.Dense(3, activation="softmax", kernel_initializer=spread)(layers.Flatten()(x))
    network = keras.Model(image, answers)
    for name in ("int8", "uint8", "float32"):
        (FOLDER / f"{name}.tflite").write_bytes(convert(network, name))
    floats = (FOLDER / "float32.tflite").read_bytes()
    (FOLDER / "dynamic.tflite").write_bytes(dynamic(floats))
    second = keras.Input(batch_shape=(1, 8, 8, 1), name="second")
    two = keras.Model([image, second], layers.Add()([image, second]))
    (FOLDER / "two_inputs.tflite").write_bytes(tensorflow.lite.TFLiteConverter.from_keras_model(two).convert())


def convert(network: keras.Model, name: str) -> bytes:
    """The .tflite of a network, its input and output as the dtype of this name."""
    converter = tensorflow.lite.TFLiteConverter.from_keras_model(network)
    if name != "float32":
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tensorflow.dtypes.as_dtype(name)
    return bytes(converter.convert())


def samples() -> Iterator[list[NDArray[np.float32]]]:
    """Pictures to calibrate with, the full range among them."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        picture = rng.random((1, 8, 8, 1), np.float32)
        picture[0, 0, :2, 0] = 0, 1
        yield [picture]


if __name__ == "__main__":
    main()
