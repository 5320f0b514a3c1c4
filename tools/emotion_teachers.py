"""What tools/train_emotion.py learns from other models: their answers, for its images and for faces without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import backend  # noqa: F401  # before Keras
import cv2
import keras
import numpy as np
from data import Pack, open_pack
from emotion_faces import GRAY_48, at_size
from emotion_networks import SIZE
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Box, Detection, Image
from edgefer.vision.card import Crop
from edgefer.vision.emotion import EmotionReader
from edgefer.vision.model import Model
from edgefer.vision.preprocess import TEMPLATE, TEMPLATE_SIZE, Matrix, crop_matrix, normalise, to_colour, warp

FRAME = Crop("points", 0.92, (0.003, 0.084))
"""FER2013's frame around an aligned face: what brings the template to YuNet's landmarks on 1,086 of its images."""
BORDER = 8
"""Pixels around the aligned face, of 112, in which its edge is repeated."""
MOST = 2500
"""How many unlabelled faces are taken of those that the teachers take for one class: most that people photograph
smile, or do nothing."""

Floats = NDArray[np.float32]
Answer = Callable[[Image], Floats]
"""From images, n x 48 x 48, to probabilities, n x classes."""


def taught(
    images: Image, targets: Floats, teachers: Sequence[Path], packs: Sequence[Path], names: Sequence[str]
) -> tuple[Image, Floats]:
    """What to learn with teachers: for the images half of it is their answers; for the faces in packs all of it.

    Both are put together, the packs' faces last.
    """
    if not teachers:
        raise InputError("--faces have no labels: name the models that answer for them with --teacher")
    models = [read_teacher(Path(path), names) for path in teachers]
    parts = [(images, np.asarray((targets + answers(models, images)) / 2, np.float32))]
    for path in packs:
        faces = as_framed(open_pack(Path(path)))
        parts.append((faces, answers(models, faces)))
    more, told = (np.concatenate(part) for part in zip(*parts, strict=True))
    own = np.arange(len(images))
    chosen = np.concatenate([own, len(images) + at_most(MOST, told[len(images) :].argmax(1))])
    return more[chosen], told[chosen]


def read_teacher(path: Path, names: Sequence[str]) -> Answer:
    """A model of an earlier run (.keras), or a .tflite, which takes images as its card says; InputError otherwise."""
    if path.suffix == ".tflite":
        reader = EmotionReader(Model(path, "emotion"))
        if tuple(reader.labels) != tuple(names):
            raise InputError(f"{path}: it tells {', '.join(reader.labels)}, and what is learnt is {', '.join(names)}")
        size = reader.model.card.input
        return lambda images: np.stack([reader.read(at_size(image, size.width, size.height)) for image in images])
    if not path.is_file():
        raise InputError(f"{path} isn't there; a .keras of an earlier run, or a .tflite with its card, is wanted")
    model = keras.models.load_model(path, compile=False)
    if model.output_shape[1:] != (len(names),):
        raise InputError(f"{path}: it gives {model.output_shape[1:]} scores, and {len(names)} labels are learnt")
    return lambda images: np.asarray(model.predict(as_input(images), batch_size=256, verbose=0))


def answers(models: Sequence[Answer], images: Image) -> Floats:
    """The mean of what models answer for images and for their mirror images."""
    each = [model(seen) for model in models for seen in (images, images[:, :, ::-1])]
    return np.asarray(np.mean(each, 0), np.float32)


def as_framed(pack: Pack) -> Image:
    """Aligned faces as FER2013 frames its own, n x 48 x 48, gray."""
    left_eye, right_eye, nose, left_mouth, right_mouth = ((x, y) for x, y in TEMPLATE.tolist())
    points = left_eye, right_eye, nose, left_mouth, right_mouth
    matrix = crop_matrix(Detection(Box(0, 0, TEMPLATE_SIZE, TEMPLATE_SIZE), 1.0, points), FRAME, SIZE, SIZE)
    matrix[:, 2] -= matrix[:, :2].sum(1) * BORDER
    return np.stack([_framed(pack.picture(number), matrix) for number in range(len(pack))])


def _framed(face: Image, matrix: Matrix) -> Image:
    # The frame reaches below the aligned face; a black bar there would tell these faces from others.
    wider = cv2.copyMakeBorder(face, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
    return warp(to_colour(np.asarray(wider, np.uint8), "gray")[..., 0], matrix, SIZE, SIZE)


def at_most(number: int, classes: NDArray[np.intp]) -> NDArray[np.intp]:
    """The rows of at most a number of each class, drawn by chance, in order."""
    order = np.random.default_rng(0).permutation(len(classes))
    rows = [order[classes[order] == one][:number] for one in np.unique(classes)]
    return np.sort(np.concatenate([np.empty(0, np.intp), *rows]))


def as_input(images: Image) -> Floats:
    """Pixels, n x 48 x 48, as the model takes them: n x 48 x 48 x 1, in its range."""
    return normalise(images[..., None], GRAY_48)
