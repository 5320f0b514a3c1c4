"""What `health` tells, when, and what the machine says of itself."""

from datetime import datetime, timezone

import numpy as np
import pytest

from edgefer import health, machine
from edgefer.health import HealthMonitor, Stopwatch
from edgefer.latest import CameraState
from edgefer.messages import EventCounts, Frame, ModelNames
from edgefer.report import Origin
from edgefer.sinks import SinkState

WELL = CameraState(None, 3, 1)
GONE = CameraState("the camera is unplugged", 3, 1)
DELIVERED = SinkState(None, EventCounts(published=7))
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
    assert monitor.due(WELL, [DELIVERED]).status == "ok"
    clock.now += 9.9
    assert monitor.due(WELL, [DELIVERED]) is None
    clock.now += 0.2
    assert monitor.due(WELL, [DELIVERED]).uptime_s == pytest.approx(10.1)


def test_told_when_a_problem_comes_and_when_it_goes(monitor, clock):
    monitor.due(WELL, [DELIVERED])
    clock.now += 1
    lost = monitor.due(GONE, [DELIVERED])
    assert (lost.status, lost.camera.status) == ("failed", "lost")
    assert [(p.part, p.code, p.message) for p in lost.problems] == [("camera", "lost", "the camera is unplugged")]
    clock.now += 1
    both = monitor.due(CameraState("still unplugged", 3, 2), [ALONE])
    assert [p.part for p in both.problems] == ["camera", "broker"]
    assert both.problems[0].since == lost.problems[0].since  # the same problem, in newer words
    assert both.problems[0].message == "still unplugged"
    clock.now += 1
    assert monitor.due(WELL, [ALONE]).status == "degraded"
    clock.now += 1
    assert monitor.due(WELL, [DELIVERED]).problems == ()


def test_latency_and_rate_are_of_the_frames_that_were_done(monitor, clock):
    image = np.zeros((4, 4, 3), np.uint8)
    for number in range(21):
        clock.now += 0.05
        captured_at = clock.now - (0.010 if number % 2 else 0.020)
        monitor.frame_done(Frame(image, number, captured_at, datetime.now(timezone.utc), clock.now, "synthetic://"))
    told = monitor.due(WELL, [DELIVERED])
    assert told.camera.fps == pytest.approx(20, rel=0.1)
    assert told.latency_ms.p50 == pytest.approx(20, abs=0.1)
    assert (told.camera.dropped_frames, told.camera.reopened, told.events.published) == (3, 1, 7)
    assert told.models.embedding is None


def test_nothing_measured_is_null(monitor):
    told = monitor.due(WELL, [])
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


def test_the_machine_tells_what_it_can():
    assert 5 < machine.memory_mb() < 10000
    assert isinstance(machine.is_clock_synced(), bool)
    assert machine.temperature_c() is None or -50 < machine.temperature_c() < 150


@pytest.mark.parametrize(("text", "throttled"), [("0\n", False), ("50000", False), ("50005", True), ("1", True)])
def test_a_pis_flags_for_now_count_and_those_of_the_past_do_not(monkeypatch, tmp_path, text, throttled):
    (tmp_path / "flags").write_text(text)
    monkeypatch.setattr(machine, "_THROTTLED", tmp_path / "flags")
    assert machine.is_throttled() is throttled


def test_heat_is_in_degrees(monkeypatch, tmp_path):
    (tmp_path / "temp").write_text("61234\n")
    monkeypatch.setattr(machine, "_THERMAL", tmp_path / "temp")
    assert machine.temperature_c() == pytest.approx(61.234)
