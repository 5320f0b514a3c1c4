"""The daemon, shown: on a sample, a clip or a camera, with a broker of its own where none is configured.

It runs just as `edgefer run` does; what is printed is what an MQTT subscriber received.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgefer import service
from edgefer.cameras import parse_uri
from edgefer.cameras.sample import GRACE, picture_path
from edgefer.enroll import enroll_images
from edgefer.errors import BrokerError, InputError
from edgefer.settings import Settings

PATIENCE_S = 10.0
"""How long the broker may take to start, and the last message to arrive."""

_STYLES = {"appeared": "32", "updated": "36", "left": "33", "known": "1", "dim": "2"}


def run_demo(settings: Settings, clip: str | None, *, as_json: bool) -> int:
    """Play the sample or a clip through the daemon, print the face events and a summary."""
    with contextlib.ExitStack() as parts:
        changes: dict[str, Any] = {"camera": "sample://" if clip is None else playable(clip)}
        if "host" not in settings.mqtt.model_fields_set:
            port = parts.enter_context(embedded_broker())
            changes["mqtt"] = settings.mqtt.model_copy(update={"host": "localhost", "port": port, "tls": False})
        if clip is None:
            # A state folder of its own: the demo's people aren't the user's.
            changes["state_dir"] = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="edgefer-demo-")))
        settings = settings.model_copy(update=changes)
        if clip is None:
            list(enroll_images(settings, GRACE.name, [picture_path(GRACE)]))
        say(as_json, f"{settings.camera} -> {settings.mqtt.host}:{settings.mqtt.actual_port} -> you; Ctrl-C stops")
        viewer = parts.enter_context(Viewer(settings, as_json=as_json))
        with service.stopped_by_signals() as stop:
            totals = service.run(settings, stop)
        viewer.wait_for_end()
        p50, p95 = totals.latency_ms.p50 or 0, totals.latency_ms.p95 or 0
        say(
            as_json,
            f"\n{totals.frames} frames, {viewer.faces} faces in {viewer.events} events, "
            f"{totals.frames / max(totals.seconds, 1e-3):.1f} frames/s, "
            f"capture to event {p50:.1f} ms (median), {p95:.1f} ms (95 %)\n\n"
            "Your own camera:  edgefer demo 0            (/dev/video0; picamera2://0 for the Pi's; docs/cameras.md)\n"
            "Your own broker:  EDGEFER_CAMERA=0 EDGEFER_MQTT__HOST=broker.local edgefer run",
        )
    return 0


def say(as_json: bool, text: str) -> None:
    """Tell the person; beside the payloads that goes to standard error."""
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def playable(clip: str) -> str:
    """The clip as a camera: a file that is named by its path plays at its pace."""
    uri = parse_uri(clip)
    return f"file://{quote(uri.location)}?realtime=1" if uri.scheme == "file" and not uri.options else clip


@contextlib.contextmanager
def embedded_broker() -> Iterator[int]:
    """A broker on a free loopback port, in a process of its own; the port."""
    if find_spec("amqtt") is None:
        raise InputError(
            "no broker is configured, and the demo's own isn't installed: pip install 'edgefer[demo]', "
            "or set EDGEFER_MQTT__HOST"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="edgefer-broker-") as folder:
        configuration = Path(folder) / "broker.yaml"
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        listener = {"type": "tcp", "bind": f"127.0.0.1:{port}"}
        configuration.write_text(json.dumps({"listeners": {"default": listener}, "plugins": plugins}))
        command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(configuration)]
        # In a session of its own, so that Ctrl-C reaches the daemon first and its good-bye still finds a broker.
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        with subprocess.Popen(command, **quiet) as process:  # noqa: S603  # our own interpreter
            try:
                _wait_for(port, process)
                yield port
            finally:
                process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise BrokerError("the demo's broker didn't start; set EDGEFER_MQTT__HOST to use another")


class Viewer:
    """An MQTT subscriber that prints the face events of one device, as it receives them."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        self.events = 0
        self._settings = settings
        self._as_json = as_json
        self._tracks: set[str] = set()
        self._topics = f"{settings.mqtt.prefix}/{settings.device}"
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._gone = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self._topics}/#", qos=1)
        self._client.on_message = lambda _client, _data, message: self._show(message)

    @property
    def faces(self) -> int:
        """How many different faces were told of."""
        return len(self._tracks)

    def __enter__(self) -> Viewer:  # noqa: PYI034  # typing has no Self before Python 3.11
        mqtt = self._settings.mqtt
        if mqtt.username is not None:
            self._client.username_pw_set(mqtt.username, mqtt.read_password())
        if mqtt.tls:
            ca, certificate, key = (str(f) if f else None for f in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file))
            self._client.tls_set(ca, certificate, key)
        try:
            self._client.connect(mqtt.host, mqtt.actual_port)
        except OSError as error:
            raise BrokerError(
                f"no broker at {mqtt.host}:{mqtt.actual_port}: {error}; check EDGEFER_MQTT__HOST"
            ) from error
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for_end(self) -> None:
        """Wait until the daemon's good-bye has arrived."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._gone and time.monotonic() < deadline_s:
            time.sleep(0.02)

    def _show(self, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/availability"):
            # A retained one is from an earlier start.
            self._gone = message.payload == b"offline" and not message.retain
        if not message.topic.endswith("/face"):
            return
        event = json.loads(message.payload)
        self.events += 1
        self._tracks.add(event["track_id"])
        print(message.payload.decode() if self._as_json else self._line(event), flush=True)

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
