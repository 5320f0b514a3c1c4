"""Make an emotion model's confidence mean something: fit the temperature and the threshold in its card.

    python tools/fit_confidence.py models/emotion-48.json
    python tools/fit_confidence.py mine.json --data faces/

Both are fitted on the validation split (PublicTest, val/, or else the tenth of train/ that train_emotion.py leaves
out), at int8, through edgefer's own reader. A model that others trained may have learned from all of train/: it looks
surer than it is there, so give it a val/ of faces that it never saw.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from command_line import Parser, card_path, run
from data import DATA
from emotion_faces import VALIDATION, find_faces, with_labels_of
from evaluate_emotion import CALIBRATION_ERROR, calibration_error, read_all
from model_file import write_card
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.vision.card import read_card
from edgefer.vision.emotion import EmotionReader, Probabilities
from edgefer.vision.model import Model

TEMPERATURES = np.geomspace(0.1, 10, 400)
FEW = 200
"""Of fewer faces, what is fitted hangs on a handful that are answered wrong."""


def main() -> None:
    """Fit, tell and write."""
    parser = Parser(__doc__)
    parser.add_argument("card", type=card_path, help="the model's card, its .tflite, or the name of one that ships")
    parser.add_argument("--data", type=Path, default=DATA, help="faces, as train_emotion.py takes them (%(default)s)")
    arguments = parser.parse_args()
    fit(arguments.card, arguments.data)


def fit(path: Path, data: Path) -> None:
    """Fit one card's temperature and threshold to labelled faces, and write it."""
    card = read_card(path)
    reader = EmotionReader(Model(path.with_suffix(".tflite"), "emotion"))
    reader.model.card = dataclasses.replace(card, temperature=1.0)
    faces = find_faces(data, model_input=card.input, only=VALIDATION)
    held = faces.rows(VALIDATION)
    if not len(held):
        raise InputError(f"{data}: it holds neither val/ nor train/ to fit on; a test/ is kept for evaluate.py")
    rows, labels = with_labels_of(faces, held, reader.labels)
    raw, _ = read_all(reader, faces.images[rows])
    temperature = fit_temperature(raw, labels)
    scaled = soften(raw, temperature)
    min_confidence = fit_threshold(scaled, labels)

    sure = scaled.max(1) >= min_confidence
    right = scaled.argmax(1) == labels
    print(f"{len(rows)} validation faces, accuracy {right.mean():.4f}")
    if len(rows) < FEW:
        print(f"warning: with fewer than {FEW} faces, temperature and threshold hang on chance: label more in val/")
    if faces.is_validation_of_train and "train_emotion.py" not in str(card.training.get("command")):
        print("warning: they are of train/: if the model learned from them, it is right less often on other faces than")
        print("  its confidence will say; put faces that it never saw in val/")
    if temperature in TEMPERATURES[[0, -1]]:
        print("warning: no temperature that is tried makes its confidence fit; is its card's input.range right?")
    print(
        f"temperature {temperature:.3f}: calibration error {calibration_error(raw, labels):.4f}, then "
        f"{calibration_error(scaled, labels):.4f}"
    )
    print(
        f"min_confidence {min_confidence:.2f}: {share(right[sure])} answers that reach it are right, and "
        f"{share(right[~sure])} others"
    )
    fitted = dataclasses.replace(
        card, temperature=round(temperature, 3), thresholds=card.thresholds | {"min_confidence": min_confidence}
    )
    if fitted.temperature != card.temperature:  # what was measured at the former one isn't so any more
        metrics = tuple(metric for metric in card.metrics if metric.metric != CALIBRATION_ERROR)
        if metrics != card.metrics:
            print(f"its calibration error at the former one is gone: python tools/evaluate.py emotion {path}")
        fitted = dataclasses.replace(fitted, metrics=metrics)
    write_card(path, fitted)


def share(right: NDArray[np.bool_]) -> str:
    """How many of some answers are right, in words."""
    return f"{right.sum()} of the {len(right)}"


def soften(probabilities: Probabilities, temperature: float) -> Probabilities:
    """What the reader gives at a temperature, from what it gives at 1."""
    powers: Probabilities = probabilities ** np.float32(1 / temperature)
    powers /= powers.sum(1, keepdims=True)
    return powers


def fit_temperature(probabilities: Probabilities, labels: NDArray[Any]) -> float:
    """The temperature under which the labels are likeliest."""
    rows, logits = np.arange(len(labels)), np.log(probabilities.astype(np.float64))
    costs = [(np.logaddexp.reduce(logits / t, 1) - logits[rows, labels] / t).mean() for t in TEMPERATURES]
    return float(TEMPERATURES[np.argmin(costs)])


def fit_threshold(probabilities: Probabilities, labels: NDArray[Any]) -> float:
    """The confidence, in hundredths, over which there are most right answers more than wrong ones.

    It is at least that of an answer by chance, which no answer is under: with it, none would be uncertain.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    thresholds = np.arange(math.ceil(100 / probabilities.shape[1]) + 1, 100) / 100
    gains = [np.where(right, 1, -1)[confidence >= threshold].sum() for threshold in thresholds]
    return float(thresholds[np.argmax(gains)])


if __name__ == "__main__":
    sys.exit(run(main))
