"""How often an emotion model agrees with the labels of faces, and how far its confidence can be believed."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from emotion_faces import TEST, at_size, find_faces, with_labels_of
from emotion_plots import plot_confusion
from measured import precision_of
from numpy.typing import NDArray

from edgefer.vision.card import Metric
from edgefer.vision.emotion import EmotionReader, Probabilities
from edgefer.vision.model import Model

BINS = 15
"""Bins of confidence for the calibration error, as in Guo et al., 2017."""
CALIBRATION_ERROR = "expected calibration error"
PLOTS = Path("runs")


def evaluate_emotion(model: Model, data: Path) -> list[Metric]:
    """The figures of a model on test faces, against their labels: one pass, nothing averaged.

    Faces whose label the model doesn't know are left out. Tells the time and draws the confusion matrix.
    """
    card, precision = model.card, precision_of(model.card)
    faces = find_faces(data, model_input=card.input, only=TEST)
    reader = EmotionReader(model)
    has_test = bool((faces.usage == TEST).any())
    tested = faces.rows(TEST) if has_test else np.arange(len(faces.labels))
    if not has_test:
        print(f"{data}: there is no test/, so all faces count: a model that learned from some of them looks too good")
    rows, labels = with_labels_of(faces, tested, reader.labels)
    answers, seconds = read_all(reader, faces.images[rows])
    source = "FER2013" if faces.is_fer2013 else data.resolve().name
    # The digest tells old/mine.tflite from new/mine.tflite.
    digest = hashlib.sha256(model.path.read_bytes()).hexdigest()[:8]
    plot = PLOTS / f"{model.path.stem}-{digest}-{source}-{precision}-confusion.png"
    plot_confusion(confusion_matrix(labels, answers.argmax(1), len(reader.labels)), reader.labels, plot)
    others = f" ({len(tested) - len(rows)} of labels that it doesn't know are left out)" * (len(rows) < len(tested))
    print(f"{model.path}: {len(rows)} faces{others}, {seconds * 1000:.3f} ms each on one thread (median)")
    print(f"  confusion matrix in {plot}")
    split = "all" if not has_test else "PrivateTest" if faces.is_fer2013 else "test"
    return [
        Metric(source, split, name, round(value, 4), precision)
        for name, value in measure(answers, labels, reader.labels).items()
    ]


def read_all(reader: EmotionReader, images: NDArray[np.uint8]) -> tuple[Probabilities, float]:
    """The probabilities for n pictures (gray or BGR) of any one size, n x labels, and the median seconds for each."""
    size = reader.model.card.input
    answers, seconds = [], []
    for image in images:
        image = at_size(image, size.width, size.height)  # noqa: PLW2901
        started = time.perf_counter()
        answers.append(reader.read(image))
        seconds.append(time.perf_counter() - started)
    return np.stack(answers), float(np.median(seconds))


def measure(probabilities: Probabilities, labels: NDArray[Any], names: tuple[str, ...]) -> dict[str, float]:
    """Accuracy, macro-F1, calibration error, and each label's recall and precision, all 0..1.

    A label that no face has tells nothing, and counts for nothing.
    """
    confusion = confusion_matrix(labels, probabilities.argmax(1), len(names))
    right = np.diag(confusion)
    actual, answered = confusion.sum(1), confusion.sum(0)
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "macro-F1": float((2 * right / np.maximum(actual + answered, 1))[actual > 0].mean()),
        CALIBRATION_ERROR: calibration_error(probabilities, labels),
        **{f"recall {name}": float(right[i] / actual[i]) for i, name in enumerate(names) if actual[i]},
        **{f"precision {name}": float(right[i] / max(answered[i], 1)) for i, name in enumerate(names) if actual[i]},
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
