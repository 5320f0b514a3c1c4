"""The research data that the trainers and evaluators read; FOLDER/README.md of the data tells where it is from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.pictures import SUFFIXES, is_picture

DATA = Path("../shared/data")
"""Where the data lies beside a checkout."""
HELD_OUT_SHARE = 0.1
"""The last CelebA ids (25 people, some 600 faces) are never trained on: they validate, and set the threshold."""


@dataclass(frozen=True, slots=True)
class Pack:
    """An .npz of JPEGs and what is known about them; `name` is for whom it fails."""

    name: str
    fields: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.fields["off"]) - 1

    def jpeg(self, i: int) -> NDArray[np.uint8]:
        """The bytes of picture i."""
        start, end = self.fields["off"][i : i + 2]
        return self.fields["blob"][start:end]

    def picture(self, i: int) -> Image:
        """Picture i, BGR."""
        jpeg = self.jpeg(i)
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR) if len(jpeg) else None
        if image is None:
            raise InputError(f"{self.name}: picture {i} doesn't decode; make the pack again")
        return image.astype(np.uint8, copy=False)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder, in any depth of folders, in order; hidden folders and files are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if is_picture(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def some_pictures_below(folder: Path) -> list[Path]:
    """The same; InputError where there is none."""
    if paths := pictures_below(folder):
        return paths
    raise InputError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")


def open_pack(path: Path, *fields: str) -> Pack:
    """A pack, its JPEGs still compressed in memory; InputError where it lacks one of these fields."""
    if not path.is_file():
        raise InputError(f"{path} isn't there; check its name, or the folder of the research data (--data)")
    pack = Pack(str(path), read_arrays(path))
    if missing := sorted({"blob", "off", *fields} - set(pack.fields)):
        raise InputError(f"{path}: no such pack: it lacks {', '.join(missing)}")
    return pack


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, by name, or that of an .npy; InputError where they can't be read."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file)
            if isinstance(loaded, np.ndarray):
                return {"images": loaded}
            return {name: loaded[name] for name in loaded.files}
    except (BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError) as error:
        raise InputError(f"{path}: it can't be read: {error}; is it whole, and numpy's?") from error


def save_pack(path: Path, **fields: Any) -> None:
    """Write a pack of these arrays, whole or not at all."""
    aside = path.with_suffix(".writing.npz")
    np.savez(aside, **fields)
    aside.replace(path)


def held_out(pack: Pack) -> NDArray[np.bool_]:
    """Which faces of a pack belong to the people who are held out."""
    if "ids" not in pack.fields:
        return np.zeros(len(pack), bool)
    people = np.unique(pack.fields["ids"])
    return np.isin(pack.fields["ids"], people[-max(1, round(HELD_OUT_SHARE * len(people))) :])


@dataclass(frozen=True, slots=True)
class Fer2013:
    """FER2013 in the order of fer2013.csv.

    images n x 48 x 48 gray, labels 0..6, usage (0 train, 1 PublicTest, 2 PrivateTest), votes n x 10 (FER+; see
    `votes_match`), votes_match (whether the votes are this image's), dup_group (equal for byte-identical images).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    usage: NDArray[np.uint8]
    votes: NDArray[np.uint8]
    votes_match: NDArray[np.bool_]
    dup_group: NDArray[np.int32]

    LABELS: ClassVar[tuple[str, ...]] = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def load_fer2013(folder: Path) -> Fer2013:
    """FER2013 from its folder of sheets (60 faces a row, at most 12,000 a sheet)."""
    if not (folder / "meta.npz").is_file():
        raise InputError(f"{folder / 'meta.npz'} isn't there; name the folder of the research data with --data")
    meta = read_arrays(folder / "meta.npz")
    if missing := sorted({"labels", "usage", "votes", "exact", "dup_group"} - set(meta)):
        raise InputError(f"{folder / 'meta.npz'}: not FER2013's: it lacks {', '.join(missing)}")
    images = np.zeros((len(meta["labels"]), 48, 48), np.uint8)
    for usage, name in enumerate(("train", "public", "private")):
        faces = [_faces_of_sheet(path) for path in sorted(folder.glob(f"{name}_*.webp"))]
        rows = np.flatnonzero(meta["usage"] == usage)
        if (held := sum(map(len, faces))) < len(rows):
            raise InputError(f"{folder}: {name}_*.webp hold {held} faces of {len(rows)}; is a sheet missing?")
        if faces:
            images[rows] = np.concatenate(faces)[: len(rows)]
    return Fer2013(images, meta["labels"], meta["usage"], meta["votes"], meta["exact"] == 1, meta["dup_group"])


def _faces_of_sheet(path: Path) -> NDArray[np.uint8]:
    sheet = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if sheet is None or sheet.shape[0] % 48 or sheet.shape[1] != 60 * 48:
        raise InputError(f"{path}: it is no sheet of 60 faces of 48x48 a row, or cut; copy it again")
    rows = sheet.reshape(sheet.shape[0] // 48, 48, 60, 48)
    return rows.transpose(0, 2, 1, 3).reshape(-1, 48, 48)[:12000].astype(np.uint8, copy=False)
