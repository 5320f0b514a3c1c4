"""A look at a face that is to be enrolled: good enough, or why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2

from edgefer.errors import InputError
from edgefer.gallery import Template
from edgefer.messages import Detection, Image, Quality
from edgefer.vision.embedder import Embedding
from edgefer.vision.quality import frontality, inside, rate, tilt

MIN_FACE_PX = 48
"""A smaller face is enlarged more than twice for the embedding, and looks like anybody."""
MIN_SHARPNESS = 0.45
"""docs/identity.md tells what less costs."""
MIN_FRONTAL = 0.3
"""Turned further, one eye begins to hide."""
MIN_INSIDE = 0.8
"""Faces that are cut off at the same side look alike. docs/identity.md has the figures."""
MAX_TILT = 20.0
"""Degrees. Our detectors' points stay behind a head that leans: they say 18 of a true 30, where the cosine to the same
face upright is 0.74."""
EVERY_S = 0.5
"""Between two looks through a camera: a face that moves on a little, for templates that differ."""
_PORTRAIT = 2.5
"""The side of a kept picture, in sides of the face: enough for any detector and crop to come."""
_PORTRAIT_PX = 640


@dataclass(frozen=True, slots=True)
class Look:
    """What came of one picture: where it is from, and the template, or why there is none."""

    source: str
    refused: str | None = None
    template: Template | None = None


def look(
    source: str,
    image: Image,
    faces: Sequence[Detection],
    template: Callable[[Image, Detection], Embedding],
    *,
    keep: bool,
) -> Look:
    """A look at the faces of a picture (BGR), by Embedder.template; `keep` puts a picture of the face beside it."""
    try:
        face, quality = only_good_face(image, faces)
    except InputError as error:
        return Look(source, str(error))
    picture = portrait(image, face) if keep else None
    return Look(source, None, Template(template(image, face), quality.weight, picture=picture))


def only_good_face(image: Image, faces: Sequence[Detection]) -> tuple[Detection, Quality]:
    """The one face of a picture and its quality; InputError says why it is of no use."""
    if not faces:
        raise InputError("no face was found")
    if len(faces) > 1:
        places = ", ".join(f"{face.box.side:.0f} px at {face.box.x:.0f},{face.box.y:.0f}" for face in faces)
        raise InputError(f"there are {len(faces)} faces ({places}), and whose is meant? Cut the others off")
    quality = rate(image, faces[0])
    if quality.face_px < MIN_FACE_PX:
        raise InputError(f"the face is {quality.face_px} px large; at least {MIN_FACE_PX} are needed")
    if quality.sharpness < MIN_SHARPNESS:
        raise InputError(f"the face is blurred (sharpness {quality.sharpness:.2f}, at least {MIN_SHARPNESS} is needed)")
    points = faces[0].landmarks
    if points is not None and (left := inside(image, points)) < MIN_INSIDE:
        raise InputError(f"the picture's edge cuts the face off ({left:.0%} of it left, {MIN_INSIDE:.0%} are needed)")
    if points is not None and (frontal := frontality(points)) < MIN_FRONTAL:
        raise InputError(f"the face is turned away (frontal {frontal:.2f}, at least {MIN_FRONTAL} is needed)")
    if points is not None and tilt(points) > MAX_TILT:
        raise InputError(f"the head is tilted (by {tilt(points):.0f} degrees, {MAX_TILT:.0f} are too many)")
    return faces[0], quality


def portrait(image: Image, face: Detection) -> bytes:
    """The face and what is around it, as a JPEG, for a later model to learn from."""
    (x, y), half = face.box.centre, face.box.side * _PORTRAIT / 2
    left, top = max(0, round(x - half)), max(0, round(y - half))
    cut = image[top : round(y + half), left : round(x + half)]
    if (scale := _PORTRAIT_PX / max(cut.shape[:2])) < 1:
        cut = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cut, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return jpeg.tobytes()
