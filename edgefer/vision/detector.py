"""Faces in a frame: letterbox, invoke, decode, suppress, map back."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.messages import Box, Detection, Image, Landmarks
from edgefer.vision.decoders import decoder_of
from edgefer.vision.model import Model
from edgefer.vision.preprocess import letterbox

MAX_IOU = 0.45
"""Two boxes that share more are one face; chosen on the even half of faceboxes_dev."""

FAR_OUT = 16
"""How many of the input's longer side a corner or landmark may lie off, before it is no place at all."""


class Detector:
    """Finds faces in frames of any size."""

    def __init__(self, model: Model, min_score: float | None = None, min_face_px: float = 0.0) -> None:
        self.model = model
        self.min_score = model.card.thresholds.get("min_score", 0.5) if min_score is None else min_score
        self._min_face_px = min_face_px
        self._decode = decoder_of(model)

    def __call__(self, image: Image) -> list[Detection]:
        """The faces of a picture (BGR), best first, in pixels of the picture and inside it."""
        card = self.model.card
        picture, scale = letterbox(image, card.input.width, card.input.height)
        with np.errstate(over="ignore", invalid="ignore"):
            scores, boxes, landmarks = self._decode(self.model(picture), self.min_score)
        # A model in float may say anything: one box without an end, or without a place, would take the others along.
        placed = np.concatenate([boxes, landmarks.reshape(-1, 10)], 1)
        sound = (np.abs(placed) < FAR_OUT * max(picture.shape)).all(1)
        scores, boxes, landmarks = scores[sound], boxes[sound], landmarks[sound]
        kept = suppress(scores, boxes, MAX_IOU)
        height, width = image.shape[:2]
        sides = (boxes[kept] / scale).clip(0, (width, height, width, height)).tolist()
        points = (landmarks[kept] / scale).tolist()
        found = []
        for score, (left, top, right, bottom), five in zip(scores[kept].tolist(), sides, points, strict=True):
            box = Box(left, top, right - left, bottom - top)
            if box.width >= 1 and box.height >= 1 and box.side >= self._min_face_px:
                found.append(Detection(box, score, cast("Landmarks", tuple((x, y) for x, y in five))))
        return found


def suppress(scores: NDArray[np.float32], boxes: NDArray[np.float32], max_iou: float) -> list[int]:
    """The indices of the boxes that stay, best first, where of any two that overlap more the better one stays."""
    # A model can give sides that cross; as an empty box it overlaps nothing.
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    rectangles = np.concatenate([boxes[:, :2], sizes], 1)
    return [int(i) for i in cv2.dnn.NMSBoxes(rectangles.tolist(), scores.tolist(), 0.0, max_iou)]
