"""From what the faces are to what is told: a face appeared, changed, or left; and who is in view."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Literal

from edgefer.messages import (
    Box,
    Face,
    FaceEvent,
    Frame,
    FrameSize,
    Identity,
    Landmarks,
    Message,
    PixelBox,
    PixelPoint,
    Presence,
    PresentFace,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """What every message says of the daemon: the device's name, and this start of it."""

    device: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A face that was told of: how it was when last seen, where, and when it was last told."""

    face: Face
    camera: str
    size: FrameSize
    told: Face
    told_s: float


class Reporter:
    """Turns the faces of each frame into events, and into the presence where that changed."""

    def __init__(self, origin: Origin, interval_s: float, clock_synced: Callable[[], bool]) -> None:
        self._origin = origin
        self._interval_s = interval_s
        self._clock_synced = clock_synced
        self._seq = 0
        self._known: dict[str, _Known] = {}
        self._told = self.presence(datetime.now(timezone.utc))

    def __call__(self, frame: Frame, faces: Sequence[Face]) -> list[Message]:
        """The events of a frame, and the presence after it where it changed."""
        here = {face.track.track_id for face in faces}
        events = [
            self._left(track_id, frame.time, frame.captured_at) for track_id in [*self._known] if track_id not in here
        ]
        for face in faces:
            event = self._appeared_or_updated(frame, face)
            events += [event] if event else []
        now = self.presence(frame.time)
        return [*events] if now == replace(self._told, time=frame.time) else [*events, self._tell(now)]

    @property
    def count(self) -> int:
        """How many people are in view."""
        return len(self._known)

    def end(self) -> list[Message]:
        """Everybody left: the camera is lost, or the daemon stops. Presence is told in any case."""
        now, now_s = datetime.now(timezone.utc), time.monotonic()
        left = [self._left(track_id, now, now_s) for track_id in [*self._known]]
        return [*left, self._tell(self.presence(now))]

    def forget(self, names: frozenset[str]) -> None:
        """Name these people no more, in what is still to be told of those who were in view."""
        for track_id, known in self._known.items():
            if known.face.identity.name in names:
                self._known[track_id] = replace(known, face=replace(known.face, identity=Identity("unknown")))

    def presence(self, now: datetime) -> Presence:
        """Who is in view."""
        faces = tuple(self._present(known.face) for known in self._known.values())
        identities = [known.face.identity for known in self._known.values()]
        return Presence(
            device=self._origin.device,
            boot_id=self._origin.boot_id,
            time=now,
            count=len(faces),
            known=tuple(sorted({identity.name for identity in identities if identity.name})),
            unknown_count=sum(identity.status == "unknown" for identity in identities),
            undecided_count=sum(identity.status in ("undecided", "off") for identity in identities),
            faces=faces,
        )

    def _tell(self, presence: Presence) -> Presence:
        self._told = presence
        return presence

    @staticmethod
    def _present(face: Face) -> PresentFace:
        track = face.track
        return PresentFace(
            track_id=track.track_id, name=face.identity.name, emotion=face.emotion.label, since=track.first_seen
        )

    def _appeared_or_updated(self, frame: Frame, face: Face) -> FaceEvent | None:
        track_id = face.track.track_id
        known = self._known.get(track_id)
        if known and face.track.last_seen_s < frame.stream_s:
            return None  # not found in this frame: nothing new to tell
        size = FrameSize(frame.width, frame.height)
        if known and _outcome(known.told) == _outcome(face) and frame.stream_s - known.told_s < self._interval_s:
            self._known[track_id] = replace(known, face=face, camera=frame.camera, size=size)
            return None
        self._known[track_id] = now = _Known(face, frame.camera, size, face, frame.stream_s)
        return self._event("updated" if known else "appeared", now, frame.time, frame.captured_at)

    def _left(self, track_id: str, now: datetime, now_s: float) -> FaceEvent:
        return self._event("left", self._known.pop(track_id), now, now_s)

    def _event(
        self, event: Literal["appeared", "updated", "left"], known: _Known, now: datetime, now_s: float
    ) -> FaceEvent:
        face, track, size = known.face, known.face.track, known.size
        self._seq += 1
        if event != "updated":
            # By track: a name is for the broker, not for a log that is kept for months.
            fields = {"EDGEFER_TRACK": track.track_id, "EDGEFER_PEOPLE": self.count, "EDGEFER_CAMERA": known.camera}
            log.info("a face %s; %d in view", event, self.count, extra=fields)
        return FaceEvent(
            event=event,
            device=self._origin.device,
            camera=known.camera,
            boot_id=self._origin.boot_id,
            seq=self._seq,
            time=now,
            clock_synced=self._clock_synced(),
            track_id=track.track_id,
            track_age_s=track.last_seen_s - track.first_seen_s,
            last_seen=track.last_seen if event == "left" else None,
            frame=size,
            bbox=pixel_box(track.detection.box, size.width, size.height),
            score=track.detection.score,
            landmarks=pixel_points(track.detection.landmarks),
            identity=face.identity,
            emotion=face.emotion,
            quality=face.quality,
            latency_ms=max(0.0, time.monotonic() - now_s) * 1000,
        )


def _outcome(face: Face) -> tuple[str | None, ...]:
    """What makes a face worth telling again at once."""
    return face.identity.status, face.identity.name, face.emotion.status, face.emotion.label


def pixel_box(box: Box, width: int, height: int) -> PixelBox:
    """The box in whole pixels, inside a frame of this size."""
    left, top = min(max(0, round(box.x)), width - 1), min(max(0, round(box.y)), height - 1)
    right, bottom = min(round(box.x + box.width), width), min(round(box.y + box.height), height)
    return PixelBox(left, top, max(1, right - left), max(1, bottom - top))


def pixel_points(landmarks: Landmarks | None) -> tuple[PixelPoint, ...] | None:
    """The landmarks as published."""
    return None if landmarks is None else tuple(landmarks)
