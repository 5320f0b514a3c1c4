"""From a picture to what a model takes: letterbox, align, crop, normalise.

The only place where this is done: the daemon, the trainers, the quantiser and the evaluators all call it, so that a
model meets in use what it met in training.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.messages import Detection, Image, Landmarks
from edgefer.vision.card import Colour, Crop, ModelInput

TEMPLATE_SIZE = 112
TEMPLATE: NDArray[np.float64] = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where the five landmarks stand in an aligned 112x112 face, in pixels: the positions in common use since ArcFace."""
_TARGET_MIDDLE = complex(*TEMPLATE.mean(0))
_TARGETS = [complex(x, y) - _TARGET_MIDDLE for x, y in TEMPLATE.tolist()]

PADDING = 114
"""The gray around a letterboxed picture, near the mean of photographs."""

MIDWAY = 1e-3
"""Of a level: what float32 may be off by, ten times over."""

Matrix = NDArray[np.float64]
"""2x3 affine, from pixels of the frame to pixels of the crop."""


def letterbox(image: Image, width: int, height: int, padding: int = PADDING) -> tuple[Image, float]:
    """The picture scaled to fit into width x height, at the top left, the rest a gray; and its scale.

    A point of the result, divided by the scale, is the point of the picture.
    """
    scale = min(width / image.shape[1], height / image.shape[0])
    size = min(width, max(1, round(image.shape[1] * scale))), min(height, max(1, round(image.shape[0] * scale)))
    resized = image
    # Bilinear sampling skips pixels under half size. Halving by averages first keeps small faces, and takes a fifth of
    # the time of averaging over the odd areas of one large step.
    while resized.shape[1] > 2 * size[0] and resized.shape[0] > 2 * size[1]:
        half = (resized.shape[1] + 1) // 2, (resized.shape[0] + 1) // 2
        resized = cv2.resize(resized, half, interpolation=cv2.INTER_AREA)
    if resized.shape[1::-1] != size:
        resized = cv2.resize(resized, size, interpolation=cv2.INTER_LINEAR)
    # OpenCV drops the axis of a gray picture's one channel.
    resized = resized.reshape(size[1], size[0], *image.shape[2:])
    if size == (width, height):
        return resized, scale
    canvas = np.full((height, width, *image.shape[2:]), padding, np.uint8)
    canvas[: size[1], : size[0]] = resized
    return canvas, scale


def crop_face(image: Image, face: Detection, crop: Crop, width: int, height: int) -> Image:
    """The face as its model wants it: width x height pixels; outside the picture its edge goes on, as in training."""
    return warp(image, crop_matrix(face, crop, width, height), width, height)


def crop_matrix(face: Detection, crop: Crop, width: int, height: int) -> Matrix:
    """The affine that takes the frame to the crop; ValueError where it needs landmarks and the face has none."""
    if crop.source == "points":
        if face.landmarks is None:
            raise ValueError("the model's crop is made from landmarks, which this detector doesn't give")
        matrix = align(face.landmarks) / TEMPLATE_SIZE
    else:
        side = max(face.box.width, face.box.height, 1.0)
        (x, y) = face.box.centre
        matrix = np.array([[1 / side, 0, 0.5 - x / side], [0, 1 / side, 0.5 - y / side]])
    # In units of the crop's side: enlarged and moved about its middle, then to pixels.
    matrix[:, 2] += [crop.scale * (0.5 - shift) - 0.5 for shift in crop.shift]
    matrix *= [[width / crop.scale], [height / crop.scale]]
    return matrix


def align(landmarks: Landmarks) -> Matrix:
    """The similarity (turn, scale, move) that brings five landmarks closest to the 112x112 template, least squares."""
    # As complex numbers, a turn and scale is one factor; and five points are too few for numpy to be quick.
    points = [complex(x, y) for x, y in landmarks]
    middle = sum(points) / len(points)
    points = [point - middle for point in points]
    norm = max(sum(abs(point) ** 2 for point in points), 1e-9)
    turn = sum(point.conjugate() * target for point, target in zip(points, _TARGETS, strict=True)) / norm
    move = _TARGET_MIDDLE - turn * middle
    return np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])


def warp(image: Image, matrix: Matrix, width: int, height: int) -> Image:
    """The picture seen through an affine, width x height pixels, without aliasing where it shrinks."""
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    # Bilinear sampling skips pixels under half size: sample a larger picture there, then average it down.
    factor = min(8, 2 ** max(0, math.floor(-math.log2(max(scale, 1e-9)))))
    # Pixel centres lie at .5: shift to corners, scale, shift back, or the crop moves by half a pixel a factor.
    centred = matrix * factor
    centred[:, 2] += centred[:, :2].sum(1) * 0.5 - 0.5
    size, bilinear = (width * factor, height * factor), cv2.INTER_LINEAR
    large = cv2.warpAffine(image, centred, size, flags=bilinear, borderMode=cv2.BORDER_REPLICATE)
    return large if factor == 1 else cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def to_colour(image: Image, colour: Colour) -> Image:
    """The picture (BGR or gray) in a model's colour, height x width x channels."""
    if colour == "gray":
        gray = image if image.ndim == 2 or image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return gray.reshape(*gray.shape[:2], 1)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if colour == "rgb" else image


def to_floats(image: Image, model_input: ModelInput) -> NDArray[np.float32]:
    """A picture (BGR or gray) as a float model takes it, height x width x channels."""
    return normalise(to_colour(image, model_input.colour), model_input)


def normalise(image: Image, model_input: ModelInput) -> NDArray[np.float32]:
    """Pixels 0..255 as the model's range of floats, in the colour that they have."""
    low, high = model_input.range
    return image.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)


def quantised_values(model_input: ModelInput, dtype: np.dtype[Any], scale: float, zero: int) -> NDArray[Any]:
    """What each of the 256 pixel values becomes at a quantised input: normalised, then by the file's scale and zero."""
    floats = normalise(np.arange(256, dtype=np.uint8), model_input)
    return as_levels(floats, dtype, scale, zero, highest=max(model_input.range))


def as_levels(
    floats: NDArray[np.float32], dtype: np.dtype[Any], scale: float, zero: int, highest: float
) -> NDArray[Any]:
    """Floats at a quantised input.

    Pixels in a range of -1..1 each lie midway between two levels: all go up, or all down where the `highest` has no
    room; by chance two would share one.
    """
    limits = np.iinfo(dtype)
    if np.floor(highest / scale + (0.5 + MIDWAY)) + zero <= limits.max:
        levels = np.floor(floats / scale + (0.5 + MIDWAY)) + zero
    else:
        levels = np.ceil(floats / scale - (0.5 + MIDWAY)) + zero
    values: NDArray[Any] = np.clip(levels, limits.min, limits.max).astype(dtype)
    return values
