"""How well a converted model agrees with its original."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from calibration_pictures import Labels
from keras_models import Floats, KerasModel
from model_file import loaded

from edgefer.messages import Image
from edgefer.vision.card import ModelCard, ModelInput, Task
from edgefer.vision.preprocess import to_floats

AT_ONCE = 32
"""Pictures that are held as floats: one of 640x640 in colour takes 5 MB."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same pictures.

    `agreement` is, 0..1, for emotions how often the top class is the same; for embeddings the mean of the pictures'
    cosines; for detectors the cosine of the output that agrees least, one over all pictures: an output of a picture
    where nothing is found may be all but zero, and its cosine say nothing. `largest` is the largest difference of any
    value; `noise_db` the worst output's signal-to-noise ratio.
    """

    agreement: float
    largest: float
    noise_db: float


def compare(task: Task, originals: list[Floats], converted: list[Floats]) -> Comparison:
    """Compare outputs, each n x ..., in the same order."""
    pairs = list(zip(originals, converted, strict=True))
    if task == "emotion":
        agreement = float((originals[0].argmax(1) == converted[0].argmax(1)).mean())
    elif task == "embedding":
        agreement = min(float(_cosines(a, b).mean()) for a, b in pairs)
    else:
        agreement = min(float(_cosines(a[None], b[None]).mean()) for a, b in pairs)
    return Comparison(
        agreement, max(float(np.abs(a - b).max()) for a, b in pairs), min(signal_to_noise_db(a, b) for a, b in pairs)
    )


def signal_to_noise_db(original: Floats, converted: Floats) -> float:
    """How far the original's values stand above the difference, in dB."""
    noise = float(((original - converted) ** 2).mean())
    return float(10 * np.log10(float((original**2).mean()) / max(noise, 1e-12)))


def run_original(model: KerasModel, images: list[Image], model_input: ModelInput) -> list[Floats]:
    """The original's outputs for pictures (BGR or gray), through the daemon's preprocessing."""
    parts = [model(batch) for batch in as_batches(images, model_input)]
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


def as_batches(images: list[Image], model_input: ModelInput) -> Iterator[Floats]:
    """Pictures (BGR or gray) as an original takes them, AT_ONCE at a time."""
    for start in range(0, len(images), AT_ONCE):
        some = images[start : start + AT_ONCE]
        yield np.stack([to_floats(image, model_input) for image in some])


def run_tflite(content: bytes, card: ModelCard, images: list[Image], like: list[Floats]) -> list[Floats]:
    """The outputs of a .tflite as the daemon runs it, in the order of `like`, the original's for the same pictures."""
    with loaded(content, card) as model:
        results = [model(image) for image in images]
    outputs = [np.stack(values) for values in zip(*results, strict=True)]
    ordered = []
    for original in like:
        same = [i for i, output in enumerate(outputs) if output.shape == original.shape]
        ordered.append(outputs.pop(min(same, key=lambda i: float(np.abs(outputs[i] - original).mean()))))
    return ordered


def accuracy(scores: Floats, labels: Labels) -> float:
    """How often the top class is the label, 0..1, where there is one (labels under 0 are none)."""
    known = labels >= 0
    return float((scores[known].argmax(1) == labels[known]).mean())


def _cosines(a: Floats, b: Floats) -> Floats:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Floats = (a * b).sum(1) / np.maximum(lengths, 1e-9)
    return cosines
