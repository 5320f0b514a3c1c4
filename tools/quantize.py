r"""Turn a Keras model into an int8 TFLite file with its card, and check it against the original.

    python tools/quantize.py runs/emotion/model.keras --card runs/emotion/card.json \
        --calibrate runs/emotion/calibrate.npy -o models/emotion-48.tflite

Calibration pictures are what the model's input is made from: uint8, n x height x width x channels, in the card's
colour. Some of them are held out to compare the int8 file with the float original.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # only TensorFlow can write a .tflite
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from numpy.typing import NDArray

from edgefer.messages import Image
from edgefer.vision.card import ModelCard, read_card
from edgefer.vision.model import Model
from edgefer.vision.preprocess import normalise

HELD_OUT = 32
"""Pictures that check the result and don't calibrate it."""


def main() -> None:
    """Convert one model, print how well it agrees with its original."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path, help="a .keras file")
    parser.add_argument("--card", type=Path, required=True, help="the model's card, without sha256 and metrics")
    parser.add_argument(
        "--calibrate", type=Path, required=True, help=".npy of uint8 pictures, n x height x width x channels"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the .tflite to write; the card goes beside it"
    )
    arguments = parser.parse_args()
    pictures = np.load(arguments.calibrate)
    agreement = quantise(arguments.model, read_card(arguments.card), pictures, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1024:.0f} KiB, signal to noise {agreement:.1f} dB")


def quantise(keras_file: Path, card: ModelCard, pictures: Image, output: Path) -> float:
    """Write `output` (.tflite, full int8, per channel) and its card; return the worst output's signal to noise in dB.

    `pictures` are uint8, n x height x width x channels, in the card's colour, at least 64 of them.
    """
    if len(pictures) < 2 * HELD_OUT:
        raise SystemExit(f"calibration needs at least {2 * HELD_OUT} pictures, got {len(pictures)}")
    floats = float_tflite(keras_file, card)
    content = int8_tflite(
        floats, [normalise(picture, card.input) for picture in pictures[:-HELD_OUT]], card.input.range
    )
    write_model(output, content, card)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "float.tflite"
        write_model(original, floats, card)
        return agreement(Model(original, card.task), Model(output, card.task), pictures[-HELD_OUT:])


def float_tflite(keras_file: Path, card: ModelCard) -> bytes:
    """The float32 .tflite of a Keras model, with the batch fixed at 1 (a free batch costs LiteRT extra operators)."""
    import keras  # noqa: PLC0415  # takes seconds, and --help shouldn't
    import tensorflow  # noqa: PLC0415  # the same

    model = keras.models.load_model(keras_file, compile=False)
    channels = 1 if card.input.colour == "gray" else 3
    fixed = keras.Input(batch_shape=(1, card.input.height, card.input.width, channels), name="image")
    converter = tensorflow.lite.TFLiteConverter.from_keras_model(keras.Model(fixed, model(fixed, training=False)))
    return bytes(converter.convert())


def int8_tflite(floats: bytes, samples: list[NDArray[np.float32]], input_range: tuple[float, float]) -> bytes:
    """The full int8 .tflite of a float one: its input takes the range given, its activations what samples reach."""
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager  # noqa: PLC0415  # brings a runtime
    from ai_edge_quantizer.utils.qsv_utils import min_max_update  # noqa: PLC0415  # the same

    key, name, tensor = _input_names(floats)
    plan = recipe_manager.RecipeManager()
    plan.load_quantization_recipe(recipe.static_wi8_ai8())
    # Its default averages each picture's extremes: on the emotion model that clipped what is rare, and lost 25 dB.
    calibration = calibrator.Calibrator(floats, num_threads=1, qsv_update_func=min_max_update)
    calibration.calibrate({key: [{name: sample[None]} for sample in samples]}, plan)
    ranges = calibration.get_model_qsvs()
    for end, value in (("min", min(input_range)), ("max", max(input_range))):
        ranges[tensor][end] = np.full_like(ranges[tensor][end], value)
    work = quantizer.Quantizer(floats, recipe.static_wi8_ai8())
    return bytes(work.quantize(ranges).quantized_model)


def _input_names(floats: bytes) -> tuple[str, str, str]:
    """The signature, and what its input is called there and in the graph."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  # the quantizer's own runtime

    interpreter = Interpreter(model_content=floats)
    ((key, signature),) = interpreter.get_signature_list().items()
    return key, signature["inputs"][0], interpreter.get_input_details()[0]["name"]


def write_model(path: Path, content: bytes, card: ModelCard) -> None:
    """Write a .tflite and, beside it, its card with the file's digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    path.with_suffix(".json").write_text(card.to_json())


def agreement(original: Model, converted: Model, pictures: Image) -> float:
    """The worst signal-to-noise ratio over the outputs of two models on the same pictures, in dB."""
    pairs: list[Any] = [(original(picture), converted(picture)) for picture in pictures]
    ratios = []
    for i in range(len(pairs[0][0])):
        signal = np.stack([a[i] for a, _ in pairs])
        noise = signal - np.stack([b[i] for _, b in pairs])
        ratios.append(10 * np.log10((signal**2).mean() / max(float((noise**2).mean()), 1e-12)))
    return float(min(ratios))


if __name__ == "__main__":
    main()
