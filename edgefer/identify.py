"""Who the tracked faces are: decided over several frames, never from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgefer.gallery import Gallery, Match
from edgefer.messages import Detection, Face, Frame, Identity, Image
from edgefer.schedule import Schedule
from edgefer.settings import Settings
from edgefer.vision.card import ModelCard
from edgefer.vision.embedder import Embedding

EVERY_S = 2.0
"""A person doesn't change; a look now and then notices when two tracks were swapped."""
BUDGET = 2
"""Embeddings a frame: the dearest reading."""
REFRESH_S = 1.0
"""Somebody who is enrolled or removed while the daemon runs is known or forgotten after so long."""
MIN_READINGS = 3
"""Readings before the first decision: one blurred or half-turned face must not name anybody."""
MEMORY = 0.8
"""What a reading still counts when the next one comes: the last five make two thirds of a decision."""
HYSTERESIS = 0.05
"""A name, once given, stays until the cosine is this far under the threshold, so that it doesn't flicker."""


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """From which cosine, and by which margin over the second person, somebody is known."""

    threshold: float
    margin: float

    def decide(self, match: Match | None) -> Identity:
        """The identity that a match gives by itself; None is the match in an empty gallery."""
        if match is None:
            return Identity("unknown")
        clear = match.margin is None or match.margin >= self.margin
        if match.similarity >= self.threshold and clear:
            return Identity("known", match.name, match.similarity, match.margin)
        # A stranger is never given the nearest name.
        return Identity("unknown", None, match.similarity, match.margin)

    def relaxed(self) -> IdentityRule:
        """The rule for a name that was given already."""
        return IdentityRule(self.threshold - HYSTERESIS, self.margin - HYSTERESIS)


def identity_rule(settings: Settings, card: ModelCard) -> IdentityRule:
    """The rule of the model's card, with the setting's threshold where one is set."""
    chosen = settings.identity.threshold
    threshold = card.thresholds.get("match", 0.5) if chosen is None else chosen
    return IdentityRule(threshold, card.thresholds.get("margin", 0.05))


class Identifier:
    """Gives each face its identity, from the gallery."""

    def __init__(
        self,
        embed: Callable[[Image, Detection], Embedding],
        gallery: Gallery,
        rule: IdentityRule,
        every_s: float = EVERY_S,
    ) -> None:
        self._embed = embed
        self._gallery = gallery
        self._rule = rule
        self._schedule = Schedule(every_s, BUDGET)
        self._decisions: dict[str, _Decision] = {}
        self._refreshed_s = float("-inf")

    def __call__(self, frame: Frame, faces: Sequence[Face]) -> list[Face]:
        """The same faces, with their identity as far as it is decided."""
        if frame.captured_at - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = frame.captured_at
            self._gallery.refresh()
        if self._gallery.is_empty:
            return [replace(face, identity=self._rule.decide(None)) for face in faces]
        self._decisions = {
            face.track.track_id: self._decisions.get(face.track.track_id) or _Decision(self._rule) for face in faces
        }
        for face in self._schedule.due(frame, faces):
            decision = self._decisions[face.track.track_id]
            decision.add(self._embed(frame.image, face.track.detection), face.quality.weight)
            decision.decide(self._gallery.match(decision.mean))
        return [replace(face, identity=self._decisions[face.track.track_id].identity) for face in faces]


class _Decision:
    """One track's identity, from the mean of its embeddings, weighted by quality."""

    def __init__(self, rule: IdentityRule) -> None:
        self.identity = Identity("undecided")
        self._rule = rule
        self._readings = 0
        self._sum: Embedding = np.zeros(1, np.float32)

    def add(self, embedding: Embedding, weight: float) -> None:
        """Take one reading in; the floor keeps the sum from vanishing when every reading is poor."""
        self._readings += 1
        self._sum = self._sum * np.float32(MEMORY) + embedding * np.float32(max(weight, 1e-3))

    @property
    def mean(self) -> Embedding:
        """The direction of all readings together."""
        mean: Embedding = self._sum / max(float(np.linalg.norm(self._sum)), 1e-9)
        return mean

    def decide(self, match: Match | None) -> None:
        """Take in what the gallery says of the mean."""
        if self._readings < MIN_READINGS:
            return
        named = self.identity.status == "known" and match is not None and match.name == self.identity.name
        self.identity = (self._rule.relaxed() if named else self._rule).decide(match)
