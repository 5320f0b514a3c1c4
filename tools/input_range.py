"""Does a model get its pictures in the range that it was trained on? A wrong range is the commonest mistake.

The ranges in use are tried on real pictures. Where many of those are labelled, the accuracy tells. Else the model's
first batch normalisation does: it remembers the mean and variance of what reached it in training, and only the right
range gives them again. Confidence says nothing: pixels of 0..255 make a model of 0..1 very sure of itself, and wrong.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from agreement import accuracy, as_batches, run_original
from calibration_pictures import Labels
from keras_models import KerasModel

from edgefer.messages import Image
from edgefer.vision.card import ModelInput

Range = tuple[float, float]
USUAL: tuple[Range, ...] = ((0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.0, 255.0))
PICTURES = 256
FEWEST = 50
"""Pictures with a label; of fewer the share that is right says too little."""
STRANGE = 0.5
"""How far off the normalisation's statistics may be: trained models on their own kind of pictures stay under 0.3."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a range gives: accuracy where there are labels enough, and how strange the first normalisation finds it.

    `chance` is by how much chance alone may move the accuracy: two standard deviations.
    """

    range: Range
    accuracy: float | None
    strangeness: float | None
    chance: float


def try_ranges(model: KerasModel, model_input: ModelInput, images: list[Image], labels: Labels | None) -> list[Trial]:
    """A trial of the range in use, first, and of the usual ones; `labels` count the model's classes."""
    images = images[:PICTURES]
    labels = None if labels is None or (labels[:PICTURES] >= 0).sum() < FEWEST else labels[:PICTURES]
    chance = 0.0 if labels is None else 2 * (0.25 / int((labels >= 0).sum())) ** 0.5
    trials = []
    for values in dict.fromkeys((model_input.range, *(() if model.takes_integers else USUAL))):
        trial = dataclasses.replace(model_input, range=values)
        right = None if labels is None else accuracy(run_original(model, images, trial)[0], labels)
        trials.append(Trial(values, right, _strangeness(model, images, trial), chance))
    return trials


def better_range(trials: list[Trial]) -> Range | None:
    """A usual range that is clearly better than the one in use, if there is one."""
    used = trials[0]
    if used.accuracy is not None:
        best = max(trials, key=lambda trial: trial.accuracy or 0)
        if (best.accuracy or 0) >= used.accuracy + used.chance:
            return best.range
    if used.strangeness is not None:
        best = min(trials, key=lambda trial: trial.strangeness or 0)
        is_clear = used.strangeness > max(STRANGE, 2 * (best.strangeness or 0))
        if is_clear and (best.accuracy or 0) >= (used.accuracy or 0):
            return best.range
    return None


def is_strange(trials: list[Trial]) -> bool:
    """Whether none of the ranges is what the first normalisation met in training, as far as it tells."""
    return all(trial.strangeness is not None and trial.strangeness > STRANGE for trial in trials)


def _strangeness(model: KerasModel, images: list[Image], model_input: ModelInput) -> float | None:
    """How far mean and spread lie from training's, in its spreads: the median over channels."""
    norm = model.norm_input()
    if norm is None:
        return None
    reach, mean, variance = norm
    count, total, squares = 0, np.zeros(len(mean)), np.zeros(len(mean))
    for batch in as_batches(images, model_input):
        values = reach(batch)
        values = values.reshape(-1, values.shape[-1]).astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
    deviation = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 1e-12))
    spread = np.sqrt(np.maximum(variance, 1e-12))
    shifts = np.abs(total / count - mean) / spread
    scales = np.abs(np.log(np.maximum(deviation, 1e-12) / spread))
    return float(np.median(shifts + scales))
