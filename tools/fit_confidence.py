"""Make an emotion model's confidence mean something: fit the temperature and the threshold in its card.

    python tools/fit_confidence.py models/emotion-48.json

Both are fitted on PublicTest, at int8, through edgefer's own reader; the tests of `evaluate.py` don't see PublicTest.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA, load_fer2013
from evaluate_emotion import calibration_error, read_all
from numpy.typing import NDArray

from edgefer.vision.card import read_card
from edgefer.vision.emotion import EmotionReader, Probabilities
from edgefer.vision.model import Model

TEMPERATURES = np.geomspace(0.3, 3, 200)


def main() -> None:
    """Fit, tell and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("card", type=Path, help="the model's card; the .tflite lies beside it")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    arguments = parser.parse_args()
    fer = load_fer2013(arguments.data / "fer2013")
    images, labels = fer.images[fer.usage == 1], fer.labels[fer.usage == 1]

    card = dataclasses.replace(read_card(arguments.card), temperature=1.0)
    arguments.card.write_text(card.to_json())
    raw = read_all(EmotionReader(Model(arguments.card.with_suffix(".tflite"), "emotion")), images)
    temperature = fit_temperature(raw, labels)
    scaled = soften(raw, temperature)
    min_confidence = fit_threshold(scaled, labels)

    sure = scaled.max(1) >= min_confidence
    right = scaled.argmax(1) == labels
    print(f"PublicTest accuracy {right.mean():.4f}")
    print(
        f"temperature {temperature:.3f}: calibration error {calibration_error(raw, labels):.4f}, then "
        f"{calibration_error(scaled, labels):.4f}"
    )
    print(
        f"min_confidence {min_confidence:.2f}: {sure.mean():.1%} of the answers reach it, {right[sure].mean():.1%} of "
        f"those are right, {right[~sure].mean():.1%} of the others"
    )
    card = dataclasses.replace(card, temperature=round(temperature, 3), thresholds={"min_confidence": min_confidence})
    arguments.card.write_text(card.to_json())


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
    """The confidence, in hundredths, over which there are most right answers more than wrong ones."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    thresholds = np.arange(100) / 100
    gains = [np.where(right, 1, -1)[confidence >= threshold].sum() for threshold in thresholds]
    return float(thresholds[np.argmax(gains)])


if __name__ == "__main__":
    main()
