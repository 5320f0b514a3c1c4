"""What `health` tells, and when."""

import dataclasses
from datetime import datetime, timezone
from typing import get_args

import numpy as np
import pytest

from edgefer import health
from edgefer.health import HealthMonitor, Stopwatch
from edgefer.latest import CameraState
from edgefer.machine import MachineState
from edgefer.messages import EventCounts, Frame, ModelNames, Part, ProblemCode
from edgefer.problems import KINDS, kind
from edgefer.report import Origin
from edgefer.sinks import SinkState

WELL = CameraState(None, 3, 1)
GONE = CameraState("the camera is unplugged", 3, 1)
DELIVERED = SinkState(None, EventCounts(published=7))
COOL = MachineState(51.0, False, 96.4, 700.0, 9000.0, clock_synced=True)
ALONE = SinkState("no broker", EventCounts(waiting=2))


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(health.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def monitor(clock):
    names = ModelNames(detector="near 1", embedding=None, emotion="emotion-48 1")
    return HealthMonitor(Origin("hall-pi", "b00t"), names, "a runtime", Stopwatch())


def test_told_at_once_then_every_ten_seconds(monitor, clock):
    assert monitor.due(WELL, [DELIVERED], COOL).status == "ok"
    clock.now += 9.9
    assert monitor.due(WELL, [DELIVERED], COOL) is None
    clock.now += 0.2
    assert monitor.due(WELL, [DELIVERED], COOL).uptime_s == pytest.approx(10.1)


def test_told_when_a_problem_comes_and_when_it_goes(monitor, clock):
    monitor.due(WELL, [DELIVERED], COOL)
    clock.now += 1
    lost = monitor.due(GONE, [DELIVERED], COOL)
    assert (lost.status, lost.camera.status) == ("failed", "lost")
    assert [(p.part, p.code, p.message) for p in lost.problems] == [("camera", "lost", "the camera is unplugged")]
    clock.now += 1
    both = monitor.due(CameraState("still unplugged", 3, 2), [ALONE], COOL)
    assert [p.part for p in both.problems] == ["camera", "broker"]
    assert both.problems[0].since == lost.problems[0].since  # the same problem, in newer words
    assert both.problems[0].message == "still unplugged"
    clock.now += 1
    assert monitor.due(WELL, [ALONE], COOL).status == "degraded"
    clock.now += 1
    assert monitor.due(WELL, [DELIVERED], COOL).problems == ()


def test_latency_and_rate_are_of_the_frames_that_were_done(monitor, clock):
    image = np.zeros((4, 4, 3), np.uint8)
    for number in range(21):
        clock.now += 0.05
        captured_at = clock.now - (0.010 if number % 2 else 0.020)
        monitor.frame_done(Frame(image, number, captured_at, datetime.now(timezone.utc), clock.now, "synthetic://"))
    told = monitor.due(WELL, [DELIVERED], COOL)
    assert told.camera.fps == pytest.approx(20)
    assert told.latency_ms.p50 == pytest.approx(20, abs=0.1)
    assert (told.camera.dropped_frames, told.camera.reopened, told.events.published) == (3, 1, 7)
    assert told.models.embedding is None


def test_two_frames_are_one_interval_and_one_frame_is_no_rate_yet(monitor, clock):
    frame = Frame(np.zeros((4, 4, 3), np.uint8), 0, clock.now, datetime.now(timezone.utc), clock.now, "synthetic://")
    rates = []
    for _ in range(2):
        clock.now += 0.5
        monitor.frame_done(frame)
        monitor.due(WELL, [DELIVERED], COOL)
        rates.append(monitor.summary(0))
    assert rates == ["0 people in view, 0.0 frames/s", "0 people in view, 2.0 frames/s"]


def test_nothing_measured_is_null(monitor):
    told = monitor.due(WELL, [], COOL)
    assert told.latency_ms.p50 is None
    assert told.stages_ms.detect is None
    assert told.camera.fps == 0


def test_a_stopwatch_times_each_call_and_hands_results_and_errors_on():
    watch = Stopwatch()
    halve = watch.timed("halve", lambda x: 1 / x)
    assert halve(2) == 0.5
    with pytest.raises(ZeroDivisionError):
        halve(0)
    assert watch.percentile("halve", 50) > 0
    assert watch.percentile("other", 50) is None


@pytest.mark.parametrize(
    ("code", "status", "camera_status"),
    [
        ("lost", "failed", "lost"),
        ("frozen", "failed", "frozen"),
        ("dark", "degraded", "dark"),
        ("slow", "degraded", "ok"),
    ],
)
def test_each_problem_of_the_camera_has_its_code_and_its_weight(monitor, code, status, camera_status):
    told = monitor.due(CameraState("something is wrong", 0, 0, code), [DELIVERED], COOL)
    assert (told.status, told.camera.status, told.problems[0].code) == (status, camera_status, code)


@pytest.mark.parametrize(
    ("change", "slowed_by", "code", "status"),
    [
        ({"temperature_c": 83.0}, "hot", "hot", "degraded"),
        ({"throttled": True}, "throttled", "throttled", "degraded"),
        ({"free_memory_mb": 20.0}, None, "memory", "degraded"),
        ({"free_disk_mb": 20.0}, None, "disk", "degraded"),
        ({"clock_synced": False}, None, "clock", "ok"),  # without internet it will never be
    ],
)
def test_each_problem_of_the_machine_says_what_to_do(monitor, change, slowed_by, code, status):
    told = monitor.due(WELL, [DELIVERED], dataclasses.replace(COOL, **change), slowed_by)
    (problem,) = told.problems
    assert (problem.part, problem.code, told.status) == ("machine", code, status)
    assert problem.message.endswith(kind("machine", code).fix)
    assert monitor.due(WELL, [DELIVERED], COOL).problems == ()


def test_a_machine_that_tells_nothing_has_no_problem(monitor):
    silent = MachineState(None, None, 96.4, None, None, clock_synced=True)
    assert monitor.due(WELL, [DELIVERED], silent).problems == ()


def test_every_problem_that_can_be_told_is_explained():
    assert {known.code for known in KINDS} == set(get_args(ProblemCode))
    assert {known.part for known in KINDS} == set(get_args(Part))


def test_the_summary_is_a_line_for_people(monitor):
    monitor.due(GONE, [ALONE], COOL)
    assert monitor.summary(2) == (
        "2 people in view, 0.0 frames/s; camera lost: the camera is unplugged; broker undelivered: no broker"
    )
    assert monitor.summary(1).startswith("1 person in view")
