"""How well a face can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from edgefer.messages import Detection, Face, Frame, Image, Landmarks, Quality, Track
from edgefer.vision.card import Crop
from edgefer.vision.preprocess import TEMPLATE_SIZE, align, crop_face, to_colour

_SIZE = 80
_CROP = Crop("box", 0.8)
"""The face without the edge of hair and background, which is sharp by itself, about as large as in its embedding's
112 px: blur that is finer than that costs nothing."""
_NOISE = 1.0
"""The smoothing, in pixels of the crop, that takes a sensor's noise away, which would pass for detail."""
_HALF_SHARP = 0.0096
"""Detail, in shares of contrast, at which sharpness is 0.5. A little more blur, and a face begins to lose who it is:
docs/identity.md has the figures."""
_LEFT, _RIGHT = TEMPLATE_SIZE // 4, TEMPLATE_SIZE * 3 // 4
_CORNERS = [complex(x, y) for x in (_LEFT, _RIGHT) for y in (0, TEMPLATE_SIZE)]
_MIDDLE = [complex(x, y) for x in range(_LEFT, _RIGHT + 1, 8) for y in range(0, TEMPLATE_SIZE + 1, 8)]
"""The middle half of an aligned face, from the forehead to the chin, as points 8 px apart."""


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
    """The quality of a face of a picture (BGR or gray): 0.2 ms."""
    crop = to_colour(crop_face(image, face, _CROP, _SIZE, _SIZE), "gray")[..., 0].astype(np.float32)
    smooth = cv2.GaussianBlur(crop, (0, 0), _NOISE)
    _, detail = cv2.meanStdDev(cv2.Laplacian(smooth, cv2.CV_32F))
    _, contrast = cv2.meanStdDev(smooth)
    share = float(detail[0, 0]) ** 2 / (float(contrast[0, 0]) ** 2 + 1.0)  # a gray level: no contrast, no face
    points = face.landmarks
    frontal = None if points is None else frontality(points) * inside(image, points)
    return Quality(round(face.box.side), share / (share + _HALF_SHARP), frontal)


def inside(image: Image, landmarks: Landmarks) -> float:
    """The share of a face's middle, from forehead to chin, that the picture's edges leave."""
    matrix = align(landmarks)
    similarity, move = complex(*matrix[:, 0]), complex(*matrix[:, 2])
    height, width = image.shape[:2]

    def is_inside(point: complex) -> bool:
        seen = (point - move) / similarity if similarity else complex(-1)
        return bool(0 <= seen.real < width and 0 <= seen.imag < height)

    if all(map(is_inside, _CORNERS)):
        return 1.0
    return sum(map(is_inside, _MIDDLE)) / len(_MIDDLE)


def tilt(landmarks: Landmarks) -> float:
    """How far the eyes are off the horizontal, in degrees, either way."""
    (left_x, left_y), (right_x, right_y) = landmarks[:2]
    return abs(math.degrees(math.atan2(right_y - left_y, right_x - left_x)))


def frontality(landmarks: Landmarks) -> float:
    """1 where the nose is midway between the eyes, 0 where it is over or beyond one of them (a profile)."""
    left, right, nose = (complex(x, y) for x, y in landmarks[:3])
    axis = right - left
    if abs(axis) < 1:  # eyes that fall together: seen from the side
        return 0.0
    along = ((nose - left) / axis).real
    return max(0.0, 1 - 2 * abs(along - 0.5))
