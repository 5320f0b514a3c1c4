"""The daemon's loop, on a camera that comes and goes."""

from dataclasses import dataclass
from datetime import datetime, timezone
from unittest.mock import Mock

import numpy as np

from edgefer import machine
from edgefer.cameras import EndOfStream
from edgefer.latest import CameraState
from edgefer.messages import Box, Detection, Frame
from edgefer.pipeline import Pipeline
from edgefer.service import watch
from edgefer.tracker import CONFIRM_HITS, Tracker

START = datetime(2026, 11, 20, tzinfo=timezone.utc)


@dataclass
class Camera:
    """One that gives these frames; None is a lost camera."""

    frames: list[Frame | None]
    state: CameraState | None = None

    def next(self, timeout_s: float) -> Frame | None:
        if not self.frames:
            raise EndOfStream
        frame = self.frames.pop(0)
        self.state = CameraState("no picture" if frame is None else None, 0, 0)
        return frame


def frame(stream_s: float) -> Frame:
    return Frame(np.zeros((48, 64, 3), np.uint8), 0, stream_s, START, stream_s, "synthetic://")


def test_whoever_was_seen_once_before_the_camera_was_lost_is_not_who_comes_after(tmp_path):
    before = [frame(n / 10) for n in range(CONFIRM_HITS - 1)]
    after = [frame(600 + n / 10) for n in range(CONFIRM_HITS)]
    followed: list[int] = []

    def rate(_, tracks):
        followed.append(len(tracks))
        return []

    report = Mock(return_value=[], count=0)
    face = Detection(Box(10, 10, 20, 20), 0.9, None)
    pipeline = Pipeline(lambda _: [face], Tracker("b00t"), rate, None, None, report)
    health = Mock(due=Mock(return_value=None))
    watch(
        Camera([*before, None, *after]),  # type: ignore[arg-type]
        pipeline,
        None,
        health,
        [],
        Mock(),
        lambda: machine.read_state(tmp_path),
        Mock(asked_by=None),
    )
    assert followed == [0] * (2 * CONFIRM_HITS - 2) + [1]
