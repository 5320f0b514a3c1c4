"""Faces in a frame: letterbox, invoke, decode, suppress, map back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.errors import ModelError
from edgefer.messages import Box, Detection, Image, Landmarks
from edgefer.vision.model import Model, Outputs
from edgefer.vision.preprocess import letterbox

MAX_IOU = 0.45
"""Two boxes that share more are one face; chosen on the even half of faceboxes_dev."""

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""Scores (n), boxes (n x 4: left, top, right, bottom) and landmarks (n x 5 x 2), in pixels of the model's input."""


class Detector:
    """Finds faces in frames of any size."""

    def __init__(self, model: Model, min_score: float | None = None, min_face_px: float = 0.0) -> None:
        self.model = model
        self._min_score = model.card.thresholds.get("min_score", 0.5) if min_score is None else min_score
        self._min_face_px = min_face_px
        self._decode = _decoders[model.card.decoder](model)

    def __call__(self, image: Image) -> list[Detection]:
        """The faces of a picture (BGR), best first, in pixels of the picture and inside it."""
        card = self.model.card
        picture, scale = letterbox(image, card.input.width, card.input.height)
        scores, boxes, landmarks = self._decode(self.model(picture), self._min_score)
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


STRIDES = (8, 16, 32)


def decode_centre(outputs: Outputs, cells: NDArray[np.float32], min_score: float) -> Candidates:
    """The candidates of an edgefer-centre model with at least this score.

    Every cell of three grids (strides 8, 16 and 32 pixels, one after the other, row by row) says with a logit whether
    a face has its middle near, and, in strides from the cell's middle, how far its sides (left, top, right, bottom;
    outwards is positive) and its landmarks (x, y) are. `outputs` are n x 1, n x 4 and n x 10 in any order, `cells`
    n x 3 (x, y of the middle, stride).
    """
    logits, distances, offsets = sorted(outputs, key=lambda output: output.shape[-1])
    # Compare logits: the exponential is then needed for the few that stay only.
    lowest = min(max(min_score, 1e-6), 1 - 1e-6)
    chosen = np.flatnonzero(logits[:, 0] >= math.log(lowest / (1 - lowest)))
    middles, strides = cells[chosen, :2], cells[chosen, 2:]
    reach = distances[chosen] * strides
    boxes = np.concatenate([middles - reach[:, :2], middles + reach[:, 2:]], 1)
    landmarks = middles[:, None] + offsets[chosen].reshape(-1, 5, 2) * strides[:, None]
    return 1 / (1 + np.exp(-logits[chosen, 0])), boxes, landmarks


def grid_cells(width: int, height: int) -> NDArray[np.float32]:
    """N x 3: the middle (x, y) and the stride of each cell of an edgefer-centre model, in pixels of its input."""
    grids = []
    for stride in STRIDES:
        y, x = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)]
        grids.append(np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full(x.shape, stride)], -1).reshape(-1, 3))
    return np.concatenate(grids).astype(np.float32)


def _centre(model: Model) -> Callable[[Outputs, float], Candidates]:
    cells = grid_cells(model.card.input.width, model.card.input.height)
    wanted = sorted((len(cells), last) for last in (1, 4, 10))
    if sorted(model.output_shapes) != wanted:
        raise ModelError(
            f"{model.path}: decoder edgefer-centre needs outputs {wanted}, the model has {model.output_shapes}"
        )
    return lambda outputs, min_score: decode_centre(outputs, cells, min_score)


_decoders: dict[str, Callable[[Model], Callable[[Outputs, float], Candidates]]] = {"edgefer-centre": _centre}
