"""From detections to stable tracks: one id for one face, through short misses and crossings."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from edgefer.messages import Box, Detection, Frame, Track

CONFIRM_HITS = 3
"""A face is one when it was found in so many frames: a false detection seldom comes back."""
FORGIVEN_MISSES = 1
"""A face that isn't confirmed yet may be missed so often in a row; then it was none."""
LOST_AFTER_S = 1.0
"""A face that isn't found for so long has left; a hand, a nod or a blink of the detector is shorter."""
LOST_MISSES = 3
"""... and is missed at least so often in a row, for cameras that give a frame a second."""
MIN_IOU = 0.2
"""Two boxes that overlap less, with the motion foreseen, aren't one face by overlap."""
MAX_STEP, MAX_STEP_PER_S = 0.7, 0.7
"""A fast face may jump by this share of its size, and as much more for each second that it wasn't seen, where nothing
else claims it. A person who walks by makes six times the size of her face a second."""
MAX_GROWTH = 1.6
"""Two boxes whose sides differ by a larger factor aren't one face."""
SMOOTHING_S = 0.2
"""A velocity is averaged over so long: boxes tremble."""
HIDDEN, SIZE_S = 0.85, 2.0
"""A face whose box is smaller than this share of its size over so many seconds is partly hidden: the middle of what is
left of it says nothing of where it is going."""
MAX_SMOOTHING = 0.5
"""... and a new measurement counts this much at most, where frames are far apart."""


class Expected(NamedTuple):
    """Where a face should be now, how far from there it may be (in sizes of it), and how long it wasn't seen."""

    box: Box
    reach: float
    unseen_s: float


@dataclass(slots=True)
class _Candidate:
    """A face that is followed, confirmed or not yet."""

    track: Track
    side: float  # of the whole face, pixels
    velocity: tuple[float, float] = (0.0, 0.0)  # pixels a second
    hits: int = 1
    misses: int = 0  # in a row

    @property
    def confirmed(self) -> bool:
        """Whether it is a face, and not a slip of the detector."""
        return self.hits >= CONFIRM_HITS

    def is_alive(self, now_s: float) -> bool:
        """Whether it may still come back."""
        if not self.confirmed:
            return self.misses <= FORGIVEN_MISSES
        return self.misses < LOST_MISSES or now_s - self.track.last_seen_s <= LOST_AFTER_S

    def expected(self, now_s: float) -> Expected:
        """Where the box should be now, had it moved on as before; the reach is in sizes of what was last seen of it."""
        box, unseen_s = self.track.detection.box, now_s - self.track.last_seen_s
        moved = replace(box, x=box.x + self.velocity[0] * unseen_s, y=box.y + self.velocity[1] * unseen_s)
        whole = max(1.0, self.side / max(box.side, 1.0))
        return Expected(moved, whole * (MAX_STEP + MAX_STEP_PER_S * unseen_s), unseen_s)

    def found(self, detection: Detection, frame: Frame) -> None:
        """Move on to where the face is now."""
        elapsed_s = max(frame.stream_s - self.track.last_seen_s, 1e-3)
        (x, y), (old_x, old_y) = detection.box.centre, self.track.detection.box.centre
        measured = (x - old_x) / elapsed_s, (y - old_y) / elapsed_s
        side = detection.box.side
        if side >= HIDDEN * self.side:
            share = min(MAX_SMOOTHING, elapsed_s / SMOOTHING_S)
            vx, vy = (share * new + (1 - share) * old for new, old in zip(measured, self.velocity, strict=True))
            self.velocity = vx, vy
        self.side = max(side, self.side + min(MAX_SMOOTHING, elapsed_s / SIZE_S) * (side - self.side))
        self.hits += 1
        self.misses = 0
        self.track = replace(self.track, detection=detection, last_seen_s=frame.stream_s, last_seen=frame.time)


class Tracker:
    """Gives the faces of one camera ids that last while they are in view.

    `boot_id` makes an id unique across boots and devices.
    """

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._next = 1
        self._candidates: list[_Candidate] = []

    def __call__(self, frame: Frame, detections: Sequence[Detection]) -> list[Track]:
        """The confirmed tracks in view, oldest first; one that wasn't found just now keeps its last detection."""
        now_s = frame.stream_s
        expected = [candidate.expected(now_s) for candidate in self._candidates]
        doubtful = {i for i, candidate in enumerate(self._candidates) if not candidate.confirmed}
        pairs = match(expected, [d.box for d in detections], doubtful)
        for i, candidate in enumerate(self._candidates):
            if i in pairs:
                candidate.found(detections[pairs[i]], frame)
            else:
                candidate.misses += 1
        self._candidates = [c for c in self._candidates if c.is_alive(now_s)]
        new = [detections[j] for j in range(len(detections)) if j not in pairs.values()]
        self._candidates += [self._start(detection, frame) for detection in new]
        return [c.track for c in self._candidates if c.confirmed]

    def reset(self) -> None:
        """Forget every face; ids go on."""
        self._candidates = []

    def _start(self, detection: Detection, frame: Frame) -> _Candidate:
        track_id = f"{self._boot_id}-{self._next}"
        self._next += 1
        track = Track(track_id, detection, frame.stream_s, frame.time, frame.stream_s, frame.time)
        return _Candidate(track, detection.box.side)


def match(expected: Sequence[Expected], found: Sequence[Box], doubtful: Collection[int] = ()) -> dict[int, int]:
    """Which expected box (index) is which found one (index), each box in one pair at most.

    First by overlap; then what is left, by the distance of the middles, within the reach. The best pairs come first,
    but before all those of faces that were seen later: whoever was seen just now isn't mistaken for somebody who has
    been hidden behind her for a while. The `doubtful` (indices) take what is left: part of a face, as it comes out from
    behind another, may have begun one that isn't confirmed yet.
    """
    pairs: dict[int, int] = {}
    both = [*product(range(len(expected)), range(len(found)))]
    for last, similarity in product((False, True), (_overlap, _nearness)):
        rated = [
            (-expected[i].unseen_s, similarity(expected[i], found[j]), i, j) for i, j in both if (i in doubtful) is last
        ]
        for _, likeness, i, j in sorted(rated, reverse=True):
            if likeness > 0 and i not in pairs and j not in pairs.values():
                pairs[i] = j
    return pairs


def _overlap(expected: Expected, found: Box) -> float:
    iou = expected.box.iou(found)
    return iou if iou >= MIN_IOU else 0.0


def _nearness(expected: Expected, found: Box) -> float:
    smaller, larger = sorted((expected.box.side, found.side))
    if larger > MAX_GROWTH * smaller:
        return 0.0
    return max(0.0, 1 - math.dist(expected.box.centre, found.centre) / (expected.reach * larger))
