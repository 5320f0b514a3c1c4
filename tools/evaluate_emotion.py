"""How often an emotion model agrees with the labels of faces, and how far its confidence can be believed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from emotion_faces import TEST, Faces, at_size, find_faces, label_name
from emotion_plots import plot_confusion
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.vision.card import Metric
from edgefer.vision.emotion import EmotionReader, Probabilities
from edgefer.vision.model import Model

BINS = 15
"""Bins of confidence for the calibration error, as in Guo et al., 2017."""
PLOTS = Path("runs")


def evaluate_emotion(model: Model, data: Path) -> list[Metric]:
    """The figures of a model on test faces, against their labels: one pass, nothing averaged.

    Faces whose label the model doesn't know are left out. Tells the time and draws the confusion matrix.
    """
    faces = find_faces(data)
    reader = EmotionReader(model)
    rows, labels = test_rows(faces, reader.labels)
    card = model.card
    started = time.perf_counter()
    answers = read_all(reader, [at_size(faces.images[row], card.input.width, card.input.height) for row in rows])
    each_ms = (time.perf_counter() - started) / len(rows) * 1000
    plot = PLOTS / f"{card.name}-confusion.png"
    plot_confusion(confusion_matrix(labels, answers.argmax(1), len(reader.labels)), reader.labels, plot)
    print(f"{model.path}: {len(rows)} faces, {each_ms:.3f} ms each on one thread; confusion matrix in {plot}")
    split = "PrivateTest" if faces.is_fer2013 else "test" if (faces.usage == TEST).any() else "all"
    source = "FER2013" if faces.is_fer2013 else data.name
    precision = card.training.get("precision", "int8")
    return [
        Metric(source, split, name, round(value, 4), precision)
        for name, value in measure(answers, labels, reader.labels).items()
    ]


def test_rows(faces: Faces, names: tuple[str, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the test images are whose label the model knows, and these labels as the model counts them.

    Without a split of tests, all images are. InputError where the model knows none of the labels.
    """
    known = [label_name(name) for name in names]
    numbers = np.array([known.index(name) if name in known else -1 for name in faces.names])
    labels = numbers[faces.labels]
    tested = faces.usage == TEST if (faces.usage == TEST).any() else np.ones(len(labels), bool)
    rows = np.flatnonzero(tested & (labels >= 0))
    if not len(rows):
        raise InputError(
            f"none of the test faces has a label that the model knows: {', '.join(faces.names)}; {', '.join(names)}"
        )
    return rows, labels[rows]


def read_all(reader: EmotionReader, images: Image | list[Image]) -> Probabilities:
    """The probabilities for n pictures of the model's size, n x labels."""
    return np.stack([reader.read(image) for image in images])


def measure(probabilities: Probabilities, labels: NDArray[Any], names: tuple[str, ...]) -> dict[str, float]:
    """Accuracy, macro-F1, calibration error and each label's recall, all 0..1."""
    confusion = confusion_matrix(labels, probabilities.argmax(1), len(names))
    right = np.diag(confusion)
    actual, answered = confusion.sum(1), confusion.sum(0)
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "macro-F1": float((2 * right / np.maximum(actual + answered, 1)).mean()),
        "expected calibration error": calibration_error(probabilities, labels),
        **{f"recall {name}": float(right[i] / max(actual[i], 1)) for i, name in enumerate(names)},
    }


def confusion_matrix(labels: NDArray[Any], answers: NDArray[Any], classes: int) -> NDArray[np.intp]:
    """How many images of each label (row) got each answer (column)."""
    return np.bincount(labels.astype(np.intp) * classes + answers, minlength=classes**2).reshape(classes, classes)


def calibration_error(probabilities: Probabilities, labels: NDArray[Any]) -> float:
    """How far confidence and accuracy lie apart, over bins of confidence weighted by their size (ECE), 0..1."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    gaps = np.bincount(bins, right, BINS) - np.bincount(bins, confidence, BINS)
    return float(np.abs(gaps).sum() / len(labels))
