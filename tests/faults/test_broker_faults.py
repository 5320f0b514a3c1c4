"""A broker that is away, hangs, is slow, full or shut, and a daemon that is killed: every event is accounted for."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from brokers import Cable, Mosquitto, Subscriber, wait_until
from daemons import Daemon
from ledger import BUSY, Account, account, key

from edgefer.store import FILE

START_S = 60.0
"""How long two daemons may take to start on a busy machine: a guard, as the others are."""
KEPT = ("autosave_interval 1", "autosave_on_changes true")
"""A mosquitto that remembers its subscribers though it is killed."""


@pytest.fixture(scope="module", autouse=True)
def half_open(pictures, tmp_path_factory):
    """A daemon whose connection was lost without a word. To notice takes two keepalives: it waits while others run."""
    if shutil.which("mosquitto") is None:
        pytest.skip("mosquitto isn't installed: `sudo apt-get install mosquitto`, or `make test` where it may")
    folder = tmp_path_factory.mktemp("half-open")
    broker = Mosquitto(folder)
    broker.start()
    subscriber, cable = Subscriber(broker), Cable(broker.port)
    daemon = Daemon(folder, broker, **BUSY, **plug(cable), EDGEFER_FRAME__FPS="10")
    subscriber.wait_for_payload("/face", lambda event: event["seq"] >= 3)
    cable.lose()
    yield daemon, subscriber
    daemon.process.kill()
    daemon.process.wait()
    subscriber.close()
    cable.pull()
    broker.stop()


def plug(cable: Cable) -> dict[str, str]:
    """Settings that lead through the cable."""
    return {"EDGEFER_MQTT__PORT": str(cable.port)}


def more(daemon: Daemon, count: int) -> None:
    """Wait for so many more events."""
    before = daemon.event_count
    wait_until(lambda: daemon.event_count >= before + count, f"{count} more events")


def received(subscriber: Subscriber, daemon: Daemon, when: str) -> None:
    """Wait until a subscriber has everything that there was to tell by now."""
    last = key(daemon.events[-1])
    subscriber.wait_for_payload("/face", lambda event: key(event) == last)
    print(when)


def rows(daemon: Daemon) -> int:
    """How many events the daemon has on disk."""
    with contextlib.suppress(sqlite3.OperationalError):  # it isn't there, or just being made
        address = f"{(daemon.state / FILE).as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            return database.execute("SELECT count(*) FROM event").fetchone()[0]
    return 0


def whole(daemon: Daemon, subscriber: Subscriber) -> Account:
    """The account of a daemon that ends in good order: everything has arrived or is on disk, in order."""
    assert daemon.stop() == 0
    subscriber.wait_for(lambda messages: messages[-1].payload == "offline")
    found = account(daemon, subscriber)
    # A busy machine doesn't get everything out in the half second that it has at the end: the rest is on disk.
    assert found.received == found.sent[: len(found.received)]
    assert len(found.sent) - len(found.received) <= rows(daemon)
    assert "Traceback" not in daemon.told
    return found


def test_a_broker_that_is_down_at_start_is_killed_and_hangs(run, run_mosquitto, subscribe, cable):
    broker = run_mosquitto(options=KEPT)
    subscriber = subscribe(broker)
    laid = cable(broker.port)
    broker.stop()
    daemon = run(broker, **plug(laid))
    wait_until(lambda: rows(daemon) > 20, "events on disk", START_S)
    broker.start()
    received(subscriber, daemon, "down at start")
    # A broker that is killed takes along what it has acknowledged and not handed on yet. No acknowledgement reaches the
    # daemon from here on, and what was acknowledged is handed on before the end.
    laid.lose()
    subscriber.catch_up()
    more(daemon, 5)  # on their way when the broker dies
    broker.kill()
    laid.pull()
    wait_until(lambda: rows(daemon) > 20, "events on disk", START_S)
    laid.plug_in()
    broker.start()
    received(subscriber, daemon, "killed")
    broker.pause()
    so_far = rows(daemon)
    wait_until(lambda: rows(daemon) > so_far + 10, "events on disk", START_S)
    broker.resume()
    received(subscriber, daemon, "paused")
    assert whole(daemon, subscriber).replayed > 20


def test_a_line_that_is_cut_and_slow(run, mosquitto, subscribe, cable):
    subscriber = subscribe(mosquitto)
    laid = cable(mosquitto.port)
    daemon = run(mosquitto, **plug(laid))
    more(daemon, 5)
    laid.slow_down(0.7)  # each way: no acknowledgement comes within a second
    wait_until(lambda: rows(daemon), "events on disk", START_S)
    more(daemon, 10)
    laid.slow_down(0)
    received(subscriber, daemon, "slow")
    laid.pull()
    more(daemon, 20)
    laid.plug_in()
    received(subscriber, daemon, "cut")
    whole(daemon, subscriber)


def test_a_broker_that_is_full_and_then_shuts_us_out(run, run_mosquitto, subscribe, cable):
    broker = run_mosquitto(password="right")
    subscriber = subscribe(broker)
    laid = cable(broker.port)
    daemon = run(broker, **plug(laid))
    subscriber.wait_for_payload("/face", lambda event: event["seq"])
    laid.fill()
    wait_until(lambda: "is full: quota exceeded" in daemon.told, "the log to tell that it is full")
    wait_until(lambda: rows(daemon), "events on disk", START_S)
    laid.fill(full=False)
    received(subscriber, daemon, "full")
    broker.set_password("another")
    laid.pull()
    laid.plug_in()
    wait_until(lambda: "refuses us" in daemon.told, "the log to tell of the refusal")
    more(daemon, 5)
    broker.set_password("right")
    received(subscriber, daemon, "login refused")
    whole(daemon, subscriber)


def test_what_is_too_old_is_counted_and_never_sent(run, mosquitto, subscribe, cable):
    subscriber = subscribe(mosquitto)
    laid = cable(mosquitto.port)
    laid.pull()
    daemon = run(mosquitto, **plug(laid), EDGEFER_EVENTS__EXPIRY_S="2")
    more(daemon, 40)
    laid.plug_in()
    subscriber.wait_for_payload("/face", lambda event: not event["replayed"])
    told = subscriber.wait_for_payload("/health", lambda health: health["events"]["published"])
    assert daemon.stop() == 0
    subscriber.wait_for(lambda messages: messages[-1].payload == "offline")
    print("expired")
    found = account(daemon, subscriber)
    missing = len(found.sent) - len(found.received)
    assert 0 < missing == told["events"]["expired"]
    # What is missing is the oldest.
    assert found.received == found.sent[missing:]


def test_a_daemon_that_is_killed_loses_at_most_its_last_second(run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    mosquitto.stop()
    first = run(mosquitto)
    wait_until(lambda: rows(first) > 30, "events on disk", START_S)
    first.stop(signal.SIGKILL)
    before = first.events
    mosquitto.start()
    second = run(mosquitto)
    more(second, 5)
    received(subscriber, second, "killed")
    assert second.stop() == 0
    subscriber.wait_for(lambda messages: messages[-1].payload == "offline")
    found = account(second, subscriber)
    # Of the first boot everything from the beginning to a point, then all of the second.
    arrived = len([boot for boot, _ in found.received if boot == before[0]["boot_id"]])
    assert found.received == found.sent[:arrived] + found.sent[len(before) :]
    assert arrived > 30
    lost = [datetime.fromisoformat(event["time"].replace("Z", "+00:00")) for event in before[arrived:]]
    # Twice the promise: a busy machine writes late.
    assert not lost or (lost[-1] - lost[0]).total_seconds() < 2
    assert all(event["replayed"] for event in subscriber.payloads("/face")[:arrived])
    told = [h["events"] for h in subscriber.payloads("/health") if h["boot_id"] == second.events[-1]["boot_id"]]
    assert all(sum(events[n] for n in ("published", "waiting", "expired", "dropped")) >= arrived for events in told)


@pytest.mark.parametrize("store", ["true", "false"], ids=["on disk", "in memory alone, with the camera away"])
def test_who_is_removed_is_in_nothing_that_arrives(run, mosquitto, subscribe, edgefer, tmp_path, store):
    assert edgefer("enroll", sample_name(), "--images", sample_picture()).returncode == 0
    subscriber = subscribe(mosquitto)
    mosquitto.stop()
    camera = tmp_path / "fault"
    variables = {"EDGEFER_CAMERA": f"faulty://{camera}?show=sample", "EDGEFER_FRAME__FPS": "20"}
    daemon = run(mosquitto, EDGEFER_IDENTITY__ENABLED="true", EDGEFER_EVENTS__STORE=store, **variables)

    def names() -> int:
        return sum(event["identity"]["name"] == sample_name() for event in daemon.events)

    wait_until(lambda: names() >= 10, "events that name her")
    if store == "true":
        wait_until(lambda: rows(daemon) > 20, "events on disk", START_S)
    else:
        camera.write_text("vanish")
        wait_until(lambda: "was unplugged" in daemon.told, "the camera to be missed")
    assert edgefer("people", "remove", sample_name()).returncode == 0
    wait_until(lambda: "somebody who was forgotten" in daemon.told, "the daemon to notice")
    camera.write_text("ok")

    def unnamed() -> bool:
        named = names()
        more(daemon, 10)
        return names() == named

    wait_until(unnamed, "the gallery to be read again")
    mosquitto.start()
    received(subscriber, daemon, "forgotten")
    assert daemon.stop() == 0
    subscriber.wait_for(lambda messages: messages[-1].payload == "offline")
    account(daemon, subscriber)
    assert names() >= 10
    assert all(sample_name() not in str(message.payload) for message in subscriber.messages)


def sample_name() -> str:
    from edgefer.cameras import sample

    return sample.GRACE.name


def sample_picture() -> Path:
    from edgefer.cameras import sample

    return sample.picture_path(sample.GRACE)


def test_a_full_disk_is_told_and_waited_for(pictures, mosquitto, subscribe, tmp_path, closing):
    """In a mount namespace of its own: a disk of 64 kB, which is filled and emptied again."""
    state = tmp_path / "state"
    state.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {state}"
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    subscriber = subscribe(mosquitto)
    mosquitto.stop()
    daemon = Daemon(tmp_path, mosquitto, command=[*inside, f'{mount} && exec "$@"', "sh"], **BUSY)
    closing.callback(daemon.process.wait)
    closing.callback(daemon.process.kill)
    wait_until(lambda: "disk is full" in daemon.told, "the log to tell of the disk")
    more(daemon, 5)
    mosquitto.start()

    def codes(health: dict) -> set[str]:
        return {problem["code"] for problem in health["problems"]} & {"unstored", "undelivered"}

    subscriber.wait_for_payload("/health", lambda health: codes(health) == {"unstored"})
    received(subscriber, daemon, "disk full")
    subscriber.wait_for_payload("/health", lambda health: health["events"]["published"] and not codes(health))
    whole(daemon, subscriber)


def test_a_connection_that_is_half_open_is_noticed(half_open):
    daemon, subscriber = half_open
    wait_until(lambda: "takes our messages" in daemon.told.partition("keep alive timeout")[2], "another connection", 60)
    received(subscriber, daemon, "half-open")
    whole(daemon, subscriber)
