"""How the daemon does: measured as it runs, told every ten seconds and at each change of a status."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, ParamSpec, TypeVar

import numpy as np

from edgefer import __version__
from edgefer.latest import CameraState
from edgefer.machine import MachineState
from edgefer.messages import (
    CameraHealth,
    EventCounts,
    Frame,
    Health,
    ModelNames,
    Part,
    Percentiles,
    Problem,
    ProblemCode,
    StageTimes,
    Versions,
)
from edgefer.problems import LEAST_DISK_MB, LEAST_MEMORY_MB, kind
from edgefer.report import Origin
from edgefer.sinks import SinkState

log = logging.getLogger(__name__)

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


_LOGGED_HERE = ("memory", "disk", "clock")
"""Every other problem is logged where it is found."""
Found = tuple[Part, ProblemCode, str]
"""A problem's part and code, and what to tell of it."""


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
        self._told: set[tuple[Part, ProblemCode]] | None = None
        self._problems: dict[tuple[Part, ProblemCode], Problem] = {}
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

    def summary(self, people: int) -> str:
        """How the daemon does, in a line for people."""
        parts = [
            f"{people} {'person' if people == 1 else 'people'} in view, {self._fps(time.monotonic()):.1f} frames/s"
        ]
        parts += [f"{p.part} {p.code}: {p.message}" for p in self._problems.values()]
        return "; ".join(parts)

    def due(
        self,
        camera: CameraState,
        sinks: Sequence[SinkState],
        machine: MachineState,
        slowed_by: Literal["hot", "throttled"] | None = None,
    ) -> Health | None:
        """The health, when it is time to tell it or a problem came or went.

        `slowed_by` is why fewer frames are looked at now.
        """
        found = [*_problems(camera, sinks, self._gallery_problem()), *machine_problems(machine, slowed_by)]
        self._note_problems(found)
        now_s = time.monotonic()
        if set(self._problems) == self._told and now_s - self._told_s < EVERY_S:
            return None
        self._told, self._told_s = set(self._problems), now_s
        return self._health(camera, sinks, machine, now_s)

    def _note_problems(self, found: Sequence[Found]) -> None:
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
        for (part, code), problem in self._problems.items():
            if (part, code) not in former and code in _LOGGED_HERE:
                level = logging.INFO if kind(part, code).status == "ok" else logging.WARNING
                log.log(level, "%s", problem.message, extra={"EDGEFER_CODE": code})

    def _health(self, camera: CameraState, sinks: Sequence[SinkState], machine: MachineState, now_s: float) -> Health:
        statuses = {kind(problem.part, problem.code).status for problem in self._problems.values()}
        return Health(
            device=self._origin.device,
            boot_id=self._origin.boot_id,
            time=datetime.now(timezone.utc),
            uptime_s=now_s - self._started_s,
            status=next((status for status in ("failed", "degraded") if status in statuses), "ok"),
            problems=tuple(self._problems.values()),
            camera=CameraHealth(
                status="ok" if camera.problem is None or camera.code == "slow" else camera.code,
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
            temperature_c=machine.temperature_c,
            throttled=machine.throttled,
            memory_mb=machine.memory_mb,
            clock_synced=machine.clock_synced,
            versions=self._versions,
            models=self._models,
        )

    def _latency(self) -> Percentiles:
        return Percentiles(p50=percentile(self._latencies, 50), p95=percentile(self._latencies, 95))

    def _fps(self, now_s: float) -> float:
        recent = [done_s for done_s in self._recent if now_s - done_s <= EVERY_S]
        # The first frame begins the time in which the others were done.
        return (len(recent) - 1) / max(now_s - recent[0], 1e-3) if recent else 0.0


def _problems(camera: CameraState, sinks: Sequence[SinkState], gallery_problem: str | None) -> Iterator[Found]:
    if camera.problem:
        yield "camera", camera.code, camera.problem
    for sink in sinks:
        if sink.problem:
            yield sink.part, "undelivered", sink.problem
        if sink.unstored:
            yield "machine", "unstored", sink.unstored
    if gallery_problem:
        yield "gallery", "unreadable", gallery_problem


def machine_problems(machine: MachineState, slowed_by: Literal["hot", "throttled"] | None) -> Iterator[Found]:
    """What is wrong with the machine, each with what to do."""
    if slowed_by == "throttled":
        yield _of_machine("throttled", "the machine slows itself down, or did so just now")
    elif slowed_by == "hot" and machine.temperature_c is not None:
        yield _of_machine("hot", f"the machine has {machine.temperature_c:.0f} °C")
    if machine.free_memory_mb is not None and machine.free_memory_mb < LEAST_MEMORY_MB:
        yield _of_machine("memory", f"{machine.free_memory_mb:.0f} MB of memory are left")
    if machine.free_disk_mb is not None and machine.free_disk_mb < LEAST_DISK_MB:
        yield _of_machine("disk", f"{machine.free_disk_mb:.0f} MB of disk are left")
    if not machine.clock_synced:
        yield _of_machine("clock", "the clock isn't set by a time server")


def _of_machine(code: ProblemCode, what: str) -> Found:
    return "machine", code, f"{what}. {kind('machine', code).fix}"
