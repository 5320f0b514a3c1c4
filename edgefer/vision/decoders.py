"""From a detector's outputs to candidates: one function for each family of models that a card's `decoder` names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgefer.errors import ModelError
from edgefer.vision.card import Decoder
from edgefer.vision.model import Model, Outputs
from edgefer.vision.preprocess import PADDING, TEMPLATE

Floats = NDArray[np.float32]
Candidates = tuple[Floats, Floats, Floats]
"""Scores (n), boxes (n x 4: left, top, right, bottom) and landmarks (n x 5 x 2), in pixels of the model's input."""
Decode = Callable[[Outputs, float], Candidates]
"""Outputs and the lowest score that is wanted to candidates."""

STRIDES = (8, 16, 32)
BLAZEFACE_GRIDS = {
    "short range": ((8, 2), (16, 6)),
    "full range": ((4, 1),),
    "back camera": ((16, 2), (32, 6)),
}
"""Stride and anchors a cell of MediaPipe's models, from the strides and the aspect ratios in the graphs beside them
(mediapipe/modules/face_detection): two anchors a layer, one where there is no interpolated one; layers of one stride
share its grid. With `fixed_anchor_size` an anchor is no more than the middle of its cell."""
MOUTH_SHARE = float(np.linalg.norm(TEMPLATE[4] - TEMPLATE[3]) / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]))
"""How wide a mouth is, as a share of the distance of the eyes, in the template that faces are aligned to."""
LARGEST_LOG = 8.0
"""A face of e^8 strides is larger than any picture; a spoilt output mustn't overflow."""


def decoder_of(model: Model) -> Decode:
    """What decodes this model's outputs; ModelError where they don't fit its card's decoder."""
    return _families[model.card.decoder](model)


def padding_of(decoder: Decoder) -> int:
    """The gray that a family was taught to see around a picture of another shape.

    BlazeFace's is black, by the `border_mode` in the graphs beside the models.
    """
    return 0 if decoder == "blazeface" else PADDING


def decode_centre(outputs: Outputs, cells: Floats, min_score: float) -> Candidates:
    """The candidates of an edgefer-centre model with at least this score.

    Every cell of three grids (strides 8, 16 and 32 pixels, one after the other, row by row) says with a logit whether
    a face has its middle near, and, in strides from the cell's middle, how far its sides (left, top, right, bottom;
    outwards is positive) and its landmarks (x, y) are. `outputs` are n x 1, n x 4 and n x 10 in any order, `cells`
    n x 3 (x, y of the middle, stride).
    """
    logits, distances, offsets = sorted(outputs, key=lambda output: output.shape[-1])
    chosen, scores = _scored(logits, min_score)
    middles, strides = cells[chosen, :2], cells[chosen, 2:]
    reach = distances[chosen] * strides
    boxes = np.concatenate([middles - reach[:, :2], middles + reach[:, 2:]], 1)
    landmarks = middles[:, None] + offsets[chosen].reshape(-1, 5, 2) * strides[:, None]
    return scores, boxes, landmarks


def decode_blazeface(outputs: Outputs, middles: Floats, min_score: float) -> Candidates:
    """The candidates of one of MediaPipe's BlazeFace models with at least this score.

    Every anchor says with a logit whether it holds a face, and, in pixels of the input from the anchor's middle, where
    the box's middle, the eyes, the tip of the nose, the middle of the mouth and the ears are; between the first two,
    how large the box is. `outputs` are n x 1 and n x 16 in any order, `middles` n x 2 (x, y).

    The corners of the mouth lie `MOUTH_SHARE` of the eyes' distance apart, along the line of the eyes: their middle is
    all that the model tells.
    """
    logits, coordinates = sorted(outputs, key=lambda output: output.shape[-1])
    chosen, scores = _scored(logits, min_score)
    pairs = coordinates[chosen].reshape(-1, 8, 2)
    half, places = pairs[:, 1] / 2, pairs + middles[chosen, None]
    boxes = np.concatenate([places[:, 0] - half, places[:, 0] + half], 1)
    left_eye, right_eye, nose, mouth = (places[:, i] for i in range(2, 6))
    corner = (right_eye - left_eye) * np.float32(MOUTH_SHARE / 2)
    return scores, boxes, np.stack([left_eye, right_eye, nose, mouth - corner, mouth + corner], 1)


def decode_yunet(outputs: Outputs, cells: Floats, min_score: float) -> Candidates:
    """The candidates of a YuNet with at least this score.

    For each of three grids (strides 8, 16 and 32 pixels, row by row) there are four outputs: two shares between 0 and
    1, whose geometric mean is the score; box (x, y of its middle and the logarithms of its width and height) and
    landmarks (x, y), in strides from the cell's upper left corner. `outputs` are n x 1 (twice), n x 4 and n x 10, or
    height x width x the same, in any order; `cells` are all n x 3 (x, y of the middle, stride).
    """
    rows = sorted((output.reshape(-1, output.shape[-1]) for output in outputs), key=len, reverse=True)
    shares, places, offsets = ([row for row in rows if row.shape[1] == width] for width in (1, 4, 10))
    # Which of a grid's two shares is which doesn't matter: they are multiplied.
    first, second = (np.concatenate(shares[i::2])[:, 0].clip(0, 1) for i in (0, 1))
    scores = np.sqrt(first * second)
    chosen = np.flatnonzero(scores >= min_score)
    strides = cells[chosen, 2:]
    corners = cells[chosen, :2] - strides / 2
    place = np.concatenate(places)[chosen]
    middles, half = corners + place[:, :2] * strides, np.exp(np.minimum(place[:, 2:], LARGEST_LOG)) * strides / 2
    landmarks = corners[:, None] + np.concatenate(offsets)[chosen].reshape(-1, 5, 2) * strides[:, None]
    return scores[chosen], np.concatenate([middles - half, middles + half], 1), landmarks


def grid_cells(width: int, height: int, strides: Sequence[int] = STRIDES) -> Floats:
    """N x 3: the middle (x, y) and the stride of each cell of grids over an input, in its pixels, row by row."""
    grids = []
    for stride in strides:
        y, x = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)]
        grids.append(np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full(x.shape, stride)], -1).reshape(-1, 3))
    return np.concatenate(grids).astype(np.float32)


def _scored(logits: Floats, min_score: float) -> tuple[NDArray[np.intp], Floats]:
    """Which logits (n x 1) stand for at least this score, and their scores."""
    # Compare logits: the exponential is then needed for the few that stay only.
    lowest = min(max(min_score, 1e-6), 1 - 1e-6)
    chosen = np.flatnonzero(logits[:, 0] >= math.log(lowest / (1 - lowest)))
    return chosen, 1 / (1 + np.exp(-logits[chosen, 0]))


def _centre(model: Model) -> Decode:
    cells = grid_cells(model.card.input.width, model.card.input.height)
    wanted = sorted((len(cells), last) for last in (1, 4, 10))
    if sorted(model.output_shapes) != wanted:
        raise _refused(model, str(wanted))
    return lambda outputs, min_score: decode_centre(outputs, cells, min_score)


def _blazeface(model: Model) -> Decode:
    width, height = model.card.input.width, model.card.input.height
    known = {}
    for name, grids in BLAZEFACE_GRIDS.items():
        parts = [np.repeat(grid_cells(width, height, (stride,))[:, :2], count, 0) for stride, count in grids]
        known[name] = np.concatenate(parts)
    for middles in known.values():
        if sorted(model.output_shapes) == [(len(middles), 1), (len(middles), 16)]:
            return lambda outputs, min_score: decode_blazeface(outputs, middles, min_score)
    counts = ", ".join(f"{len(middles)} ({name})" for name, middles in known.items())
    raise _refused(model, f"[(n, 1), (n, 16)] with n one of {counts} at {width}x{height}")


def _yunet(model: Model) -> Decode:
    width, height = model.card.input.width, model.card.input.height
    cells = grid_cells(width, height)
    wanted = [(len(grid_cells(width, height, (stride,))), last) for stride in STRIDES for last in (1, 1, 4, 10)]
    if sorted((math.prod(shape[:-1]), *shape[-1:]) for shape in model.output_shapes) != sorted(wanted):
        raise _refused(model, str(wanted))
    return lambda outputs, min_score: decode_yunet(outputs, cells, min_score)


def _refused(model: Model, wanted: str) -> ModelError:
    return ModelError(
        f"{model.path}: decoder {model.card.decoder} needs outputs {wanted}, the model has {model.output_shapes}"
    )


_families: dict[str, Callable[[Model], Decode]] = {
    "edgefer-centre": _centre,
    "blazeface": _blazeface,
    "yunet": _yunet,
}
