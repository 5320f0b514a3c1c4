"""One true-to-life example of every message, for tests to send and change."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from typing import Any

import numpy as np

from edgefer import messages
from edgefer.messages import FaceEvent, Frame, Health, Presence

DEVICE = "hall-pi"
BOOT_ID = "0f3c9a52"
TIME = datetime(2026, 11, 20, 14, 30, 12, 345678, tzinfo=timezone.utc)


def face_event(seq: int = 0, **changes: Any) -> FaceEvent:
    """Ada, happy, 3.2 seconds in view; `changes` replace fields."""
    event = FaceEvent(
        event="updated",
        device=DEVICE,
        camera="synthetic://",
        boot_id=BOOT_ID,
        seq=seq,
        time=TIME,
        clock_synced=True,
        track_id=f"{BOOT_ID}-7",
        track_age_s=3.2,
        frame=messages.FrameSize(640, 480),
        bbox=messages.PixelBox(212, 96, 128, 131),
        score=0.97,
        landmarks=((245.1, 141.7), (305.2, 141.0), (275.0, 175.5), (250.3, 205.9), (300.8, 205.1)),
        identity=messages.Identity("known", "Ada", 0.71, 0.29),
        emotion=messages.Emotion(
            "decided",
            "happy",
            0.92,
            {
                "angry": 0.01,
                "disgust": 0.0,
                "fear": 0.01,
                "happy": 0.92,
                "sad": 0.01,
                "surprise": 0.02,
                "neutral": 0.03,
            },
        ),
        quality=messages.Quality(face_px=128, sharpness=0.8, frontal=0.9),
        latency_ms=23.4,
    )
    return dataclasses.replace(event, **changes)


def presence(count: int = 1) -> Presence:
    """`count` times Ada in view."""
    face = messages.PresentFace(track_id=f"{BOOT_ID}-7", name="Ada", emotion="happy", since=TIME)
    return Presence(
        device=DEVICE,
        boot_id=BOOT_ID,
        time=TIME,
        count=count,
        known=("Ada",) * min(count, 1),
        unknown_count=0,
        undecided_count=0,
        faces=(face,) * count,
    )


def health(**changes: Any) -> Health:
    """A daemon with nothing to complain of."""
    report = Health(
        device=DEVICE,
        boot_id=BOOT_ID,
        time=TIME,
        uptime_s=86400,
        status="ok",
        problems=(),
        camera=messages.CameraHealth(status="ok", fps=29.9, dropped_frames=12, reopened=0),
        latency_ms=messages.Percentiles(p50=9.1, p95=14.0),
        stages_ms=messages.StageTimes(detect=4.0, embed=3.1, emotion=0.6),
        events=messages.EventCounts(published=812, replayed=3),
        temperature_c=61.2,
        throttled=False,
        memory_mb=96.4,
        clock_synced=True,
        versions=messages.Versions(edgefer="0.1.0", runtime="ai-edge-litert 2.3.0"),
        models=messages.ModelNames(detector="near 1", embedding="identity-112 1", emotion=None),
    )
    return dataclasses.replace(report, **changes)


def frame(captured_at: float, *, number: int = 0) -> Frame:
    """A small black picture, captured at a moment of the monotonic clock."""
    return Frame(np.zeros((4, 6, 3), np.uint8), number, captured_at, TIME, captured_at, "synthetic://")
