"""Two public-domain portraits in motion, for the demo, for tests and for a first try without a camera: `sample://`.

Grace Hopper (matplotlib ships her picture) and Eileen Collins (scikit-image ships hers) come, turn, pass each other,
leave and come back. Everything is a function of the time, so that `truth` can tell where their faces are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from edgefer.cameras import CameraUri, EndOfStream, Picture, Wanted
from edgefer.errors import InputError
from edgefer.messages import Box, Image, Landmarks
from edgefer.vision.preprocess import Matrix

SCHEMES = ("sample",)

WIDTH, HEIGHT, FPS, SECONDS = 640, 480, 25.0, 20.0


@dataclass(frozen=True, slots=True)
class Keyframe:
    """Where a face is at a time: its middle and its height in pixels, and how far it leans clockwise in degrees."""

    time_s: float
    x: float
    y: float
    height: float
    lean: float


@dataclass(frozen=True, slots=True)
class Actor:
    """A person: the package and file of her picture, the part that is shown, her face and its points, and her ways."""

    name: str
    package: str
    file: str
    part: Box
    face: Box
    points: Landmarks
    ways: tuple[tuple[Keyframe, ...], ...]
    """Each from where she comes in to where she goes out."""


# Parts, faces (from the brow to the chin, from ear to ear) and points are read off the pictures, in pixels.
GRACE = Actor(
    "Grace Hopper",
    "matplotlib",
    "mpl-data/sample_data/grace_hopper.jpg",
    part=Box(90, 20, 330, 420),
    face=Box(178, 125, 178, 210),
    points=((222, 190), (306, 188), (266, 235), (227, 280), (308, 279)),
    ways=(
        (
            Keyframe(1, -160, 250, 130, 0),
            Keyframe(3, 170, 240, 130, -6),
            Keyframe(6, 200, 230, 170, 6),
            Keyframe(9, 180, 240, 130, 0),
            Keyframe(10.5, 480, 240, 120, 0),
            Keyframe(12, 480, 230, 130, 4),
            Keyframe(15, 820, 240, 120, 0),
        ),
        (
            Keyframe(16, 820, 230, 150, 0),
            Keyframe(17.5, 400, 230, 150, 8),
            Keyframe(19, -200, 230, 150, 0),
        ),
    ),
)
COLLINS = Actor(
    "Eileen Collins",
    "skimage",
    "data/astronaut.png",
    part=Box(95, 0, 260, 290),
    face=Box(180, 65, 88, 115),
    points=((203, 101), (246, 103), (226, 126), (205, 140), (243, 140)),
    ways=(
        (
            Keyframe(5, 840, 220, 120, 0),
            Keyframe(7, 470, 220, 120, 5),
            Keyframe(9, 470, 240, 110, -5),
            Keyframe(10.5, 160, 240, 120, 0),
            Keyframe(17, 170, 230, 150, 6),
            Keyframe(18.5, -200, 230, 150, 0),
        ),
    ),
)
CAST = (GRACE, COLLINS)
"""The later one passes in front."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A face that is wholly in the picture, in pixels of the 640x480 sample, and the share that another one covers."""

    name: str
    box: Box
    points: Landmarks
    covered: float


def truth(stream_s: float) -> list[Seen]:
    """Whose faces are in the picture at a time, and where."""
    placed = [(actor, _place(actor, stream_s)) for actor in CAST]
    seen = []
    for i, (actor, matrix) in enumerate(placed):
        if matrix is None:
            continue
        box = _placed_box(actor.face, matrix)
        if box.x < 0 or box.y < 0 or box.x + box.width > WIDTH or box.y + box.height > HEIGHT:
            continue
        in_front = [_placed_box(other.part, front) for other, front in placed[i + 1 :] if front is not None]
        covered = max((_covered(box, front) for front in in_front), default=0.0)
        seen.append(Seen(actor.name, box, _placed_points(actor.points, matrix), covered))
    return seen


def draw(stream_s: float) -> Image:
    """The picture at a time, 640x480."""
    frame = _background().copy()
    for actor in CAST:
        matrix = _place(actor, stream_s)
        if matrix is not None:
            picture = _portrait(actor)
            matrix = matrix @ np.array([[1, 0, actor.part.x], [0, 1, actor.part.y], [0, 0, 1]])
            cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
    return frame


def open_source(uri: CameraUri, wanted: Wanted) -> SampleCamera:  # noqa: ARG001  # its size is its own
    """The sample; InputError says how to get its pictures where they are missing."""
    uri.check_options("realtime", "loop")
    return SampleCamera(realtime="realtime" not in uri.options or uri.flag("realtime"), loop=uri.flag("loop"))


class SampleCamera:
    """Plays the sample at its pace, or with realtime=0 picture by picture."""

    def __init__(self, *, realtime: bool, loop: bool) -> None:
        self.live = realtime
        self.description = f"two portraits in motion, {WIDTH}x{HEIGHT} at {FPS:g} fps"
        self._loop = loop
        self._index = 0
        self._closed = False
        for actor in CAST:
            _portrait(actor)  # a missing picture is told now

    def read(self) -> Picture:
        """The next picture."""
        stream_s = self._index / FPS
        if stream_s >= SECONDS and not self._loop:
            raise EndOfStream("the sample is played to its end")
        if self._closed:
            raise EndOfStream("the sample was closed")
        self._index += 1
        return Picture(draw(stream_s % SECONDS), stream_s)

    def close(self) -> None:
        """Nothing is held open."""
        self._closed = True


def picture_path(actor: Actor) -> Path:
    """The picture's file; found without importing its package, which would cost a second and 60 MB."""
    spec = find_spec(actor.package)
    path = Path(spec.origin).parent / actor.file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(f"the sample's pictures ship with {actor.package}: pip install '.[demo]' in edgefer's folder")
    return path


@functools.cache
def _portrait(actor: Actor) -> Image:
    picture = cv2.imread(str(picture_path(actor)), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"{picture_path(actor)} can't be read: pip install --force-reinstall {actor.package}")
    left, top, part = int(actor.part.x), int(actor.part.y), actor.part
    return np.ascontiguousarray(picture[top : top + int(part.height), left : left + int(part.width)])


@functools.cache
def _background() -> Image:
    """A wall in soft light."""
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    light = 150 - 60 * y + 25 * np.sin(5 * x + 2 * y)
    wall: Image = np.clip(light[..., None] * (0.95, 1.0, 1.04), 0, 255).astype(np.uint8)
    return wall


def _place(actor: Actor, stream_s: float) -> Matrix | None:
    """The affine from the actor's picture to the sample, None while she is away."""
    for way in actor.ways:
        if way[0].time_s <= stream_s <= way[-1].time_s:
            times = [key.time_s for key in way]
            x, y, height, lean = (
                float(np.interp(stream_s, times, [getattr(key, name) for key in way]))
                for name in ("x", "y", "height", "lean")
            )
            matrix: Matrix = np.asarray(cv2.getRotationMatrix2D(actor.face.centre, -lean, height / actor.face.height))
            matrix[:, 2] += np.array([x, y]) - actor.face.centre
            return matrix
    return None


def _placed_box(box: Box, matrix: Matrix) -> Box:
    """The upright box of the same size as a turned one, around the same middle."""
    x, y = matrix @ (*box.centre, 1)
    scale = float(np.hypot(*matrix[:, 0]))
    width, height = box.width * scale, box.height * scale
    return Box(float(x) - width / 2, float(y) - height / 2, width, height)


def _placed_points(points: Landmarks, matrix: Matrix) -> Landmarks:
    first, second, third, fourth, fifth = ((float(x), float(y)) for x, y in (matrix @ (*p, 1) for p in points))
    return first, second, third, fourth, fifth


def _covered(box: Box, front: Box) -> float:
    width = min(box.x + box.width, front.x + front.width) - max(box.x, front.x)
    height = min(box.y + box.height, front.y + front.height) - max(box.y, front.y)
    return max(0.0, width) * max(0.0, height) / (box.width * box.height)
