"""How the daemon does: measured as it runs, told every ten seconds and at each change of a status."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, ParamSpec, TypeVar

import numpy as np

from edgefer import __version__, machine
from edgefer.latest import CameraState
from edgefer.messages import (
    CameraHealth,
    EventCounts,
    Frame,
    Health,
    ModelNames,
    Percentiles,
    Problem,
    StageTimes,
    Versions,
)
from edgefer.report import Origin
from edgefer.sinks import SinkState

EVERY_S = 10.0
_WINDOW = 300
"""Latencies and times that a percentile is taken of: ten seconds at 30 frames a second."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run came to: frames, seconds from the first to the last of them, and their latencies."""

    frames: int
    seconds: float
    latency_ms: Percentiles


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Stopwatch:
    """Times the calls of stages, in milliseconds."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def timed(self, name: str, stage: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The same stage, each call of which is timed under a name."""
        times = self._times.setdefault(name, deque(maxlen=_WINDOW))

        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            start = time.perf_counter()
            try:
                return stage(*args, **kwargs)
            finally:
                times.append((time.perf_counter() - start) * 1000)

        return call

    def percentile(self, name: str, percent: float) -> float | None:
        """One percentile of a stage's times, None before its first call."""
        return percentile(self._times.get(name, ()), percent)


def percentile(values: Iterable[float], percent: float) -> float | None:
    """One percentile, None of no values."""
    listed = list(values)
    return float(np.percentile(listed, percent)) if listed else None


class HealthMonitor:
    """Gathers what `health` tells."""

    def __init__(
        self,
        origin: Origin,
        models: ModelNames,
        runtime: str,
        stopwatch: Stopwatch,
        gallery_problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._gallery_problem = gallery_problem
        self._origin = origin
        self._models = models
        self._versions = Versions(edgefer=__version__, runtime=runtime)
        self._stopwatch = stopwatch
        self._started_s = time.monotonic()
        self._told_s = float("-inf")
        self._told: set[tuple[str, str]] | None = None
        self._problems: dict[tuple[str, str], Problem] = {}
        self._latencies: deque[float] = deque(maxlen=_WINDOW)
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._first_s: float | None = None
        self._last_s = 0.0
        self._frames = 0

    def frame_done(self, frame: Frame) -> None:
        """Note that a frame went through all stages."""
        self._last_s = time.monotonic()
        self._first_s = self._last_s if self._first_s is None else self._first_s
        self._frames += 1
        self._recent.append(self._last_s)
        self._latencies.append((self._last_s - frame.captured_at) * 1000)

    def totals(self) -> Totals:
        """What the run has come to so far."""
        seconds = 0.0 if self._first_s is None else self._last_s - self._first_s
        return Totals(self._frames, seconds, self._latency())

    def due(self, camera: CameraState, sinks: Sequence[SinkState]) -> Health | None:
        """The health, when it is time to tell it or a problem came or went."""
        self._note_problems(camera, sinks)
        now_s = time.monotonic()
        if set(self._problems) == self._told and now_s - self._told_s < EVERY_S:
            return None
        self._told, self._told_s = set(self._problems), now_s
        return self._health(camera, sinks, now_s)

    def _note_problems(self, camera: CameraState, sinks: Sequence[SinkState]) -> None:
        found: list[tuple[Literal["camera", "broker", "stdout", "gallery"], str, str]] = []
        if camera.problem:
            found.append(("camera", "lost", camera.problem))
        found += [(sink.part, "undelivered", sink.problem) for sink in sinks if sink.problem]
        if gallery_problem := self._gallery_problem():
            found.append(("gallery", "unreadable", gallery_problem))
        now, former = datetime.now(timezone.utc), self._problems
        self._problems = {
            (part, code): Problem(
                part=part,
                code=code,
                since=former[part, code].since if (part, code) in former else now,
                message=message,
            )
            for part, code, message in found
        }

    def _health(self, camera: CameraState, sinks: Sequence[SinkState], now_s: float) -> Health:
        return Health(
            device=self._origin.device,
            boot_id=self._origin.boot_id,
            time=datetime.now(timezone.utc),
            uptime_s=now_s - self._started_s,
            status="failed" if camera.problem else "degraded" if self._problems else "ok",
            problems=tuple(self._problems.values()),
            camera=CameraHealth(
                status="lost" if camera.problem else "ok",
                fps=self._fps(now_s),
                dropped_frames=camera.dropped_frames,
                reopened=camera.reopened,
            ),
            latency_ms=self._latency(),
            stages_ms=StageTimes(
                detect=self._stopwatch.percentile("detect", 50),
                embed=self._stopwatch.percentile("embed", 50),
                emotion=self._stopwatch.percentile("emotion", 50),
            ),
            events=sinks[0].events if sinks else EventCounts(),
            temperature_c=machine.temperature_c(),
            throttled=machine.is_throttled(),
            memory_mb=machine.memory_mb(),
            clock_synced=machine.is_clock_synced(),
            versions=self._versions,
            models=self._models,
        )

    def _latency(self) -> Percentiles:
        return Percentiles(p50=percentile(self._latencies, 50), p95=percentile(self._latencies, 95))

    def _fps(self, now_s: float) -> float:
        recent = [done_s for done_s in self._recent if now_s - done_s <= EVERY_S]
        return len(recent) / max(now_s - recent[0], 1e-3) if len(recent) > 1 else 0.0
