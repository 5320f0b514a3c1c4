"""The daemon, shown: on a sample, a clip or a camera, with a broker of its own where none is configured.

It runs just as `edgefer run` does; what is printed is what an MQTT subscriber received.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any
from urllib.parse import quote

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgefer import service
from edgefer.broker import check_broker, tls_context
from edgefer.cameras import parse_uri
from edgefer.cameras.sample import GRACE, picture_path
from edgefer.cameras.video import check_file
from edgefer.enroll import enroll, look_at_pictures
from edgefer.errors import BrokerError, InputError
from edgefer.files import expand_home
from edgefer.health import Totals
from edgefer.settings import MqttSettings, Settings

PATIENCE_S = 10.0
"""How long the broker may take to start and to stop, and a message to arrive."""

_STYLES = {"appeared": "32", "updated": "36", "left": "33", "known": "1", "dim": "2"}


def run_demo(settings: Settings, clip: str | None, *, as_json: bool) -> int:
    """Play the sample or a clip through the daemon, print the face events and a summary."""
    if "log_level" not in settings.model_fields_set:
        logging.getLogger("edgefer").setLevel(logging.WARNING)  # the events are the show
    with contextlib.ExitStack() as parts:
        stop = parts.enter_context(service.stopped_by_signals())
        changes: dict[str, Any] = {
            "camera": "sample://" if clip is None else playable(clip),
            "sinks": "mqtt",
            # On a configured broker, the real daemon's topics are left alone.
            "device": f"{settings.device[:59]}-demo",
            # ... and so are the events that wait for it.
            "events": settings.events.model_copy(update={"store": False}),
        }
        if "host" not in settings.mqtt.model_fields_set:
            port = parts.enter_context(embedded_broker())
            changes["mqtt"] = MqttSettings(host="127.0.0.1", port=port, prefix=settings.mqtt.prefix)
        if clip is None:
            # A state folder of its own: the demo's people aren't the user's.
            changes["state_dir"] = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="edgefer-demo-")))
        settings = settings.model_copy(update=changes)
        camera = parse_uri(settings.camera)
        if camera.scheme == "file":
            check_file(expand_home(camera.location), camera.address)
        viewer = parts.enter_context(Viewer(settings, stop, as_json=as_json))
        if clip is None and settings.identity.enabled:
            enroll_grace(settings)
        say(as_json, f"{camera.public} -> {settings.mqtt.host}:{settings.mqtt.actual_port} -> you; Ctrl-C stops")
        totals = service.run(settings, stop)
        if not viewer.wait_for_end():
            say(
                as_json,
                f"the daemon's good-bye didn't arrive within {PATIENCE_S:.0f} s: some events may be missing here",
            )
        say(as_json, summary(totals, viewer))
    return 0


def enroll_grace(settings: Settings) -> None:
    """Make one of the sample's two people known."""
    enroll(settings, GRACE.name, look_at_pictures(settings, [picture_path(GRACE)]))


def summary(totals: Totals, viewer: Viewer) -> str:
    """What the run came to, and what to try next."""
    p50, p95 = totals.latency_ms.p50 or 0, totals.latency_ms.p95 or 0
    return (
        f"\n{totals.frames} frames, {viewer.faces} faces in {viewer.events} events, "
        f"{totals.frames / max(totals.seconds, 1e-3):.1f} frames/s, "
        f"capture to event {p50:.1f} ms (median), {p95:.1f} ms (95 %)\n\n"
        "Your own camera:  edgefer demo 0            (/dev/video0; picamera2://0 for the Pi's; docs/cameras.md)\n"
        "Your own broker:  EDGEFER_CAMERA=0 EDGEFER_MQTT__HOST=broker.local edgefer run"
    )


def say(as_json: bool, text: str) -> None:
    """Tell the person; beside the payloads that goes to standard error."""
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def playable(clip: str) -> str:
    """The clip as a camera: a file that is named by its path plays at its pace."""
    uri = parse_uri(clip)
    if uri.scheme != "file" or uri.options:
        return clip
    return f"file://{quote(uri.location, errors='surrogateescape')}?realtime=1"


@contextlib.contextmanager
def embedded_broker() -> Iterator[int]:
    """A broker on a free loopback port, in a thread that ends with us; the port."""
    try:
        from amqtt.broker import Broker  # noqa: PLC0415  # an extra, of use to the demo only
    except ImportError as error:
        raise InputError(
            "no broker is configured, and the demo's own isn't installed: pip install '.[demo]' in edgefer's folder, "
            "or set EDGEFER_MQTT__HOST"
        ) from error
    # It tells of every client that comes and goes.
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    configuration = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def start() -> Any:
        broker = Broker(configuration)
        await broker.start()
        return broker

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="broker", daemon=True)
    thread.start()
    try:
        broker = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    except Exception as error:  # of the broker's thread, whatever it is
        raise BrokerError(f"the demo's broker didn't start: {error!r}; EDGEFER_MQTT__HOST names another") from error
    try:
        yield port
    finally:
        # One that doesn't end in time ends with the process: its thread is a daemon.
        with contextlib.suppress(FutureTimeoutError):
            asyncio.run_coroutine_threadsafe(broker.shutdown(), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)


class Viewer:
    """An MQTT subscriber that prints the face events of one device, as it receives them.

    When nobody reads what it prints any more, it asks for a stop.
    """

    def __init__(self, settings: Settings, stop: service.Stop, *, as_json: bool) -> None:
        self.events = 0
        self._settings = settings
        self._stop = stop
        self._as_json = as_json
        self._tracks: set[str] = set()
        self._topics = f"{settings.mqtt.prefix}/{settings.device}"
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._subscribed, self._gone = threading.Event(), threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self._topics}/#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _client, _data, message: self._show(message)

    @property
    def faces(self) -> int:
        """How many different faces were told of."""
        return len(self._tracks)

    def __enter__(self) -> Viewer:  # noqa: PYI034  # typing has no Self before Python 3.11
        """Subscribe; BrokerError says why that fails."""
        check_broker(self._settings)
        mqtt = self._settings.mqtt
        if mqtt.username is not None:
            self._client.username_pw_set(mqtt.username, mqtt.read_password())
        if mqtt.tls:
            self._client.tls_set_context(tls_context(mqtt))
        self._client.connect(mqtt.host, mqtt.actual_port)
        self._client.loop_start()
        if not self._subscribed.wait(PATIENCE_S):
            self.__exit__()
            raise BrokerError(f"{mqtt.host}:{mqtt.actual_port} doesn't answer our subscription to {self._topics}/#")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for_end(self) -> bool:
        """Wait until the daemon's good-bye has arrived; whether it did."""
        return self._gone.wait(PATIENCE_S)

    def _show(self, message: paho.MQTTMessage) -> None:
        # A retained good-bye is from an earlier start.
        if message.topic.endswith("/availability") and message.payload == b"offline" and not message.retain:
            self._gone.set()
        if not message.topic.endswith("/face"):
            return
        event = json.loads(message.payload)
        self.events += 1
        self._tracks.add(event["track_id"])
        try:
            print(message.payload.decode() if self._as_json else self._line(event), flush=True)
        except BrokenPipeError:  # `edgefer demo | head`
            self._stop.asked_by = "nobody reads what the demo prints"

    def _line(self, event: dict[str, Any]) -> str:
        identity, emotion, box = event["identity"], event["emotion"], event["bbox"]
        who = identity["name"] or identity["status"]
        sure = "" if identity["similarity"] is None else f" ({identity['similarity']:.2f})"
        feels = emotion["label"] or emotion["status"]
        certain = "" if emotion["confidence"] is None else f" {emotion['confidence']:.0%}"
        return "  ".join(
            (
                event["time"][11:23],
                self._styled(event["event"], f"{event['event']:<8}"),
                self._styled("known" if identity["name"] else "dim", f"{who + sure:<22}"),
                f"{feels + certain:<14}",
                self._styled("dim", f"{box['width']}x{box['height']} at {box['x']},{box['y']}"),
                self._styled("dim", f"{event['latency_ms']:.1f} ms  {event['track_id'][-6:]}"),
            )
        )

    def _styled(self, style: str, text: str) -> str:
        return f"\033[{_STYLES[style]}m{text}\033[0m" if self._colour else text
