"""What the stages hand to each other, and what leaves the daemon: small frozen dataclasses.

Inside, a box is always in pixels of the full frame, an interval is in seconds of the monotonic clock, and a published
time is UTC. Everything from `PixelBox` down is published; its JSON is made, and its JSON Schema generated, by
`payload.py` from the annotations here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainSerializer, WithJsonSchema

Image = NDArray[np.uint8]
"""Pixels as OpenCV has them: height x width x 3, BGR, 0..255 (or height x width where a function says gray)."""

Point = tuple[float, float]
"""x and y in pixels of the frame."""

Landmarks = tuple[Point, Point, Point, Point, Point]
"""Left eye, right eye, nose, left and right corner of the mouth, as seen in the picture, in pixels of the frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture from a camera.

    `captured_at` is the monotonic clock at capture, for latencies; `time` the same moment in UTC, for people;
    `stream_s` the position in the stream in seconds, for everything that asks "how long" (a video file that is played
    faster than it was filmed still ages its tracks as filmed).
    """

    image: Image
    number: int
    captured_at: float
    time: datetime
    stream_s: float

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.image.shape[0])


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the full frame: x and y of the top left corner, width and height; fractions allowed."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> Point:
        """The middle of the box, in pixels."""
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def side(self) -> float:
        """The side of the square of the same area, in pixels: the size of the face."""
        return float((self.width * self.height) ** 0.5)

    def iou(self, other: Box) -> float:
        """Intersection over union with another box, 0..1."""
        width = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        height = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        if width <= 0 or height <= 0:
            return 0.0
        shared = width * height
        return shared / (self.width * self.height + other.width * other.height - shared)


@dataclass(frozen=True, slots=True)
class Detection:
    """A face found in one frame; `landmarks` is None where the detector has none."""

    box: Box
    score: float
    landmarks: Landmarks | None


@dataclass(frozen=True, slots=True)
class Track:
    """One face followed over frames: its latest detection, and since when and until when it was seen (stream seconds)."""

    track_id: str
    detection: Detection
    first_seen_s: float
    last_seen_s: float
    last_seen: datetime


def _milliseconds(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(digits: int) -> PlainSerializer:
    return PlainSerializer(lambda value: round(value, digits), return_type=float)


Time = Annotated[
    datetime, PlainSerializer(_milliseconds, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]
"""UTC, with milliseconds and a Z."""
Share = Annotated[float, Field(ge=0, le=1), _rounded(4)]
Cosine = Annotated[float, Field(ge=-1, le=1), _rounded(4)]
Seconds = Annotated[float, Field(ge=0), _rounded(3)]
Milliseconds = Annotated[float, _rounded(2)]
Pixel = Annotated[float, _rounded(2)]
Count = Annotated[int, Field(ge=0)]
PixelPoint = tuple[Pixel, Pixel]
