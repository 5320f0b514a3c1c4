"""Labelled faces from what people have: a folder a class, `fer2013.csv`, or FER2013's sheets.

faces/train/happy/*.jpg, faces/test/happy/*.jpg     as FER2013 is handed out on Kaggle; val/ or validation/ too
faces/happy/*.jpg                                   one folder a class, without splits
fer2013.csv, fer2013new.csv                         the challenge's file, and FER+'s votes beside it
meta.npz, train_*.webp, ...                         the sheets of ../shared/data/fer2013
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from data import Fer2013, load_fer2013, pictures_below
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.pictures import SUFFIXES, read_picture
from edgefer.vision.card import ModelInput
from edgefer.vision.preprocess import to_colour, warp

T = TypeVar("T")
TRAIN, VALIDATION, TEST = range(3)
SPLITS = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION,
          "publictest": VALIDATION, "test": TEST, "testing": TEST, "privatetest": TEST}  # fmt: skip
"""What folders and the csv's third column call the splits."""
SAME = {"anger": "angry", "disgusted": "disgust", "fearful": "fear", "afraid": "fear", "scared": "fear",
        "happiness": "happy", "sadness": "sad", "surprised": "surprise"}  # fmt: skip
"""Other words for FER2013's labels."""
MOST_UNREADABLE = 0.02
"""Of a tree's pictures: published data sets have a few broken ones, and more is a mistake."""
GRAY_48 = ModelInput(48, 48, "gray", (0.0, 1.0))
"""What FER2013's own images suit."""
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
"""Columns of FER+, the last "not a face"."""
VOTE_OF = {"neutral": 0, "happy": 1, "surprise": 2, "sad": 3, "angry": 4, "disgust": 5, "fear": 6, "contempt": 7}
"""Which column votes for a label."""


@dataclass(frozen=True, slots=True)
class Faces:
    """Faces and what they show.

    images n x 48 x 48 gray (a tree's as large as asked for, and BGR for a model in colour), labels (indices into
    names), usage (TRAIN, VALIDATION or TEST), votes n x 10 (FER+; zeros where there are none), votes_match (whether the
    votes are this image's), dup_group (equal for byte-identical images), is_validation_of_train (whether there was no
    validation split, and a tenth of train is it).
    """

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.intp]
    usage: NDArray[np.uint8]
    votes: NDArray[np.uint8]
    votes_match: NDArray[np.bool_]
    dup_group: NDArray[np.int32]
    is_fer2013: bool
    is_validation_of_train: bool

    def rows(self, usage: int) -> NDArray[np.intp]:
        """Where one split's images are."""
        return np.flatnonzero(self.usage == usage)


def find_faces(
    path: Path, classes: Sequence[str] = (), model_input: ModelInput = GRAY_48, only: int | None = None
) -> Faces:
    """The faces of `load_faces`; the folder of the research data stands for the FER2013 in it."""
    return load_faces(path / "fer2013" if (path / "fer2013").is_dir() else path, classes, model_input, only)


def with_labels_of(
    faces: Faces, rows: NDArray[np.intp], names: tuple[str, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Those of some rows whose label a model with these labels knows, and their labels as it counts them.

    InputError where it knows none.
    """
    known = [label_name(name) for name in names]
    labels = np.array([known.index(name) if name in known else -1 for name in faces.names])[faces.labels[rows]]
    if not (labels >= 0).any():
        raise InputError(
            f"none of the {len(rows)} faces has a label that the model knows: the faces' are {', '.join(faces.names)}; "
            f"the model's {', '.join(names)}"
        )
    return rows[labels >= 0], labels[labels >= 0]


def load_faces(
    path: Path, classes: Sequence[str] = (), model_input: ModelInput = GRAY_48, only: int | None = None
) -> Faces:
    """The faces of a folder tree, a `fer2013.csv` (or its folder) or FER2013's sheets; InputError says what is wrong.

    `classes` chooses labels and their order: images of others are left out. Without it they are FER2013's seven, or a
    tree's folders by name. A tree's pictures come as the model takes them; with `only`, where it has that split, the
    others aren't read. Where there is no validation split, a tenth of train is, without what stands in test too: the
    same one, whichever classes and whichever size are asked for.
    """
    if (path / "meta.npz").is_file():
        faces = _from_sheets(load_fer2013(path))
    elif (table := _csv_of(path)) is not None:
        faces = _from_csv(table)
    else:
        faces = _from_tree(path, model_input, only)
    return _only(faces, tuple(map(label_name, classes)), path) if classes else faces


def label_name(word: str) -> str:
    """A label as FER2013 says it: "Anger" is "angry"."""
    word = word.strip().lower()
    return SAME.get(word, word)


def at_size(image: Image, width: int, height: int) -> Image:
    """A face's picture at a model's size, sampled as the daemon samples crops."""
    if image.shape[1::-1] == (width, height):
        return image
    return warp(image, np.diag((width / image.shape[1], height / image.shape[0], 1.0))[:2], width, height)


def labelled_files(folder: Path) -> tuple[tuple[str, ...], list[tuple[int, int, Path]]]:
    """The labels of a tree of `[split/]class/` folders, and each picture's split, label (an index) and path, in order.

    Folders of one label ("anger", "angry") are one; a folder without pictures is a label too. The labels stand in the
    order in which Keras counts the folders. Hidden folders and files are passed over, and what is beside the splits.
    """
    tops = _folders(folder)
    splits = [top for top in tops if top.name.lower() in SPLITS]
    classes = [(SPLITS[top.name.lower()], one) for top in splits for one in _folders(top)]
    if classes and (beside := [top.name for top in tops if top not in splits]):
        print(f"{folder}: passed over, beside {splits[0].name}/: {', '.join(beside)}", file=sys.stderr)
    classes = classes or [(TRAIN, top) for top in tops]
    names = tuple(dict.fromkeys(map(label_name, sorted({one.name for _, one in classes}))))
    files = [(split, names.index(label_name(one.name)), file) for split, one in classes for file in pictures_below(one)]
    return names, files


def readable(items: Iterable[T], read: Callable[[T], Image]) -> tuple[list[T], list[Image], list[str]]:
    """Those of some items that can be read, their pictures, and why the others can't."""
    kept, pictures, failures = [], [], []
    for item in items:
        try:
            pictures.append(read(item))
        except InputError as error:
            failures.append(str(error))
        else:
            kept.append(item)
    return kept, pictures, failures


def tell_unreadable(failures: Sequence[str], of: int, source: Path) -> None:
    """Tell how many of some pictures are left out as unreadable; InputError where they are many."""
    if len(failures) > MOST_UNREADABLE * of:
        raise InputError(f"{source}: {len(failures)} of {of} pictures can't be read, the first: {failures[0]}")
    if failures:
        print(f"{source}: left out: {len(failures)} picture(s), the first: {failures[0]}", file=sys.stderr)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _from_sheets(fer: Fer2013) -> Faces:
    labels = fer.labels.astype(np.intp)
    return Faces(fer.LABELS, fer.images, labels, fer.usage, fer.votes, fer.votes_match, fer.dup_group, True, False)


def _csv_of(path: Path) -> Path | None:
    if path.is_dir():
        path = path / "fer2013.csv"
    return path if path.suffix == ".csv" and path.is_file() else None


def _from_csv(path: Path) -> Faces:
    images, labels, usage = [], [], []
    for number, row in enumerate(_rows(path, ("emotion", "pixels", "Usage")), 2):
        try:
            images.append(np.frombuffer(bytes(map(int, row["pixels"].split())), np.uint8).reshape(48, 48))
            labels.append(int(row["emotion"]))
            usage.append(SPLITS[row["Usage"].strip().lower()])
        except (ValueError, KeyError) as error:
            raise InputError(f"{path}, line {number}: not a row of fer2013.csv: {error}") from error
    if not images or not 0 <= min(labels) <= max(labels) < len(Fer2013.LABELS):
        raise InputError(f"{path}: no rows, or an emotion that isn't 0 to {len(Fer2013.LABELS) - 1}")
    votes, match = _votes_beside(path, usage)
    stacked = np.stack(images)
    groups = _groups(stacked)
    splits, of_train = _with_validation(np.array(usage, np.uint8), lambda: groups)
    is_fer2013 = path.name == "fer2013.csv"
    return Faces(Fer2013.LABELS, stacked, np.array(labels, np.intp), splits, votes, match, groups, is_fer2013, of_train)


def _votes_beside(path: Path, usage: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """FER+'s votes from the `fer2013new.csv` beside a `fer2013.csv`, row by row of the same splits."""
    votes = np.zeros((len(usage), len(VOTES)), np.uint8)
    beside = path.with_name("fer2013new.csv")
    if beside.is_file():
        rows = list(_rows(beside, ("Usage", *VOTES)))
        if len(rows) != len(usage):
            raise InputError(f"{beside}: {len(rows)} rows of votes, and {path.name} has {len(usage)} images")
        for number, (row, split) in enumerate(zip(rows, usage, strict=True), 2):
            if SPLITS.get(row["Usage"].strip().lower()) != split:
                raise InputError(f"{beside}, line {number}: {row['Usage']!r}, where {path.name} has another split")
            try:
                votes[number - 2] = list(bytes(int(row[name]) for name in VOTES))
            except ValueError as error:
                raise InputError(f"{beside}, line {number}: not a row of votes: {error}") from error
    return votes, np.asarray(votes.any(1), bool)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            # Of a row that is cut; Kaggle's second table has spaces.
            reader = csv.DictReader(lines, restval="", skipinitialspace=True)
            if missing := set(columns) - set(reader.fieldnames or ()):
                raise InputError(f"{path}: the column {min(missing)!r} is missing")
            yield from reader
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table in UTF-8 with commas: {error}") from error


def _from_tree(path: Path, model_input: ModelInput, only: int | None) -> Faces:
    if not path.exists():
        raise InputError(f"{path} isn't there; a folder tree, a fer2013.csv or FER2013's sheets are wanted")
    names, files = labelled_files(path) if path.is_dir() else ((), [])
    if len({label for _, label, _ in files}) < 2:
        raise InputError(
            f"{path}: a folder for each class is wanted, with pictures in it (train/happy/1.jpg, ...; "
            f"{', '.join(SUFFIXES)})"
        )
    split_of, of_train = np.array([split for split, _, _ in files], np.uint8), False
    if only != TEST:
        split_of, of_train = _with_validation(split_of, lambda: _groups_of(_content(file) for _, _, file in files))
    files = [(int(split), label, file) for split, (_, label, file) in zip(split_of, files, strict=True)]
    files = [file for file in files if file[0] == only] or files
    of = len(files)
    files, pictures, failures = readable(files, lambda file: _as_taken(read_picture(file[2]), model_input))
    tell_unreadable(failures, of, path)
    usage = np.array([split for split, _, _ in files], np.uint8)
    labels = np.array([label for _, label, _ in files], np.intp)
    images = np.stack(pictures)
    none = np.zeros((len(files), len(VOTES)), np.uint8)
    return Faces(names, images, labels, usage, none, np.zeros(len(files), bool), _groups(images), False, of_train)


def _content(file: Path) -> bytes:
    """What is in a file; its name where it can't be read, which is told once it is to be a picture."""
    try:
        return file.read_bytes()
    except OSError:
        return os.fsencode(file)


def _as_taken(image: Image, model_input: ModelInput) -> Image:
    """A picture (BGR) at a model's size, in gray where it wants that."""
    if model_input.colour == "gray":
        image = to_colour(image, "gray")[..., 0]
    return at_size(image, model_input.width, model_input.height)


def _groups(images: NDArray[np.uint8]) -> NDArray[np.int32]:
    return _groups_of(image.tobytes() for image in images)


def _groups_of(contents: Iterable[bytes]) -> NDArray[np.int32]:
    """A number for each, the same for the same bytes; in the order of their digests, and so by chance."""
    digests = [hashlib.sha256(content).digest() for content in contents]
    return np.unique(np.array(digests), return_inverse=True)[1].astype(np.int32)


def _with_validation(
    usage: NDArray[np.uint8], groups: Callable[[], NDArray[np.int32]]
) -> tuple[NDArray[np.uint8], bool]:
    """The splits, with a tenth of train as the validation split where there is none, and whether that is so."""
    if (usage == VALIDATION).any():
        return usage, False
    group = groups()
    mine = np.setdiff1d(group[usage == TRAIN], group[usage == TEST])
    tenth = (usage == TRAIN) & np.isin(group, mine[: math.ceil(len(mine) / 10)])
    return np.where(tenth, np.uint8(VALIDATION), usage), bool(tenth.any())


def _only(faces: Faces, classes: tuple[str, ...], path: Path) -> Faces:
    """The images of some labels, numbered in their order."""
    if missing := [name for name in classes if name not in faces.names]:
        raise InputError(f"{path}: no class {missing[0]!r}; it has {', '.join(faces.names)}")
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise InputError(f"the class {twice[0]!r} is named twice")
    if len(classes) < 2:
        raise InputError(f"only the class {classes[0]!r} is named: there is nothing to tell it from")
    numbers = np.array([classes.index(name) if name in classes else -1 for name in faces.names])
    labels = numbers[faces.labels]
    kept: dict[str, Any] = {
        field: getattr(faces, field)[labels >= 0] for field in ("images", "usage", "votes", "votes_match", "dup_group")
    }
    return replace(faces, names=classes, labels=labels[labels >= 0], **kept)
