"""What the face detector learns from: augmented pictures, and what each cell of its grids should say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from data import Pack, open_pack
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.vision.preprocess import PADDING

Floats = NDArray[np.float32]
MIRRORED = [1, 0, 2, 4, 3]
"""The landmarks' order in a mirrored picture: its left eye was the right one."""

CLOSE_FACE = 24.0
"""Pixels of a picture; the landmarks of smaller faces are too coarse to learn more than where about they are."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sizes of faces are learnt.

    smallest_px (of the canvas): a smaller face is neither asked for nor held against the detector. zoomed_px: the least
    that a chosen face is brought to. shrunk: the least scale of a whole picture. close_ups: the share of canvases that
    are tiled with faces shown close, in at most `across` columns and rows. Of other canvases three of four hold one of
    24 to 128 px with landmarks, where these hold ten on average (18 in six columns at most): landmarks take many faces
    to learn, and no empty places. landmarks: what the loss of these weighs beside the score's.
    """

    smallest_px: float
    zoomed_px: float
    shrunk: float
    close_ups: float
    across: int
    landmarks: float


ALL_SIZES = Sizes(smallest_px=6, zoomed_px=8, shrunk=0.45, close_ups=0.2, across=4, landmarks=20)
NEAR_SIZES = Sizes(smallest_px=11, zoomed_px=14, shrunk=0.5, close_ups=0.35, across=6, landmarks=60)
"""What `near` is for: at 288 px a face of 32 px (in a picture of 400) has 23."""

TILT = 20.0
"""Degrees: how far a head leans (deviation), in half of the scenes where a face is brought to a size of its own."""

FACE_SIZES = {8: (0.0, 48.0), 16: (32.0, 128.0), 32: (88.0, np.inf)}
"""Stride -> the sizes of faces (pixels of the canvas) that its cells answer for; they overlap: none falls between."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture (BGR) and its faces.

    boxes n x 4 (left, top, right, bottom), points n x 5 x 2 (NaN where they aren't known), wanted n: a face to find;
    the others are doubtful, and the detector may say either.
    """

    image: Image
    boxes: Floats
    points: Floats
    wanted: NDArray[np.bool_]


class Scenes:
    """The pictures to train on: all of det_train and other packs, and the even half of faceboxes_dev several times."""

    def __init__(self, data: Path, people_repeats: int, more: Sequence[Path] = (), sizes: Sizes = ALL_SIZES) -> None:
        self.sizes = sizes
        photos = [(pack, _told(pack)) for pack in map(open_photos, (data / "det_train.npz", *more))]
        self._people = open_people(data)
        even = range(0, len(self._people), 2)  # the odd half validates, for ever
        self._all = [(pack, int(i)) for pack, told in photos for i in told]
        self.close = np.flatnonzero(np.concatenate([_has_close_face(pack)[told] for pack, told in photos]))
        """The numbers of those that hold a face with landmarks, large enough to be shown close."""
        self._all += [(self._people, i) for i in even] * people_repeats

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, i: int) -> Scene:
        pack, number = self._all[i]
        return people_scene(pack, number) if pack is self._people else photo_scene(pack, number)


def _told(pack: Pack) -> NDArray[np.intp]:
    """The pictures of which it is known what they hold: those with a face, and, where the pack says so, without."""
    if "negative" not in pack.fields:
        return np.arange(len(pack))
    return np.flatnonzero((pack.fields["negative"] != 0) | np.isin(np.arange(len(pack)), pack.fields["img"]))


def _has_close_face(pack: Pack) -> NDArray[np.bool_]:
    known = (pack.fields["ignore"] == 0) & np.isfinite(pack.fields["kps"]).all((1, 2))
    close = known & (sizes_of(pack.fields["box"]) >= CLOSE_FACE)
    return np.isin(np.arange(len(pack)), pack.fields["img"][close])


def open_photos(path: Path) -> Pack:
    """det_train, det_val, or what label_faces.py writes."""
    return _open(path, {"box": (4,), "img": (), "kps": (5, 2), "ignore": ()})


def open_people(data: Path) -> Pack:
    """faceboxes_dev."""
    return _open(data / "faceboxes_dev.npz", {"boxes": (4,), "box_image": ()})


def _open(path: Path, fields: dict[str, tuple[int, ...]]) -> Pack:
    """A pack with a row a face in each of these fields, of these shapes; the first tells how many they are."""
    pack = open_pack(path, *fields)
    faces = len(pack.fields[next(iter(fields))])
    for name, each in fields.items():
        if (shape := pack.fields[name].shape) != (faces, *each):
            raise InputError(f"{path}: {name} is {shape}, not {(faces, *each)} for {faces} faces; make the pack again")
    return pack


def photo_scene(pack: Pack, i: int) -> Scene:
    """Picture i of det_train or det_val; landmarks that all lie in one place aren't known."""
    mine = pack.fields["img"] == i
    boxes, points, ignored = (pack.fields[name][mine] for name in ("box", "kps", "ignore"))
    points = np.where(np.ptp(points, axis=1, keepdims=True).max(-1, keepdims=True) > 0, points, np.float32(np.nan))
    return Scene(pack.picture(i), boxes, points, ignored == 0)


def people_scene(pack: Pack, i: int) -> Scene:
    """Picture i of faceboxes_dev: boxes that people drew, without points."""
    boxes = pack.fields["boxes"][pack.fields["box_image"] == i].astype(np.float32)
    return Scene(pack.picture(i), boxes, np.full((len(boxes), 5, 2), np.nan, np.float32), np.ones(len(boxes), bool))


def sizes_of(boxes: Floats) -> Floats:
    """The side of the square of each box's area."""
    sizes: Floats = np.sqrt(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1))
    return sizes


def augmented(scenes: Scenes, i: int, width: int, height: int, rng: np.random.Generator) -> Scene:
    """A training canvas around picture i, mirrored, lit, spoilt: zoomed and cut, in a mosaic, or among close faces."""
    canvas = np.full((height, width, 3), PADDING if rng.random() < 0.7 else rng.integers(256, size=3), np.uint8)
    kind = rng.random()
    sizes = scenes.sizes
    close = kind < sizes.close_ups and len(scenes.close) > 0
    if close:
        across = int(rng.integers(2, sizes.across + 1))
        x, y = (np.linspace(0, side, across + 1).astype(int) for side in (width, height))
    elif kind < sizes.close_ups + 0.4 * (1 - sizes.close_ups):
        x, y = (np.array([0, round(side * rng.uniform(0.3, 0.7)), side]) for side in (width, height))
    else:
        x, y = np.array([0, width]), np.array([0, height])
    windows = [(*start, *end) for start, end in zip(product(x[:-1], y[:-1]), product(x[1:], y[1:]), strict=True)]
    shown = [i, *rng.choice(scenes.close if close else len(scenes), len(windows) - 1)]
    parts = [_paste(canvas, w, scenes[j], rng, sizes, close) for w, j in zip(windows, shown, strict=True)]
    boxes, points, wanted = (np.concatenate(together) for together in zip(*parts, strict=True))
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
        boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
        points = points[:, MIRRORED] * [-1, 1] + [width, 0]
    _cover(canvas := np.ascontiguousarray(canvas), boxes[wanted], rng)
    return Scene(_spoilt(canvas, rng), boxes.astype(np.float32), points.astype(np.float32), wanted)


Truth = tuple[Floats, Floats, NDArray[np.bool_]]


def _paste(
    canvas: Image,
    window: tuple[int, int, int, int],
    scene: Scene,
    rng: np.random.Generator,
    sizes: Sizes,
    close: bool,
) -> Truth:
    """Draw a scene into a window (left, top, right, bottom) of the canvas at a random scale; where its faces went."""
    left, top, right, bottom = window
    room = np.array([right - left, bottom - top])
    height, width = scene.image.shape[:2]
    scale, focus = _zoom(scene, room, rng, sizes, close)
    if focus is not None and rng.random() < 0.5:
        scene = turned(scene, rng.normal(0, TILT), focus)
    # The picture fills the window where it is larger, and lies within it where it is smaller.
    spare = room - np.array([width, height]) * scale
    offset = rng.uniform(np.minimum(spare, 0), np.maximum(spare, 0))
    if focus is not None:
        offset = np.clip(rng.uniform(0.25, 0.75, 2) * room - focus * scale, np.minimum(spare, 0), np.maximum(spare, 0))
    # Cut first, enlarge then; the true scale follows from whole pixels, so that the boxes stay exact.
    first = np.clip(np.floor(-offset / scale), 0, [width - 1, height - 1]).astype(int)
    last = np.clip(np.ceil((room - offset) / scale), first + 1, [width, height]).astype(int)
    cut = scene.image[first[1] : last[1], first[0] : last[0]]
    size = np.maximum(np.round((last - first) * scale), 1).astype(int)
    drawn = cv2.resize(cut, size.tolist(), interpolation=cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR)
    start = np.round(offset + first * scale).astype(int)
    inside = np.maximum(-start, 0)
    seen = np.minimum(size, room - start) - inside
    x, y = np.array([left, top]) + start + inside
    canvas[y : y + seen[1], x : x + seen[0]] = drawn[inside[1] : inside[1] + seen[1], inside[0] : inside[0] + seen[0]]

    ratio = size / (last - first)
    move = np.array([left, top]) + start - first * ratio
    boxes = scene.boxes * np.tile(ratio, 2) + np.tile(move, 2)
    points = scene.points * ratio + move
    visible = np.clip(boxes, [left, top] * 2, [right, bottom] * 2)
    share = (visible[:, 2:] - visible[:, :2]).prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
    there = share > 0.05
    # A box of less than half a face is no face to learn, nor proof that there is none.
    wanted = scene.wanted & (share > 0.5) & (sizes_of(boxes) >= sizes.smallest_px)
    shown = np.where(wanted[:, None], boxes, visible)  # what is doubtful here says nothing of the windows around
    return shown[there], points[there], wanted[there]


def _zoom(
    scene: Scene, room: NDArray[Any], rng: np.random.Generator, sizes: Sizes, close: bool
) -> tuple[float, NDArray[Any] | None]:
    """A scale for a scene, and the point to keep in view, if any.

    Half of the faces in the data are 8 to 16 px: often one face is brought to a size drawn evenly over the octaves,
    and to a third to most of its window where it is to be shown close.
    """
    chosen = np.flatnonzero(scene.wanted & (sizes_of(scene.boxes) >= (CLOSE_FACE if close else 0)))
    if len(chosen) and (close or rng.random() < 0.55):
        box = scene.boxes[rng.choice(chosen)]
        target = np.exp(rng.uniform(np.log(0.35 * room.min() if close else sizes.zoomed_px), np.log(0.9 * room.min())))
        scale = min(float(target / sizes_of(box[None])[0]), 5.0)
        return scale, (box[:2] + box[2:]) / 2
    return float(np.exp(rng.uniform(np.log(sizes.shrunk), np.log(1.7)))), None


def turned(scene: Scene, angle: float, about: Floats) -> Scene:
    """The scene turned by degrees (anticlockwise) about a point (x, y), in a picture of its size.

    Boxes are turned as the ellipses within them. A face that is half outside now is doubtful.
    """
    height, width = scene.image.shape[:2]
    matrix = cv2.getRotationMatrix2D(about.tolist(), angle, 1.0)
    pixels = matrix.copy()  # OpenCV counts from a pixel's middle, boxes and points from its corner
    pixels[:, 2] += pixels[:, :2].sum(1) * 0.5 - 0.5
    image = cv2.warpAffine(scene.image, pixels, (width, height), borderValue=(PADDING,) * 3)
    middles = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    half = np.sqrt(((scene.boxes[:, 2:] - scene.boxes[:, :2]) / 2) ** 2 @ matrix[:, :2].T ** 2)
    boxes = np.concatenate([middles - half, middles + half], 1)
    points = scene.points @ matrix[:, :2].T + matrix[:, 2]
    seen = np.clip(boxes, 0, [width, height] * 2)
    inside = (seen[:, 2:] - seen[:, :2]).prod(1) > 0.5 * (2 * half).prod(1)
    return Scene(np.asarray(image, np.uint8), boxes, points, scene.wanted & inside)


def _cover(image: Image, boxes: NDArray[Any], rng: np.random.Generator) -> None:
    """Now and then put something plain over the lower part of a face, as a mask, a hand or a scarf does."""
    for left, top, right, bottom in boxes:
        if rng.random() > 0.06:
            continue
        width, height = right - left, bottom - top
        x, y = left + width * rng.uniform(0.2, 0.8), top + height * rng.uniform(0.65, 1.0)
        axes = (max(1, round(width * rng.uniform(0.2, 0.5))), max(1, round(height * rng.uniform(0.1, 0.35))))
        colour = [int(v) for v in rng.integers(256, size=3)]
        cv2.ellipse(image, (round(x), round(y)), axes, rng.uniform(-30, 30), 0, 360, colour, -1, cv2.LINE_AA)


def _spoilt(image: Image, rng: np.random.Generator) -> Image:
    """The canvas under another light and through a worse camera."""
    if rng.random() < 0.05:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.2:
        image = _shrunk(image, rng) if rng.random() < 0.4 else _blurred(image, rng)
    dark = rng.random() < 0.1
    if dark or rng.random() < 0.7:
        low, high = (0.15, 0.5) if dark else (0.6, 1.4)
        gains = rng.uniform(low, high) * rng.uniform(0.85, 1.15, 3)
        gamma, lift = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(-20, 20)
        levels = np.arange(256)[:, None] / 255
        table = np.clip(levels**gamma * 255 * gains + lift, 0, 255).astype(np.uint8)
        image = cv2.LUT(image, table[:, None])
    if dark or rng.random() < 0.1:
        noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 14)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return image


def _shrunk(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    share = rng.uniform(0.4, 0.9)
    small = cv2.resize(image, (round(width * share), round(height * share)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _blurred(image: Image, rng: np.random.Generator) -> Image:
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.5))
    length = int(rng.integers(3, 8))
    kernel = np.zeros((length, length), np.float32)
    angle, middle = rng.uniform(0, np.pi), (length - 1) / 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * middle
    start, end = np.round(middle - reach).astype(int), np.round(middle + reach).astype(int)
    cv2.line(kernel, start.tolist(), end.tolist(), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


TARGETS = 16
"""Columns of what a cell should say: 0 whether it answers for a face (1 yes, 0 no, -1 either), 1 to 4 the sides and
5 to 14 the landmarks as the network gives them, 15 the weight of an error in the landmarks (1 / the face's size, in
strides; 0 where they aren't known)."""


def targets(scene: Scene, cells: Floats) -> Floats:
    """What each cell (n x 3: middle x, y and stride) should say about a scene: n x TARGETS.

    A cell answers for a face of its stride's sizes whose middle is near: the nearest one, measured in faces' sizes.
    """
    wanted = np.zeros((len(cells), TARGETS), np.float32)
    middles, strides = cells[:, :2], cells[:, 2]
    doubtful = scene.boxes[~scene.wanted]
    reach = (doubtful[:, 2:] - doubtful[:, :2])[:, None] / 2
    away = np.abs((doubtful[:, :2] + doubtful[:, 2:])[:, None] / 2 - middles)
    wanted[(away < np.maximum(reach, 0.75 * strides[:, None])).all(-1).any(0), 0] = -1
    boxes, points = scene.boxes[scene.wanted], scene.points[scene.wanted]
    if not len(boxes):
        return wanted

    sizes = sizes_of(boxes)[:, None]
    away = np.abs((boxes[:, :2] + boxes[:, 2:])[:, None] / 2 - middles).max(-1)
    limits = np.array(list(FACE_SIZES.values()))[np.searchsorted(list(FACE_SIZES), strides)]
    near = away < np.clip(0.3 * sizes, 0.75 * strides, 1.5 * strides)
    distance = np.where(near & (sizes >= limits[:, 0]) & (sizes < limits[:, 1]), away / sizes, np.inf)
    face = distance.argmin(0)
    cell = np.flatnonzero(np.isfinite(distance.min(0)))
    face, middle, stride = face[cell], middles[cell], strides[cell, None]
    offsets = (points[face] - middle[:, None]) / stride[:, None]
    known = np.isfinite(offsets).all((1, 2))
    wanted[cell, 0] = 1
    wanted[cell, 1:3] = (middle - boxes[face, :2]) / stride
    wanted[cell, 3:5] = (boxes[face, 2:] - middle) / stride
    wanted[cell, 5:15] = np.where(known[:, None], offsets.reshape(-1, 10), 0)
    wanted[cell, 15] = np.where(known, stride[:, 0] / sizes[face, 0], 0)
    return wanted
