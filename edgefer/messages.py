"""What the stages hand to each other, and what leaves the daemon: small frozen dataclasses.

Inside, a box is always in pixels of the full frame, an interval is in seconds of the monotonic clock, and a published
time is UTC. Everything from `PixelBox` down is published; its JSON is made, and its JSON Schema generated, by
`payload.py` from the annotations here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import Field, PlainSerializer, WithJsonSchema

Image = NDArray[Any]  # OpenCV's own types know no fixed dtype
"""Pixels as OpenCV has them: height x width x 3, BGR, 0..255 (or height x width where a function says gray)."""

Point = tuple[float, float]
"""x and y in pixels of the frame."""

Landmarks = tuple[Point, Point, Point, Point, Point]
"""Left eye, right eye, nose, left and right corner of the mouth, as seen in the picture, in pixels of the frame."""


def _milliseconds(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(digits: int, ge: float | None = None, le: float | None = None) -> PlainSerializer:
    return PlainSerializer(lambda value: round(value, digits), return_type=Annotated[float, Field(ge=ge, le=le)])


Time = Annotated[
    datetime, PlainSerializer(_milliseconds, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]
"""UTC, with milliseconds and a Z."""
Share = Annotated[float, _rounded(4, ge=0, le=1)]
Similarity = Annotated[float, _rounded(4, ge=-1, le=1)]
Seconds = Annotated[float, _rounded(3, ge=0)]
Milliseconds = Annotated[float, _rounded(2)]
Pixel = Annotated[float, _rounded(2)]
Count = Annotated[int, Field(ge=0)]
PixelPoint = tuple[Pixel, Pixel]


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
    camera: str
    """The camera's URI without credentials and query."""

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
    """One face followed over frames: its latest detection, when it was first and last seen (stream time and UTC)."""

    track_id: str
    detection: Detection
    first_seen_s: float
    first_seen: datetime
    last_seen_s: float
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class PixelBox:
    """A box as published: whole pixels of the frame, inside it."""

    x: Count
    y: Count
    width: Count
    height: Count


@dataclass(frozen=True, slots=True)
class FrameSize:
    """The size of the frame that a box refers to, in pixels."""

    width: Count
    height: Count


@dataclass(frozen=True, slots=True)
class Identity:
    """Who it is. Only a known person has a name; similarity and margin say how sure that is."""

    status: Literal["known", "unknown", "undecided", "off"]
    name: str | None = None
    similarity: Similarity | None = None
    margin: Annotated[float, _rounded(4)] | None = None


@dataclass(frozen=True, slots=True)
class Emotion:
    """What the face shows. Only a decided emotion has a label; the scores of all labels sum to 1."""

    status: Literal["decided", "uncertain", "undecided", "off"]
    label: str | None = None
    confidence: Share | None = None
    scores: dict[str, Share] | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """How well the face can be seen: its side in pixels, how sharp and how frontal it is (0..1, null if not known).

    A face that the picture's edge cuts off counts as less frontal by the share that is lost.
    """

    face_px: Count
    sharpness: Share
    frontal: Share | None

    @property
    def weight(self) -> float:
        """How much a reading of this face counts, 0..1: a large, sharp, frontal face says most."""
        # From 80 px on, more pixels tell neither model more: their inputs are 48 and 112 px of a wider crop.
        return min(1.0, self.face_px / 80) * self.sharpness * (1.0 if self.frontal is None else self.frontal)


@dataclass(frozen=True, slots=True)
class Face:
    """A tracked face, and what several frames together say about it; a stage that is off says nothing."""

    track: Track
    quality: Quality
    identity: Identity = Identity("off")
    emotion: Emotion = Emotion("off")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceReading:
    """A face of one picture, decided on that picture alone: what `edgefer analyze` prints."""

    bbox: PixelBox
    score: Share
    landmarks: tuple[PixelPoint, ...] | None
    identity: Identity
    emotion: Emotion
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureReading:
    """A picture or video frame with its faces: one line of `edgefer analyze --json`. `time_s` is null for a picture."""

    file: str
    time_s: Seconds | None
    width: Count
    height: Count
    faces: tuple[FaceReading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceEvent:
    """One face came into view, changed, or left. docs/mqtt.md explains every field."""

    schema: Literal["edgefer.face/1"] = "edgefer.face/1"
    event: Literal["appeared", "updated", "left"]
    device: str
    camera: str
    boot_id: str
    seq: Count
    time: Time
    clock_synced: bool
    replayed: bool = False
    track_id: str
    track_age_s: Seconds
    last_seen: Time | None = None
    frame: FrameSize
    bbox: PixelBox
    score: Share
    landmarks: tuple[PixelPoint, ...] | None
    identity: Identity
    emotion: Emotion
    quality: Quality
    latency_ms: Milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentFace:
    """A face in view: its name if it is known, its emotion if one is decided, and since when it is in view."""

    track_id: str
    name: str | None
    emotion: str | None
    since: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Who is in view now."""

    schema: Literal["edgefer.presence/1"] = "edgefer.presence/1"
    device: str
    boot_id: str
    time: Time
    count: Count
    known: tuple[str, ...]
    unknown_count: Count
    undecided_count: Count
    faces: tuple[PresentFace, ...]


Part = Literal["camera", "broker", "stdout", "gallery", "machine"]
ProblemCode = Literal[
    "lost",
    "frozen",
    "dark",
    "slow",
    "undelivered",
    "unreadable",
    "hot",
    "throttled",
    "memory",
    "disk",
    "unstored",
    "clock",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that needs a person, or time: which part, a code to match on, since when, and what to do.

    docs/problems.md tells what each means.
    """

    part: Part
    code: ProblemCode
    since: Time
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraHealth:
    """How the camera does; `fps` counts the frames that were processed in the last seconds."""

    status: Literal["ok", "lost", "frozen", "dark"]
    fps: Annotated[float, _rounded(1, ge=0)]
    dropped_frames: Count
    reopened: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Capture to the end of the pipeline, in milliseconds, over the last 300 frames; null before the first."""

    p50: Milliseconds | None
    p95: Milliseconds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """The median time of a call of each stage, in milliseconds; null before the first."""

    detect: Milliseconds | None
    embed: Milliseconds | None
    emotion: Milliseconds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCounts:
    """What became of the face events of this boot, and of those of earlier ones that still waited.

    They were acknowledged by the broker (some of them late), wait, or were given up: too old, or too many or refused.
    """

    published: Count = 0
    waiting: Count = 0
    replayed: Count = 0
    expired: Count = 0
    dropped: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The software that runs."""

    edgefer: str
    runtime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNames:
    """Name and version of each model; null where the stage is off."""

    detector: str
    embedding: str | None
    emotion: str | None

    def __str__(self) -> str:
        return ", ".join(name for name in (self.detector, self.embedding, self.emotion) if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the daemon does: `degraded` still reports faces, `failed` can't."""

    schema: Literal["edgefer.health/1"] = "edgefer.health/1"
    device: str
    boot_id: str
    time: Time
    uptime_s: Annotated[float, _rounded(1, ge=0)]
    status: Literal["ok", "degraded", "failed"]
    problems: tuple[Problem, ...]
    camera: CameraHealth
    latency_ms: Percentiles
    stages_ms: StageTimes
    events: EventCounts
    temperature_c: Annotated[float, _rounded(1)] | None
    throttled: bool | None
    memory_mb: Annotated[float, _rounded(1, ge=0)]
    clock_synced: bool
    versions: Versions
    models: ModelNames


Message = FaceEvent | Presence | Health
"""What a sink is handed."""
