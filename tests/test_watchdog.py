"""What systemd is told, on a real notify socket, by a real daemon: when it is ready, how it goes, and that it lives."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from brokers import Broker, free_port, wait_until

from edgefer.cameras import sample
from edgefer.errors import InputError
from edgefer.pulse import Pulse
from edgefer.systemd import ServiceManager

WATCHDOG_S = 0.8
"""What the daemon is told that systemd waits for; it feeds four times as often."""
QUIET_S = 1.6
"""Without food for so long, systemd would have restarted the service twice over."""
HANG = """
import os, sys, time
from edgefer.__main__ import main
def hanging(call):
    def instead(*arguments, **options):
        while os.path.exists(sys.argv[1]):
            time.sleep(0.05)
        return call(*arguments, **options)
    return instead
{patch}
sys.exit(main(["run"]))
"""
"""The daemon, in which a library's call doesn't return while a file is there, as a wedged driver's or socket's does."""
SHORT_PATIENCE = """
from edgefer import latest, outbox
from edgefer.sinks import mqtt
latest.READ_LIMIT_S = mqtt.ROUND_S = outbox.WRITE_S = 3.0
"""
HUNG_INFERENCE = """
from edgefer.vision import model
model.Interpreter.invoke = hanging(model.Interpreter.invoke)
"""
HUNG_BROKER_LOOP = """
from paho.mqtt.client import Client
Client.loop_misc = hanging(Client.loop_misc)
"""
HUNG_STORE = """
import fcntl
fcntl.flock = hanging(fcntl.flock)
"""
"""The store takes this lock whenever it opens its file."""


class NotifySocket:
    """systemd's end: takes what a service tells."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.heard: list[str] = []
        self.unread: list[str] = []
        self.address = "@" + path[1:] if path.startswith("\0") else path

    def listen(self, seconds: float = 0.0) -> list[str]:
        """The lines that came, after those that were waited for, up to so many seconds from now."""
        deadline_s = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(0.001, deadline_s - time.monotonic()))
            try:
                lines = self.socket.recv(8192).decode().splitlines()
            except TimeoutError:
                lines, self.unread = self.unread, []
                return lines
            self.heard += lines
            self.unread += lines

    def wait_for(self, beginning: str) -> str:
        """The next line with this beginning."""
        found: list[str] = []

        def came() -> bool:
            lines = self.listen(0.05)
            for number, line in enumerate(lines):
                if line.startswith(beginning):
                    found.append(line)
                    self.unread = lines[number + 1 :]
                    return True
            return False

        wait_until(came, f"{beginning} on the notify socket", 40)
        return found[0]

    @property
    def is_fed(self) -> bool:
        """Whether the watchdog is fed now."""
        self.listen()
        deadline_s = time.monotonic() + QUIET_S
        while time.monotonic() < deadline_s:
            if "WATCHDOG=1" in self.listen(0.1):
                return True
        return False


@pytest.fixture(params=["path", "abstract"])
def any_systemd(request, tmp_path):
    where = {"path": str(tmp_path / "notify"), "abstract": f"\0edgefer-test-{os.getpid()}"}[request.param]
    listener = NotifySocket(where)
    yield listener
    listener.socket.close()


@pytest.fixture
def systemd(tmp_path):
    listener = NotifySocket(str(tmp_path / "notify"))
    yield listener
    listener.socket.close()


@pytest.fixture
def run(tmp_path, systemd, closing):
    """Starts a daemon under this systemd, with a broker that is away unless one is named."""

    def start(broker: Broker | None = None, patch: str = "", **variables: str) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFER_")}
        environment |= {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        environment |= {"EDGEFER_STATE_DIR": str(tmp_path / "state"), "EDGEFER_MQTT__PORT": str(free_port())}
        environment |= {} if broker is None else broker.variables
        code = HANG.format(patch=patch + SHORT_PATIENCE)
        with (tmp_path / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "hang")],
                env=environment | variables,
                stdout=log,
                stderr=log,
            )
        closing.callback(daemon.wait, 30)
        closing.callback(daemon.kill)
        return daemon

    return start


def logged(tmp_path: Path) -> str:
    return (tmp_path / "log").read_text()


def test_a_healthy_daemon_says_that_it_is_ready_how_it_goes_and_that_it_stops(run, systemd, mosquitto):
    daemon = run(mosquitto, EDGEFER_CAMERA="synthetic://?fps=20")
    systemd.wait_for("READY=1")
    assert systemd.wait_for("STATUS=").startswith("STATUS=0 people in view, ")
    assert systemd.is_fed
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert "STOPPING=1" in systemd.listen(0.1)
    statuses = [line for line in systemd.heard if line.startswith("STATUS=")]
    assert all(one != next_one for one, next_one in itertools.pairwise(statuses))


def test_a_lost_camera_and_a_broker_that_is_away_are_no_reason_to_be_restarted(run, systemd, tmp_path):
    run(EDGEFER_CAMERA="/dev/video97")
    systemd.wait_for("READY=1")
    assert "camera lost: there is no /dev/video97" in systemd.wait_for("STATUS=")
    assert systemd.is_fed
    assert "hangs" not in logged(tmp_path)


def test_a_camera_that_hangs_starves_the_watchdog(run, systemd, mosquitto, tmp_path):
    run(mosquitto, EDGEFER_CAMERA="synthetic://?stall_after=20")
    systemd.wait_for("WATCHDOG=1")
    systemd.wait_for("STATUS=the camera hangs")
    assert not systemd.is_fed
    assert "the camera hangs: it neither goes on nor recovers; systemd will restart the service" in logged(tmp_path)


def test_an_inference_that_hangs_starves_the_watchdog(run, systemd, mosquitto, tmp_path):
    run(mosquitto, HUNG_INFERENCE, EDGEFER_CAMERA="synthetic://")
    systemd.wait_for("READY=1")
    assert systemd.is_fed
    (tmp_path / "hang").touch()
    wait_until(lambda: not systemd.is_fed, "the end of what was on its way")
    (tmp_path / "hang").unlink()
    systemd.wait_for("WATCHDOG=1")


def test_a_loop_of_the_broker_that_hangs_starves_the_watchdog(run, systemd, mosquitto, tmp_path):
    run(mosquitto, HUNG_BROKER_LOOP, EDGEFER_CAMERA="synthetic://")
    systemd.wait_for("READY=1")
    assert systemd.is_fed
    (tmp_path / "hang").touch()
    systemd.wait_for("STATUS=the broker hangs")
    assert not systemd.is_fed
    (tmp_path / "hang").unlink()
    systemd.wait_for("WATCHDOG=1")


def test_a_store_that_hangs_starves_the_watchdog(run, systemd, tmp_path):
    try:
        sample.picture_path(sample.GRACE)
    except InputError as missing:
        pytest.skip(str(missing))
    (tmp_path / "hang").touch()
    run(None, HUNG_STORE, EDGEFER_CAMERA="sample://?loop=1")  # with the broker away, events go to the store
    systemd.wait_for("WATCHDOG=1")
    systemd.wait_for("STATUS=the store of waiting events hangs")
    assert not systemd.is_fed
    (tmp_path / "hang").unlink()
    systemd.wait_for("WATCHDOG=1")


def test_both_kinds_of_socket_are_spoken_to(any_systemd):
    manager = ServiceManager({"NOTIFY_SOCKET": any_systemd.address})
    manager.tell("all is well", ready=True)
    manager.stopping()
    manager.close()
    assert any_systemd.listen() == ["READY=1", "STATUS=all is well", "STOPPING=1", "STATUS=stopping"]


def test_a_status_is_one_line_that_systemd_takes(systemd):
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.address})
    manager.tell("camera lost: C920\nWATCHDOG=trigger; " + "é" * 5000, ready=True)
    manager.close()
    message = systemd.socket.recv(8192)
    assert len(message) <= 4096
    ready, status = message.decode().splitlines()
    assert (ready, status[:40]) == ("READY=1", r"STATUS=camera lost: C920\nWATCHDOG=trigger; "[:40])


def test_a_watchdog_that_waits_for_another_process_or_for_none_is_not_fed(systemd):
    for environment in ({}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}):
        manager = ServiceManager({"NOTIFY_SOCKET": systemd.address} | environment)
        manager.tell("well", ready=False)
        manager.close()
    assert "WATCHDOG=1" not in systemd.listen()


def test_what_was_not_taken_is_sent_again(tmp_path):
    path = str(tmp_path / "notify")
    manager = ServiceManager({"NOTIFY_SOCKET": path})
    manager.tell("well", ready=True)  # nobody listens yet
    late = NotifySocket(path)
    manager.tell("well", ready=True)
    assert late.listen()[0] == "READY=1"
    manager.close()
    late.socket.close()


def test_without_systemd_nothing_is_told():
    manager = ServiceManager({})
    manager.tell("well", ready=True)
    manager.stopping()
    manager.close()


def test_a_pulse_is_missed_only_after_its_own_word():
    pulse = Pulse()
    assert not pulse.missed
    pulse.expect_within(-1)
    assert pulse.missed
    pulse.expect_within(60)
    assert not pulse.missed
    pulse.expect_within(-1)
    pulse.rest()
    assert not pulse.missed
