"""Adding a person to the gallery from pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgefer.analyze import DEFAULT_DETECTOR
from edgefer.errors import InputError, UsageError
from edgefer.gallery import check_name, open_gallery
from edgefer.messages import Detection, Image, Quality
from edgefer.pictures import list_pictures, read_picture
from edgefer.settings import Settings
from edgefer.vision import load_vision
from edgefer.vision.quality import rate

MIN_FACE_PX = 48
"""A smaller face is enlarged more than twice for the embedding, and looks like anybody."""
MIN_SHARPNESS = 0.2
MIN_FRONTAL = 0.3
"""Turned further, one eye begins to hide."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one picture: `refused` says why it wasn't used, None when it was."""

    path: Path
    refused: str | None


def enroll_images(settings: Settings, name: str, paths: Sequence[Path]) -> Iterator[Tried]:
    """Enrol a person from pictures and folders of pictures, one after the other, telling of each.

    InputError when a path isn't there, or when no picture could be used in the end.
    """
    name = check_name(name)
    pictures = _pictures(paths)
    vision = load_vision(settings, DEFAULT_DETECTOR)
    if vision.embedder is None:
        raise UsageError("EDGEFER_IDENTITY__ENABLED is false: nobody can be enrolled")
    used = 0
    with closing(open_gallery(settings, vision.embedder.model.card, create=True)) as gallery:
        for path in pictures:
            try:
                image = read_picture(path)
                face, quality = only_good_face(image, vision.detector(image))
            except InputError as error:
                yield Tried(path, str(error).removeprefix(f"{path}: "))
                continue
            gallery.enroll(name, vision.embedder(image, face), quality.weight)
            used += 1
            yield Tried(path, None)
    if not used:
        raise InputError(
            f"no face of {name} could be used: take pictures of one person, sharp, near and from the front"
        )


def only_good_face(image: Image, faces: Sequence[Detection]) -> tuple[Detection, Quality]:
    """The one face of a picture and its quality; InputError says why it is of no use."""
    if len(faces) != 1:
        raise InputError("no face was found" if not faces else f"there are {len(faces)} faces, and whose is meant?")
    quality = rate(image, faces[0])
    if quality.face_px < MIN_FACE_PX:
        raise InputError(f"the face is {quality.face_px} px large; at least {MIN_FACE_PX} are needed")
    if quality.sharpness < MIN_SHARPNESS:
        raise InputError(f"the face is blurred (sharpness {quality.sharpness:.2f}, at least {MIN_SHARPNESS} is needed)")
    if quality.frontal is not None and quality.frontal < MIN_FRONTAL:
        raise InputError(f"the face is turned away (frontal {quality.frontal:.2f}, at least {MIN_FRONTAL} is needed)")
    return faces[0], quality


def _pictures(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += list_pictures(path)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    return found
