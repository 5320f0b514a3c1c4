"""Which faces are worth reading again in this frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgefer.messages import Face, Frame

EAGER_READINGS = 5
"""A new face is read in every frame until there are so many readings: the first decision should come soon."""
BETTER = 1.3
"""A face whose quality is better than ever before by this factor is worth another look at once."""


@dataclass(slots=True)
class _History:
    readings: int
    last_s: float
    best: float


class Schedule:
    """Reads a face when it is new, when it is seen better than before, and every `every_s` seconds.

    At most `budget` faces a frame, the longest waiting first: a crowd makes readings rarer, not frames late.
    """

    def __init__(self, every_s: float, budget: int) -> None:
        self._every_s = every_s
        self._budget = budget
        self._histories: dict[str, _History] = {}

    def due(self, frame: Frame, faces: Sequence[Face]) -> list[Face]:
        """The faces to read now; they count as read."""
        known = self._histories
        self._histories = {
            face.track.track_id: known.get(face.track.track_id) or _History(0, float("-inf"), 0.0) for face in faces
        }
        seen = [face for face in faces if face.track.last_seen_s == frame.stream_s]
        due = sorted((face for face in seen if self._is_due(frame, face)), key=lambda face: self._of(face).last_s)
        for face in due[: self._budget]:
            history = self._of(face)
            history.readings += 1
            history.last_s = frame.stream_s
            history.best = max(history.best, face.quality.weight)
        return due[: self._budget]

    def look_again(self, face: Face) -> None:
        """Read a face in the next frame as well."""
        self._of(face).last_s = float("-inf")

    def _is_due(self, frame: Frame, face: Face) -> bool:
        history = self._of(face)
        return (
            history.readings < EAGER_READINGS
            or frame.stream_s - history.last_s >= self._every_s
            or face.quality.weight > BETTER * history.best
        )

    def _of(self, face: Face) -> _History:
        return self._histories[face.track.track_id]
