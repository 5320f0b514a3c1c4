"""The product in one loop: a frame comes in, faces are found, followed, named and read, and events go out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgefer.messages import Detection, Face, Frame, Image, Message, Track
from edgefer.report import Reporter
from edgefer.tracker import Tracker

Detect = Callable[[Image], Sequence[Detection]]
RateFaces = Callable[[Frame, Sequence[Track]], Sequence[Face]]
DescribeFaces = Callable[[Frame, Sequence[Face]], Sequence[Face]]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages, in order; identity and emotion are None where they are off."""

    detect: Detect
    track: Tracker
    rate: RateFaces
    identify: DescribeFaces | None
    read_emotions: DescribeFaces | None
    report: Reporter

    def __call__(self, frame: Frame) -> list[Message]:
        """What there is to tell after this frame."""
        detections = self.detect(frame.image)
        tracks = self.track(frame, detections)
        faces = self.rate(frame, tracks)
        if self.identify:
            faces = self.identify(frame, faces)
        if self.read_emotions:
            faces = self.read_emotions(frame, faces)
        return self.report(frame, faces)

    def end(self) -> list[Message]:
        """What there is to tell when no more frames come: everybody left."""
        self.track.reset()
        return self.report.end()
