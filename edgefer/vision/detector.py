"""Faces in a frame: letterbox, invoke, decode, suppress, average, map back."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.messages import Box, Detection, Image, Landmarks
from edgefer.vision.decoders import decoder_of, padding_of
from edgefer.vision.model import Model
from edgefer.vision.preprocess import letterbox

MAX_IOU = 0.45
"""Two boxes that share more are one face; chosen on the even half of faceboxes_dev."""

LEAST_SHARE = 0.6
"""What overlaps a face at least so much, with at least this share of its score, is another answer for the same face."""

MOST_FACES = 256
"""In one picture: a spoilt model may see thousands, and each is compared with all."""

FAR_OUT = 16
"""How many of the input's longer side a corner or landmark may lie off, before it is no place at all."""


class Detector:
    """Finds faces in frames of any size."""

    def __init__(self, model: Model, min_score: float | None = None, min_face_px: float = 0.0) -> None:
        self.model = model
        self.min_score = model.card.thresholds.get("min_score", 0.5) if min_score is None else min_score
        self._min_face_px = min_face_px
        self._decode = decoder_of(model)
        self._padding = padding_of(model.card.decoder)

    def __call__(self, image: Image) -> list[Detection]:
        """The faces of a picture (BGR), best first, in pixels of the picture and inside it."""
        card = self.model.card
        picture, scale = letterbox(image, card.input.width, card.input.height, self._padding)
        with np.errstate(over="ignore", invalid="ignore"):
            # What is averaged with a face may score less than a face has to.
            scores, boxes, landmarks = self._decode(self.model(picture), LEAST_SHARE * self.min_score)
        # A model in float may say anything: one box without an end, or without a place, would take the others along.
        placed = np.concatenate([boxes, landmarks.reshape(-1, 10)], 1)
        sound = (np.abs(placed) < FAR_OUT * max(picture.shape)).all(1)
        scores, boxes = scores[sound], boxes[sound]
        kept = suppress(scores, boxes, MAX_IOU)[:MOST_FACES]
        placed = averaged(kept, scores, boxes, placed[sound]) / scale
        height, width = image.shape[:2]
        sides = placed[:, :4].clip(0, (width, height, width, height)).tolist()
        points = placed[:, 4:].reshape(-1, 5, 2).tolist()
        found = []
        for score, (left, top, right, bottom), five in zip(scores[kept].tolist(), sides, points, strict=True):
            box = Box(left, top, right - left, bottom - top)
            if score >= self.min_score and box.width >= 1 and box.height >= 1 and box.side >= self._min_face_px:
                found.append(Detection(box, score, cast("Landmarks", tuple((x, y) for x, y in five))))
        return found


def suppress(scores: NDArray[np.float32], boxes: NDArray[np.float32], max_iou: float) -> list[int]:
    """The indices of the boxes that stay, best first, where of any two that overlap more the better one stays."""
    # A model can give sides that cross; as an empty box it overlaps nothing.
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    rectangles = np.concatenate([boxes[:, :2], sizes], 1)
    return [int(i) for i in cv2.dnn.NMSBoxes(rectangles.tolist(), scores.tolist(), 0.0, max_iou)]


def averaged(
    kept: list[int], scores: NDArray[np.float32], boxes: NDArray[np.float32], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values (n x any) of the candidates that stay, each the mean of its own and what others say of the same face.

    Cells beside each other answer for one face; weighted by their scores, their mean lies nearer and trembles less.
    """
    shares = ious(boxes[kept], boxes)
    nearest = shares == shares.max(0, initial=0)  # what lies between two faces is the nearer's
    alike = nearest & (shares >= LEAST_SHARE)
    weights = scores * (alike & (scores >= LEAST_SHARE * scores[kept, None]))
    weights[:, kept] = np.diag(scores[kept])  # a box without an area doesn't overlap itself
    return np.asarray(weights / weights.sum(1, keepdims=True) @ values, np.float32)


def ious(these: NDArray[np.float32], those: NDArray[np.float32]) -> NDArray[np.float32]:
    """The IoU of each of these boxes (rows) with each of those (columns); left, top, right, bottom."""
    rows = these[:, None]
    shared = np.minimum(rows[..., 2:], those[:, 2:]) - np.maximum(rows[..., :2], those[:, :2])
    both = np.maximum(shared, 0).prod(-1)
    areas = np.maximum(rows[..., 2:] - rows[..., :2], 0).prod(-1) + np.maximum(those[:, 2:] - those[:, :2], 0).prod(-1)
    return np.asarray(both / np.maximum(areas - both, 1e-9), np.float32)
