"""Make an emotion model's confidence mean something: fit the temperature and the threshold in its card.

    python tools/fit_confidence.py models/emotion-48.json
    python tools/fit_confidence.py mine.json --data faces/

Both are fitted on the validation split (PublicTest, val/, or else the tenth of train/ that train_emotion.py leaves
out), at int8, through edgefer's own reader; the tests of `evaluate.py` don't see it.
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
from evaluate_emotion import calibration_error, read_all
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.vision.card import read_card
from edgefer.vision.emotion import EmotionReader, Probabilities
from edgefer.vision.model import Model

TEMPERATURES = np.geomspace(0.3, 3, 200)
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
    faces = find_faces(data, model_input=card.input, only=VALIDATION)
    held = faces.rows(VALIDATION)
    if not len(held):
        raise InputError(f"{data}: it holds neither val/ nor train/ to fit on; a test/ is kept for evaluate.py")
    rows, labels = with_labels_of(faces, held, reader.labels)
    raw = soften(read_all(reader, faces.images[rows])[0], 1 / card.temperature)
    temperature = fit_temperature(raw, labels)
    scaled = soften(raw, temperature)
    min_confidence = fit_threshold(scaled, labels)

    sure = scaled.max(1) >= min_confidence
    right = scaled.argmax(1) == labels
    print(f"{len(rows)} validation faces, accuracy {right.mean():.4f}")
    if len(rows) < FEW:
        print(f"warning: with fewer than {FEW} faces, temperature and threshold hang on chance: label more in val/")
    print(
        f"temperature {temperature:.3f}: calibration error {calibration_error(raw, labels):.4f}, then "
        f"{calibration_error(scaled, labels):.4f}"
    )
    print(
        f"min_confidence {min_confidence:.2f}: {share(right[sure])} answers that reach it are right, and "
        f"{share(right[~sure])} others"
    )
    card = dataclasses.replace(
        card, temperature=round(temperature, 3), thresholds=card.thresholds | {"min_confidence": min_confidence}
    )
    path.write_text(card.to_json())


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
    rows = np.arange(len(labels))
    costs = [-np.log(soften(probabilities, t)[rows, labels]).mean() for t in TEMPERATURES]
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
