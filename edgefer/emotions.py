"""What the tracked faces show: decided over several frames, never from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edgefer.messages import Detection, Emotion, Face, Frame, Image
from edgefer.schedule import Schedule
from edgefer.vision.emotion import Probabilities

EVERY_S = 0.2
"""Most expressions last half a second to four (Ekman): every one is read twice or more."""
BUDGET = 4
"""Readings a frame."""
MIN_READINGS = 3
"""Readings before the first decision."""
MEMORY = 0.8
"""What a reading still counts when the next one comes: a decision follows a change of face in under a second."""
LABEL_HYSTERESIS = 0.1
"""A decided label stays until another is more likely by this much, or it is uncertain itself."""
CERTAINTY_HYSTERESIS = 0.05
"""A decided emotion becomes uncertain this far under the threshold."""


class EmotionWatcher:
    """Gives each face its emotion; one that isn't likelier than `min_confidence` is uncertain."""

    def __init__(
        self,
        read: Callable[[Image, Detection], Probabilities],
        labels: Sequence[str],
        min_confidence: float,
        every_s: float = EVERY_S,
    ) -> None:
        self._read = read
        self._labels = labels
        self._min_confidence = min_confidence
        self._schedule = Schedule(every_s, BUDGET)
        self._decisions: dict[str, _Decision] = {}

    def __call__(self, frame: Frame, faces: Sequence[Face]) -> list[Face]:
        """The same faces, with their emotion as far as it is decided."""
        self._decisions = {
            face.track.track_id: self._decisions.get(face.track.track_id)
            or _Decision(self._labels, self._min_confidence)
            for face in faces
        }
        for face in self._schedule.due(frame, faces):
            probabilities = self._read(frame.image, face.track.detection)
            self._decisions[face.track.track_id].add(probabilities, face.quality.weight)
        return [replace(face, emotion=self._decisions[face.track.track_id].emotion) for face in faces]


def decide(probabilities: Probabilities, labels: Sequence[str], min_confidence: float) -> Emotion:
    """The emotion that one reading gives by itself."""
    top = int(probabilities.argmax())
    return _emotion(probabilities, labels, top, certain=float(probabilities[top]) >= min_confidence)


class _Decision:
    """One track's emotion, from the mean of its probabilities, weighted by quality."""

    def __init__(self, labels: Sequence[str], min_confidence: float) -> None:
        self.emotion = Emotion("undecided")
        self._labels = labels
        self._min_confidence = min_confidence
        self._readings = 0
        self._sum: Probabilities = np.zeros(len(labels), np.float32)
        self._decided: int | None = None

    def add(self, probabilities: Probabilities, weight: float) -> None:
        """Take one reading in; the floor keeps the sum from vanishing when every reading is poor."""
        self._readings += 1
        self._sum = self._sum * np.float32(MEMORY) + probabilities * np.float32(max(weight, 1e-3))
        if self._readings < MIN_READINGS:
            return
        mean: Probabilities = self._sum / self._sum.sum()
        top = int(mean.argmax())
        certain = float(mean[top]) >= self._min_confidence
        if self._decided is not None:
            needed = max(float(mean[top]) - LABEL_HYSTERESIS, self._min_confidence - CERTAINTY_HYSTERESIS)
            if float(mean[self._decided]) >= needed:
                top, certain = self._decided, True
        self._decided = top if certain else None
        self.emotion = _emotion(mean, self._labels, top, certain=certain)


def _emotion(probabilities: Probabilities, labels: Sequence[str], top: int, *, certain: bool) -> Emotion:
    scores = {label: float(p) for label, p in zip(labels, probabilities, strict=True)}
    confidence = float(probabilities[top])
    return Emotion("decided" if certain else "uncertain", labels[top] if certain else None, confidence, scores)
