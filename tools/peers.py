"""Public networks to compare ours with, to label pictures by and to learn from; none is part of edgefer.

SCRFD through ncnn and YuNet through OpenCV take the same `pictures -> [Detection]` as edgefer's own detectors, and a
MobileFaceNet through ncnn the same aligned faces as its embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.messages import Box, Detection, Image, Landmarks
from edgefer.vision.detector import MAX_IOU, suppress
from edgefer.vision.preprocess import letterbox

Detect = Callable[[Image], list[Detection]]
PARAMETERS = {"SCRFD-2.5g": 820_000, "SCRFD-500m": 570_000, "YuNet": 75_856}
"""As their authors tell: SCRFD's README of the models with points, YuNet's paper (Wu et al. 2023)."""
YUNET, SCRFD = Path("peers/yunet_n_640_640.onnx"), Path("peers/scrfd_2.5g_kps")
"""The peers that label, in the folder of the research data."""
TEACHER = Path("peers/honghu_mobilefacenet")
"""The one that teaches there: of two, whose answers a face's light and alignment move less (models/MODELS.md)."""
DAMAGED = "it can't be loaded; is it whole? get the research data's peers again"


def peers(data: Path, side: int, min_score: float) -> dict[str, Detect]:
    """Every peer in the folder of the research data, by name, each given pictures with this long side."""
    return {
        "SCRFD-2.5g": Scrfd(data / SCRFD, side, min_score),
        "SCRFD-500m": Scrfd(data / "peers/scrfd_500m_kps", side, min_score),
        "YuNet": YuNet(data / YUNET, side, min_score),
    }


class Scrfd:
    """SCRFD (Guo et al. 2021): two anchors a cell on three grids; sides and points in strides from its corner.

    `side` is a multiple of 32.
    """

    def __init__(self, model: Path, side: int, min_score: float) -> None:
        self._net, self._side, self._min_score = ncnn_network(model), side, min_score

    def __call__(self, image: Image) -> list[Detection]:
        """The faces of a picture (BGR), best first, in pixels of the picture."""
        square, scale = letterbox(image, self._side, self._side)
        rgb = cv2.cvtColor(square, cv2.COLOR_BGR2RGB).astype(np.float32).transpose(2, 0, 1)
        pixels = np.ascontiguousarray((rgb - 127.5) / 128)  # ncnn reads it where it lies
        extractor = self._net.create_extractor()
        extractor.input("input.1", ncnn().Mat(pixels))
        found = [self._grid(extractor, stride) for stride in (8, 16, 32)]
        scores, boxes, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = suppress(scores, boxes, MAX_IOU)
        return [detection(image, boxes[i] / scale, points[i] / scale, float(scores[i])) for i in kept]

    def _grid(self, extractor: Any, stride: int) -> tuple[Any, Any, Any]:
        # Anchors x cells; then, for each anchor, 4 sides or 10 coordinates x cells.
        score, sides, points = (np.array(extractor.extract(f"{name}_{stride}")[1]) for name in ("score", "bbox", "kps"))
        y, x = np.mgrid[0 : score.shape[1], 0 : score.shape[2]] * stride
        corners = np.broadcast_to(np.stack([x, y], -1)[None], (2, *x.shape, 2)).reshape(-1, 1, 2)
        score = score.reshape(-1)
        chosen = score >= self._min_score
        sides = sides.reshape(2, 4, -1).transpose(0, 2, 1).reshape(-1, 2, 2)[chosen] * stride
        points = points.reshape(2, 10, -1).transpose(0, 2, 1).reshape(-1, 5, 2)[chosen] * stride
        corners = corners[chosen]
        boxes = (corners + sides * [[-1], [1]]).reshape(-1, 4)
        return score[chosen], boxes.astype(np.float32), (corners + points).astype(np.float32)


class YuNet:
    """YuNet (Wu et al. 2023), OpenCV's FaceDetectorYN."""

    def __init__(self, model: Path, side: int, min_score: float) -> None:
        self._side = side
        try:
            self._detector = cv2.FaceDetectorYN.create(str(peer(model)), "", (side, side), min_score, MAX_IOU)
        except cv2.error as error:
            raise InputError(f"{model}: {DAMAGED}") from error

    def __call__(self, image: Image) -> list[Detection]:
        """The faces of a picture (BGR), best first, in pixels of the picture."""
        square, scale = letterbox(image, self._side, self._side)
        _, rows = self._detector.detect(square)
        if rows is None:
            return []  # type: ignore[unreachable]  # OpenCV's types say so, and are wrong
        # A row is x, y, width, height, the five points, the score.
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1) / scale
        points = rows[:, 4:14].reshape(-1, 5, 2) / scale
        found = zip(boxes, points, rows[:, 14], strict=True)
        return [detection(image, box, five, float(score)) for box, five, score in found]


class MobileFaceNet:
    """MobileFaceNet (Chen et al. 2018), as somebody trained it: LFW 99.4 %."""

    def __init__(self, model: Path) -> None:
        self._net = ncnn_network(model)

    def __call__(self, face: Image) -> NDArray[np.float32]:
        """128 values for an aligned face, 112x112 x BGR; their direction says who it is."""
        height, width = face.shape[:2]
        pixels = np.ascontiguousarray(face)  # ncnn reads it where it lies
        extractor = self._net.create_extractor()
        mat = ncnn().Mat
        extractor.input("data", mat.from_pixels(pixels, mat.PixelType.PIXEL_BGR2RGB, width, height))
        return np.array(extractor.extract("fc1")[1])


def ncnn() -> Any:
    """The module of the runtime for two of the three; InputError where it isn't installed."""
    try:
        import ncnn as runtime  # noqa: PLC0415  # YuNet does without
    except ImportError as error:
        raise InputError("ncnn isn't installed, which runs SCRFD and MobileFaceNet: pip install '.[train]'") from error
    return runtime


def ncnn_network(model: Path) -> Any:
    """The network of `model`.param and `model`.bin, on one thread: several for one small picture mostly wait."""
    network = ncnn().Net()
    network.opt.num_threads = 1
    param, weights = (peer(model.with_name(model.name + end)) for end in (".param", ".bin"))
    for path, load in ((param, network.load_param), (weights, network.load_model)):
        if load(str(path)) != 0:
            raise InputError(f"{path}: {DAMAGED}")
    return network


def peer(path: Path) -> Path:
    """The path of a peer's file; InputError where it isn't there."""
    if not path.is_file():
        raise InputError(f"{path} isn't there; name the folder of the research data with --data")
    return path


def detection(image: Image, box: Any, points: Any, score: float) -> Detection:
    """A detection from left, top, right, bottom and five points (x, y) in pixels of a picture.

    The box ends at the picture's edge, as our own and those that people draw do.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = (float(side) for side in box.clip(0, (width, height, width, height)))
    landmarks = cast("Landmarks", tuple((float(x), float(y)) for x, y in points))
    return Detection(Box(left, top, right - left, bottom - top), score, landmarks)
