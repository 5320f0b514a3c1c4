"""What every sink promises, checked on each module in the folder; and the rest of what standard output does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from brokers import PATIENCE_S, wait_until
from examples import face_event, frame, health, presence

from edgefer.errors import SettingsError
from edgefer.messages import Identity
from edgefer.settings import Settings, load_settings, sink_names
from edgefer.sinks import open_sinks
from edgefer.sinks import stdout as stdout_module

MANY = 6000
"""More events than a sink keeps."""


class MqttPlace:
    """A real broker with a subscriber."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._broker = request.getfixturevalue("mosquitto")
        self._subscriber = request.getfixturevalue("subscribe")(self._broker)
        self.settings = self._broker.settings()

    def received(self) -> list[dict]:
        return [message.payload for message in self._subscriber.messages if isinstance(message.payload, dict)]

    def hang(self) -> None:
        self._broker.pause()

    def break_down(self) -> None:
        self._broker.stop()


class StdoutPlace:
    """A pipe, read only when a test looks."""

    settings = Settings(sinks="stdout")

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        stream = os.fdopen(write, "w")
        request.addfinalizer(stream.close)
        request.getfixturevalue("monkeypatch").setattr(sys, "stdout", stream)
        request.addfinalizer(self.break_down)
        self._lines = b""

    def received(self) -> list[dict]:
        try:
            while data := os.read(self._read, 1 << 16):
                self._lines += data
        except BlockingIOError:
            pass
        return [json.loads(line) for line in self._lines.split(b"\n")[:-1]]

    def hang(self) -> None:
        pass

    def break_down(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            self._read = -1


PLACES = {"mqtt": MqttPlace, "stdout": StdoutPlace}


@pytest.fixture(params=sink_names())
def place(request):
    assert request.param in PLACES, "a new sink: give it a place here, so that the contract is checked on it"
    return PLACES[request.param](request)


@pytest.fixture
def sink(place, closing):
    [sink] = open_sinks(place.settings)
    closing.callback(sink.close, 0.0)
    return sink


def faces(place) -> list[int]:
    return [message["seq"] for message in place.received() if message["schema"] == "edgefer.face/1"]


def now() -> float:
    return time.monotonic()


def test_messages_arrive_in_order_complete_and_are_counted(place, sink):
    sink.publish(None, [presence(0)])
    for seq in range(0, 200, 2):
        sink.publish(frame(now()), [face_event(seq), face_event(seq + 1)])
    sink.publish(frame(now()), [presence(2), health()])
    wait_until(lambda: len(faces(place)) == 200 and len(place.received()) >= 202, "all messages")
    wait_until(lambda: sink.state.events.published == 200, "the count")
    assert faces(place) == list(range(200))
    assert {message["schema"] for message in place.received()} == {
        "edgefer.face/1",
        "edgefer.presence/1",
        "edgefer.health/1",
    }
    assert sink.state.events.waiting == 0
    assert sink.state.problem is None


def test_publish_never_waits_though_nobody_takes_anything(place, sink):
    sink.publish(None, [face_event(0)])
    wait_until(lambda: sink.state.events.published == 1, "a working sink")
    place.hang()
    for seq in range(1, MANY):
        sink.publish(frame(now()), [face_event(seq)])
    counts = sink.state.events
    assert counts.waiting > 0
    assert counts.dropped > 0
    assert counts.published + counts.waiting + counts.dropped == MANY
    sink.close(0.1)


def test_who_is_forgotten_is_in_nothing_that_waits(place, sink):
    sink.publish(None, [face_event(0)])
    wait_until(lambda: sink.state.events.published == 1, "a working sink")
    place.hang()
    sink.publish(frame(now()), [face_event(seq) for seq in range(1, 1000)])
    sink.publish(None, [presence(1), face_event(1000, identity=Identity("known", "Grace", 0.7, 0.2)), presence(0)])
    sink.forget(frozenset({"Ada", "Eve"}))
    counts = sink.state.events
    assert counts.published + counts.waiting + counts.dropped == 1001
    assert 1 <= counts.waiting <= 2  # Grace's, and one of Ada's may be half written
    assert counts.dropped > 0
    sink.close(0.1)


def test_close_brings_out_what_waits_and_nothing_fails_afterwards(place, sink):
    sink.publish(frame(now()), [*(face_event(seq) for seq in range(20)), presence(0)])
    sink.close(PATIENCE_S)
    wait_until(lambda: len(place.received()) >= 21, "what waited")
    assert faces(place) == list(range(20))
    assert place.received()[-1]["schema"] == "edgefer.presence/1" or place.received()[0]["count"] == 0
    sink.publish(None, [face_event(20), health()])
    sink.close(0.1)
    assert sink.state.events.published == 20


def test_a_place_that_breaks_down_is_told_and_not_raised(place, sink):
    sink.publish(None, [face_event(0)])
    wait_until(lambda: sink.state.events.published == 1, "a working sink")
    place.break_down()
    sink.publish(None, [face_event(1)])
    wait_until(lambda: sink.state.problem is not None, "the problem")
    sink.publish(None, [face_event(2)])
    sink.close(0.1)
    counts = sink.state.events
    assert counts.published + counts.waiting + counts.dropped == 3
    assert counts.published == 1


@pytest.mark.parametrize("named", ["kafka", "mqtt,mqtt", "mqtt,", "MQTT"])
def test_unknown_sinks_are_refused_with_the_known_ones(monkeypatch, named):
    monkeypatch.setenv("EDGEFER_SINKS", named)
    with pytest.raises(SettingsError, match=f"EDGEFER_SINKS={named}: one or more of mqtt, stdout"):
        load_settings()


# Standard output


def test_a_reader_that_stops_is_told(request, closing, monkeypatch):
    monkeypatch.setattr(stdout_module, "STUCK_AFTER_S", 0.05)
    place = StdoutPlace(request)
    [sink] = open_sinks(place.settings)
    closing.callback(sink.close, 0.0)
    sink.publish(None, [face_event(seq) for seq in range(200)])
    wait_until(lambda: sink.state.problem is not None, "the problem")
    wait_until(lambda: len(faces(place)) == 200, "the reader to catch up")
    wait_until(lambda: sink.state.problem is None, "the end of the problem")
    assert faces(place) == list(range(200))


def test_a_line_that_finds_no_room_spoils_no_other(tmp_path):
    """A file that may hold 500 bytes more, and later more again: as on a disk that was full."""
    program = (
        "import resource, signal, time; from brokers import wait_until; from examples import *\n"
        "from edgefer.settings import Settings; from edgefer.sinks import open_sinks\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); _, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "[sink] = open_sinks(Settings(sinks='stdout'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, most)); sink.publish(None, [face_event(0), face_event(1)])\n"
        "wait_until(lambda: sink.state.events.dropped == 2, 'the full disk')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)); sink.publish(None, [face_event(2), face_event(3)])\n"
        "sink.close(9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with (tmp_path / "events").open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, env=environment, check=True, timeout=PATIENCE_S)
    cut, *whole = (tmp_path / "events").read_text().splitlines()
    assert len(cut) == 500
    assert [json.loads(line)["seq"] for line in whole] == [2, 3]


@pytest.mark.parametrize("reader", ["goes away", "hangs", "was never there"])
def test_the_process_ends_well_whatever_its_reader_does(reader):
    program = (
        "from examples import *; from edgefer.settings import Settings; from edgefer.sinks import open_sinks\n"
        "[sink] = open_sinks(Settings(sinks='stdout'))\n"
        "sink.publish(None, [face_event(seq) for seq in range(500)]); sink.close(0.2)\n"
    )
    command = [sys.executable, "-c", program]
    if reader == "was never there":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        if reader == "goes away":
            process.stdout.readline()
            process.stdout.close()
        status = process.wait(PATIENCE_S)
        errors = process.stderr.read().decode()
    if reader == "was never there":
        assert "EDGEFER_SINKS=stdout: standard output is closed" in errors
    else:
        assert (status, errors.count("Traceback"), errors.count("Fatal")) == (0, 0, 0), errors
