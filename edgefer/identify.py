"""Who the tracked faces are: decided over several frames, never from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgefer.errors import InputError
from edgefer.gallery import Gallery, Match
from edgefer.messages import Detection, Face, Frame, Identity, Image
from edgefer.schedule import Schedule
from edgefer.settings import Settings
from edgefer.vision.card import ModelCard
from edgefer.vision.embedder import Embedding, units

log = logging.getLogger(__name__)

EVERY_S = 2.0
"""A person doesn't change; a look now and then notices when two tracks were swapped."""
BUDGET = 2
"""Embeddings a frame: the dearest reading."""
REFRESH_S = 1.0
"""Somebody who is enrolled or removed while the daemon runs is known or forgotten after so long."""
NOTE_STRANGERS_S = 600.0
"""How near strangers came is written so seldom: an SD card wears out."""
MIN_READINGS = 3
"""Readings before the first decision: one blurred or half-turned face must not name anybody."""
MEMORY = 0.8
"""What a reading still counts when the next one comes: the last five make two thirds of a decision."""
UNLIKE, WELL_SEEN = 0.35, 0.25
"""A well seen face (by its weight) whose cosine to its track so far is under this is somebody else's: by the shipped
model 99.8 % of others are, while in a clip a face stays over 0.75. Seen badly, it may be anybody's."""
UNTOLD = 0.5
"""The threshold of a model whose card has none."""
HYSTERESIS = 0.05
"""A name, once given, stays until the similarity is this far under the threshold, so that it doesn't flicker."""


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """From which similarity, and by which margin over the second person, somebody is known."""

    threshold: float
    margin: float

    def decide(self, match: Match | None) -> Identity:
        """The identity that a match gives by itself; None is the match in an empty gallery."""
        if match is None:
            return Identity("unknown")
        clear = match.margin is None or match.margin >= self.margin
        if match.similarity >= self.threshold and clear and not match.ignored:
            return Identity("known", match.name, match.similarity, match.margin)
        # A stranger is never given the nearest name.
        return Identity("unknown", None, match.similarity, match.margin)

    def relaxed(self) -> IdentityRule:
        """The rule for a name that was given already."""
        return IdentityRule(self.threshold - HYSTERESIS, self.margin - HYSTERESIS)


def identity_rule(settings: Settings, card: ModelCard, *, tracked: bool) -> IdentityRule:
    """The rule of the model's card, for a track or for one picture; with the setting's threshold where one is set."""
    told = card.thresholds.get("match")
    told = card.thresholds.get("track", told) if tracked else told
    threshold = settings.identity.threshold or told
    if threshold is None:
        log.warning(
            "the card of %s has no threshold: %s is taken, which may give strangers a name; "
            "`edgefer people check` helps to choose EDGEFER_IDENTITY__THRESHOLD",
            card.name,
            UNTOLD,
        )
    return IdentityRule(UNTOLD if threshold is None else threshold, card.thresholds.get("margin", 0.05))


class Identifier:
    """Gives each face its identity, from the gallery.

    `forget` is told the names of people who were removed from it while this goes on, before a frame is looked at.
    """

    def __init__(
        self,
        embed: Callable[[Image, Detection], Embedding],
        gallery: Gallery,
        rule: IdentityRule,
        every_s: float = EVERY_S,
        forget: Callable[[frozenset[str]], None] = lambda _: None,
    ) -> None:
        self._embed = embed
        self._gallery = gallery
        self._rule = rule
        self._schedule = Schedule(every_s, BUDGET)
        self._forget = forget
        self._decisions: dict[str, _Decision] = {}
        self._strangers: list[float] = []
        self._refreshed_s = float("-inf")
        self._noted_s = time.monotonic()

    def __call__(self, frame: Frame, faces: Sequence[Face]) -> list[Face]:
        """The same faces, with their identity as far as it is decided."""
        self.refresh(frame.captured_at)
        if self._gallery.is_empty:
            self._decisions = {}
            self._schedule.due(frame, [])  # once somebody is enrolled, every face is new
            return [replace(face, identity=self._rule.decide(None)) for face in faces]
        before = self._decisions
        self._decisions = {
            face.track.track_id: before.get(face.track.track_id) or _Decision(self._rule) for face in faces
        }
        self._see_off(decision for track_id, decision in before.items() if track_id not in self._decisions)
        for face in self._schedule.due(frame, faces):
            decision = self._decisions[face.track.track_id]
            decision.add(self._embed(frame.image, face.track.detection), face.quality.weight)
            if decision.others:
                self._schedule.look_again(face)
            if len(decision.others) == MIN_READINGS:
                self._see_off([decision])
                decision = self._decisions[face.track.track_id] = _Decision(self._rule, decision.others)
            decision.decide(self._gallery)
        return [replace(face, identity=self._decisions[face.track.track_id].identity) for face in faces]

    def refresh(self, now_s: float) -> None:
        """Take up what has changed in the gallery, once a second: a name that was removed is not given any more.

        Each frame does it; where none comes it is to be called. `now_s` is on the frames' clock.
        """
        if now_s - self._refreshed_s < REFRESH_S:
            return
        self._refreshed_s = now_s
        if self._gallery.refresh():
            self._strangers = []  # to other people
            for decision in self._decisions.values():
                decision.nearest = None
                decision.decide(self._gallery)
        if self._gallery.removed:
            self._forget(self._gallery.removed)
        if time.monotonic() - self._noted_s >= NOTE_STRANGERS_S:
            self._note_strangers()

    @property
    def problem(self) -> str | None:
        """Why the gallery can't be read, None when it can."""
        return self._gallery.problem

    def close(self) -> None:
        """Note what is still to be noted; the gallery stays open."""
        self._see_off(self._decisions.values())
        self._note_strangers()

    def _see_off(self, decisions: Iterable[_Decision]) -> None:
        self._strangers += [decision.nearest for decision in decisions if decision.nearest is not None]

    def _note_strangers(self) -> None:
        self._noted_s = time.monotonic()
        noted, self._strangers = self._strangers, []
        try:
            if noted:
                self._gallery.note_strangers(noted)
        except InputError as error:  # a figure for `people check`: no reason to trouble anybody
            log.debug("the strangers' similarities couldn't be kept: %s", error)


class _Decision:
    """One track's identity, from the mean of its embeddings, weighted by quality."""

    def __init__(self, rule: IdentityRule, readings: Iterable[tuple[Embedding, float]] = ()) -> None:
        self.identity = Identity("undecided")
        self.nearest: float | None = None
        """How near it came to somebody, as long as it is a stranger's."""
        self.others: list[tuple[Embedding, float]] = []
        """The last readings and their weights, if they are of another face: two people may have swapped tracks."""
        self._rule = rule
        self._is_stranger = True
        self._readings = 0
        self._sum: Embedding = np.zeros(1, np.float32)
        for embedding, weight in readings:
            self.add(embedding, weight)

    def add(self, embedding: Embedding, weight: float) -> None:
        """Take one reading in; the floor keeps the sum from vanishing when every reading is poor."""
        well_seen = min(weight, float(np.linalg.norm(self._sum))) >= WELL_SEEN
        if well_seen and self._readings >= MIN_READINGS and embedding @ units(self._sum) < UNLIKE:
            self.others.append((embedding, weight))
            return
        self.others = []
        self._readings += 1
        self._sum = self._sum * np.float32(MEMORY) + embedding * np.float32(max(weight, 1e-3))

    def decide(self, gallery: Gallery) -> None:
        """Take in what the gallery says of the mean of all readings."""
        if self._readings < MIN_READINGS:
            return
        match = gallery.match(units(self._sum))
        named = self.identity.status == "known" and match is not None and match.name == self.identity.name
        self.identity = (self._rule.relaxed() if named else self._rule).decide(match)
        # Whoever is over the threshold, and unknown for want of a margin, is one of two who look alike.
        is_far = match is not None and match.similarity < self._rule.threshold and not match.ignored
        self._is_stranger &= is_far and self.identity.status == "unknown"
        self.nearest = max(self.nearest or -1.0, match.similarity) if match and self._is_stranger else None
