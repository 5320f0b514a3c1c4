"""How well a face can be seen."""

from __future__ import annotations

from collections.abc import Sequence

import cv2

from edgefer.messages import Detection, Face, Frame, Image, Landmarks, Quality, Track
from edgefer.vision.card import Crop
from edgefer.vision.preprocess import crop_face

_SIZE = 64
_CROP = Crop("box", 0.8)  # the face without the edge of hair and background, which is sharp by itself
_HALF_SHARP = 100.0
"""The variance of the Laplacian on a 64-pixel face at which sharpness is 0.5: a face of 64 px in fair focus."""


class QualityRater:
    """Rates tracked faces; one that wasn't found in this frame keeps its last quality."""

    def __init__(self) -> None:
        self._last: dict[str, Quality] = {}

    def __call__(self, frame: Frame, tracks: Sequence[Track]) -> list[Face]:
        """The faces of the tracks, in their order."""
        seen = {t.track_id: rate(frame.image, t.detection) for t in tracks if t.last_seen_s == frame.stream_s}
        self._last = {track.track_id: seen.get(track.track_id) or self._last[track.track_id] for track in tracks}
        return [Face(track, self._last[track.track_id]) for track in tracks]


def rate(image: Image, face: Detection) -> Quality:
    """The quality of a face of a picture (BGR): 30 to 60 microseconds."""
    crop = cv2.cvtColor(crop_face(image, face, _CROP, _SIZE, _SIZE), cv2.COLOR_BGR2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(crop, cv2.CV_16S))
    variance = float(deviation[0, 0]) ** 2
    frontal = None if face.landmarks is None else frontality(face.landmarks)
    return Quality(round(face.box.side), variance / (variance + _HALF_SHARP), frontal)


def frontality(landmarks: Landmarks) -> float:
    """1 where the nose is midway between the eyes, 0 where it is over or beyond one of them (a profile)."""
    left, right, nose = (complex(x, y) for x, y in landmarks[:3])
    axis = right - left
    if abs(axis) < 1:  # eyes that fall together: seen from the side
        return 0.0
    along = ((nose - left) / axis).real
    return max(0.0, 1 - 2 * abs(along - 0.5))
