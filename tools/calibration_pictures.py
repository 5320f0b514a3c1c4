"""Pictures to calibrate a model with and to check it on, as the daemon would hand them to it.

A folder of pictures, a tree of labelled faces, `fer2013.csv` or FER2013's sheets (see emotion_faces.py), or an `.npy`
or `.npz` of uint8 pictures, n x height x width (x channels), in the model's colour. Face models take crops of faces,
detectors whole scenes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data import Pack, pictures_below, read_arrays
from emotion_faces import TEST, TRAIN, VALIDATION, at_size, labelled_files, load_faces, readable, tell_unreadable
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.pictures import SUFFIXES, read_picture
from edgefer.vision.card import ModelCard, ModelInput, Task
from edgefer.vision.decoders import padding_of
from edgefer.vision.preprocess import letterbox

MIN_PICTURES = 64
CALIBRATE = 256
"""Activation ranges don't change with more."""
HELD_OUT: dict[Task, int] = {"emotion": 4000, "embedding": 1000, "detector": 1000}
"""Where 97 % of 1,000 answers agree, half a point is chance; of 4,000, a quarter. Mean cosines vary less."""

Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of a model's size, BGR or gray; `labels`, where there are any, are indices into `names`.

    Without names, the labels count the model's own.
    """

    images: list[Image]
    labels: Labels | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where pictures come from: one at a time, by number."""

    picture: Callable[[int], Image]
    usage: NDArray[np.uint8]
    labels: Labels | None = None
    names: tuple[str, ...] = ()


def check_there(path: Path) -> None:
    """InputError where there is nothing at a path: told before a model is read, which takes its time."""
    if not path.exists():
        raise InputError(f"{path} isn't there; a folder of pictures, an .npz or .npy, or a fer2013.csv is wanted")


def read_pictures(path: Path, card: ModelCard) -> tuple[Pictures, Pictures]:
    """Pictures to calibrate with, and others to check on; InputError where there are too few.

    A source's own splits are kept apart; where it has none, or hardly anything in one, every fourth picture is held
    out. The choice is random, but the same each time.
    """
    source, kinds = _open(path, card.input), ", ".join(SUFFIXES)
    if len(source.usage) < MIN_PICTURES:
        raise InputError(
            f"{path}: {len(source.usage)} pictures{f' ({kinds})' * path.is_dir()}; calibrating and checking need at "
            f"least {MIN_PICTURES} pictures"
        )
    order = np.random.default_rng(0).permutation(len(source.usage))
    usage = source.usage[order]
    # Validation before test: what is chosen here isn't chosen on what is reported.
    few = MIN_PICTURES // 4
    other = next((split for split in (VALIDATION, TEST) if (usage == split).sum() >= few), None)
    if other is None or (usage == TRAIN).sum() < few:
        held = max(len(order) // 4, len(order) - CALIBRATE)
        calibrate, check = order[held:], order[:held]
    else:
        calibrate, check = order[usage == TRAIN], order[usage == other]

    failures: list[str] = []

    def taken(rows: NDArray[np.intp]) -> Pictures:
        read, images, unread = readable(rows.tolist(), lambda row: _fitted(source.picture(row), card))
        failures.extend(unread)
        return Pictures(images, None if source.labels is None else source.labels[read], source.names)

    both = taken(calibrate[:CALIBRATE]), taken(check[: HELD_OUT[card.task]])
    tell_unreadable(failures, sum(len(part.images) for part in both) + len(failures), path)
    return both


def _fitted(image: Image, card: ModelCard) -> Image:
    if card.task == "detector":
        return letterbox(image, card.input.width, card.input.height, padding_of(card.decoder))[0]
    return at_size(image, card.input.width, card.input.height)


def _open(path: Path, model_input: ModelInput) -> Source:
    if path.is_file() and path.suffix not in {".npy", ".npz", ".csv"}:
        raise InputError(f"{path}: a folder of pictures is wanted, or an .npz, an .npy or a fer2013.csv")
    if path.suffix in {".npy", ".npz"}:
        return _from_arrays(path, model_input)
    if path.is_dir() and not any((path / name).is_file() for name in ("meta.npz", "fer2013.csv")):
        return _from_folder(path)
    faces = load_faces(path)
    return Source(lambda row: faces.images[row], faces.usage, faces.labels, faces.names)


def _from_folder(folder: Path) -> Source:
    names, labelled = labelled_files(folder)
    labels = np.array([label for _, label, _ in labelled], np.intp)
    if len(set(labels.tolist())) > 1:
        usage = np.array([split for split, _, _ in labelled], np.uint8)
        return Source(lambda row: read_picture(labelled[row][2]), usage, labels, names)
    files = pictures_below(folder)
    return Source(lambda row: read_picture(files[row]), np.full(len(files), TRAIN, np.uint8))


def _from_arrays(path: Path, model_input: ModelInput) -> Source:
    arrays = read_arrays(path)
    if {"blob", "off"} <= arrays.keys():
        pack = Pack(str(path), arrays)
        return Source(pack.picture, np.full(len(pack), TRAIN, np.uint8))
    pictures = next((array for array in arrays.values() if array.ndim in {3, 4}), None)
    if pictures is None or pictures.dtype != np.uint8 or (pictures.ndim == 4 and pictures.shape[3] not in {1, 3}):
        held = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise InputError(
            f"{path}: uint8 pictures are wanted, n x height x width (x 1 or 3 channels), values 0 to 255 as a camera "
            f"gives them (--range says what becomes of them); it holds {held}"
        )
    flip = model_input.colour == "rgb" and pictures.ndim == 4  # the daemon's pictures are BGR
    labels = next((array for name, array in arrays.items() if name in {"labels", "y"}), None)
    return Source(
        lambda row: np.ascontiguousarray(pictures[row][..., ::-1] if flip else pictures[row]),
        np.full(len(pictures), TRAIN, np.uint8),
        None if labels is None else _as_numbers(labels, len(pictures), path),
    )


def _as_numbers(labels: NDArray[Any], count: int, path: Path) -> Labels:
    """A number for each picture, from numbers or from rows with a one."""
    numbers = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    if numbers.dtype.kind == "f" and (numbers == np.floor(numbers)).all():
        numbers = numbers.astype(np.int64)
    if len(numbers) != count or numbers.dtype.kind not in "iub":
        raise InputError(
            f"{path}: {count} pictures, and labels {labels.dtype} {labels.shape}: a number for each is wanted, or a row"
        )
    return numbers.astype(np.intp)
