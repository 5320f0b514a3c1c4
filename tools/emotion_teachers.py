"""What tools/train_emotion.py learns from other models: their answers, steadied by the mirror image's."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from data import Pack, open_pack
from emotion_faces import GRAY_48, at_size
from emotion_networks import SIZE
from mixing import mixed
from numpy.typing import NDArray
from tqdm import tqdm

from edgefer.errors import InputError
from edgefer.messages import Box, Detection, Image
from edgefer.vision.card import Crop
from edgefer.vision.emotion import EmotionReader, Probabilities
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


class Teachers:
    """Models (a .tflite each, its card beside it) that tell the emotions in `names`; InputError where one doesn't."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        self._readers = [EmotionReader(Model(path, "emotion")) for path in paths]
        for reader in self._readers:
            if tuple(reader.labels) != tuple(names):
                told, learnt = ", ".join(reader.labels), ", ".join(names)
                raise InputError(f"{reader.model.path}: it tells {told}, and what is learnt is {learnt}")

    def __call__(self, image: Image) -> Probabilities:
        """The mean of their answers for a face (gray, any size)."""
        told = []
        for reader in self._readers:
            size = reader.model.card.input
            told.append(reader.read(at_size(image, size.width, size.height)))
        return np.asarray(np.mean(told, 0), np.float32)

    def half_of(self, targets: Floats, images: Image, folder: Path) -> Floats:
        """What to learn for images: half targets, half their answers; these alone where a target (n x classes) is 0.

        They are computed once, and kept in `folder`.
        """
        told = self.asked(images, folder / "taught")
        return np.asarray(targets / 2 + (1 - targets.sum(1, keepdims=True) / 2) * told, np.float32)

    def asked(self, images: Image, kept: Path) -> Floats:
        """Their mean answers for each image and its mirror image, n x classes; computed once, and kept beside `kept`.

        The mean of both is better than each.
        """
        models = "".join(reader.model.card.to_json() for reader in self._readers)
        digest = zlib.crc32(models.encode(), zlib.crc32(images.tobytes()))
        kept = kept.with_name(f"{kept.name}-{digest:08x}.npy")
        if kept.is_file():
            told: Floats = np.load(kept)
            return told
        means = ((self(image) + self(image[:, ::-1])) / 2 for image in images)
        told = np.stack(list(tqdm(means, desc="teachers", total=len(images), unit="face", mininterval=10)))
        aside = kept.with_name("writing.npy")
        np.save(aside, told)
        aside.replace(kept)
        return told


def unlabelled(packs: Sequence[Path], teachers: Teachers, folder: Path) -> Image:
    """The packs' faces, n x 48 x 48: MOST that the teachers take for one emotion.

    What they answer is kept in `folder`.
    """
    faces = np.concatenate([as_framed(open_pack(path)) for path in packs])
    told = teachers.asked(faces, folder / "unlabelled")
    return faces[at_most(MOST, told.argmax(1))]


def pairs_mixed(images: Image, labels: NDArray[np.intp], number: int, seed: int) -> Image:
    """Faces made of two images each (n x 48 x 48), of labels drawn evenly: faces that no teacher has seen."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    made = np.empty((number, *images.shape[1:]), np.uint8)
    for i in range(number):
        one, other = (images[rng.choice(rows[rng.integers(len(rows))])] for _ in range(2))
        made[i] = mixed(one, other, rng)
    return made


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
