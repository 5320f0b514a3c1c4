"""How often the emotion model agrees with FER2013's labels, and how far its confidence can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from data import load_fer2013
from numpy.typing import NDArray

from edgefer.messages import Image
from edgefer.vision.card import Metric
from edgefer.vision.emotion import EmotionReader, Probabilities
from edgefer.vision.model import Model

BINS = 15
"""Bins of confidence for the calibration error, as in Guo et al., 2017."""


def evaluate_emotion(model: Model, data: Path) -> list[Metric]:
    """The figures of an int8 model on PrivateTest, against the original labels: one pass, nothing averaged."""
    fer = load_fer2013(data / "fer2013")
    test = fer.usage == 2
    reader = EmotionReader(model)
    figures = measure(read_all(reader, fer.images[test]), fer.labels[test], reader.labels)
    return [Metric("FER2013", "PrivateTest", name, round(value, 4), "int8") for name, value in figures.items()]


def read_all(reader: EmotionReader, images: Image) -> Probabilities:
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
