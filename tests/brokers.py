"""Real brokers on free loopback ports, the cables to them, and a subscriber: what tests of MQTT are made of.

A broker's `variables` are what an edgefer needs to reach it, for a process; `settings` the same for a test in-process.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgefer.settings import Settings

PATIENCE_S = 60.0
"""How long a test waits for something that must happen: a guard against hanging, never a measure."""

SUBSCRIBERS_PASSWORD = "for your ears only"


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A broker's process; it keeps its port when it is stopped and started again."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.variables = {"EDGEFER_MQTT__HOST": "localhost", "EDGEFER_MQTT__PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What to run."""
        raise NotImplementedError

    def start(self) -> None:
        """Start, and wait until it listens."""
        log = (self.folder / "broker.log").open("ab")
        self._process = subprocess.Popen(self.command(), stdout=log, stderr=subprocess.STDOUT)
        log.close()
        for _ in poll_until(PATIENCE_S, f"{self.command()[0]} to listen"):
            if self._process.poll() is not None:
                raise RuntimeError(f"the broker ended:\n{self.log}")
            with contextlib.suppress(OSError), socket.create_connection(("localhost", self.port), 1):
                return

    def stop(self) -> None:
        """Stop in good order, whatever state it is in."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    def kill(self) -> None:
        """End it at once, with everything that it hasn't written down."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def pause(self) -> None:
        """Let it hang: it keeps its connections and does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.folder / "broker.log").read_text(errors="replace")

    def settings(self, **changes: Any) -> Settings:
        """Settings of an edgefer that publishes here; `changes` go to its MQTT group."""
        mqtt = {name.removeprefix("EDGEFER_MQTT__").lower(): value for name, value in self.variables.items()}
        return Settings(device="hall-pi", mqtt={**mqtt, **changes})  # type: ignore[arg-type]  # as from a .env

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Mosquitto(Broker):
    """Debian's mosquitto: MQTT 5 and 3.1.1. It remembers sessions and retained messages over a restart.

    `options` are lines of mosquitto.conf. With `password`, only user `ada` may in (and `Subscriber`); with `authority`,
    TLS is spoken, and with `client_certificates` a client must show one of that authority's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = None,
        authority: Authority | None = None,
        client_certificates: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(folder)
        lines = [
            f"listener {self.port} localhost",
            "user root",  # else a broker that is started by root can't read the test's files
            f"allow_anonymous {'true' if password is None else 'false'}",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",  # keep everything for a subscriber that is away
            "log_dest stderr",
            *options,
        ]
        if password is not None:
            self._set_password("subscriber", SUBSCRIBERS_PASSWORD)
            self.set_password(password)
            lines.append(f"password_file {folder / 'passwords'}")
            self.variables |= {"EDGEFER_MQTT__USERNAME": "ada", "EDGEFER_MQTT__PASSWORD": password}
        if authority is not None:
            server = authority.issue("localhost")
            lines += [f"cafile {authority.certificate}", f"certfile {server.certificate}", f"keyfile {server.key}"]
            lines += [f"require_certificate {'true' if client_certificates else 'false'}"]
            self.variables |= {"EDGEFER_MQTT__TLS": "true", "EDGEFER_MQTT__CA_FILE": str(authority.certificate)}
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return ["mosquitto", "-c", str(self.folder / "mosquitto.conf")]

    def set_password(self, password: str) -> None:
        """The password of user `ada` from now on; a running broker takes it up."""
        self._set_password("ada", password)
        if self._process is not None:
            self._signal(signal.SIGHUP)

    def _set_password(self, user: str, password: str) -> None:
        passwords = self.folder / "passwords"
        passwords.touch()
        subprocess.run(["mosquitto_passwd", "-b", passwords, user, password], check=True, capture_output=True)


class Amqtt(Broker):
    """amqtt: MQTT 3.1.1 only, in Python."""

    def command(self) -> list[str]:
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"localhost:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        file = self.folder / "amqtt.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        return [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(file)]


class Certificate(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


class Authority:
    """A certificate authority of our own; needs the openssl command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate, self._key = self._paths("authority")
        self._openssl("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=edgefer tests",
                      "-out", self.certificate, "-keyout", self._key)  # fmt: skip

    def issue(self, name: str) -> Certificate:
        """A certificate for a server or client of that name, and its key."""
        certificate, key = self._paths(name)
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{name}\n")
        self._openssl(
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-noenc",
            "-subj",
            f"/CN={name}",
            "-out",
            request,
            "-keyout",
            key,
        )
        self._openssl("x509", "-req", "-days", "2", "-in", request, "-extfile", extensions, "-CA", self.certificate,
                      "-CAkey", self._key, "-CAcreateserial", "-out", certificate)  # fmt: skip
        return Certificate(certificate, key)

    def _paths(self, name: str) -> Certificate:
        return Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _openssl(self, *arguments: object) -> None:
        subprocess.run([shutil.which("openssl") or "openssl", *map(str, arguments)], check=True, capture_output=True)


class Cable:
    """Goes between a client and a broker, and can be pulled, be cut on the way, be slow, or pretend an older broker."""

    def __init__(self, broker_port: int, *, answer_to_mqtt5: bytes | None = None) -> None:
        self._broker_port = broker_port
        self._answer_to_mqtt5 = answer_to_mqtt5
        self._sockets: list[socket.socket] = []
        self._dead: set[socket.socket] = set()
        self._delay_s = 0.0
        self._refusals_left = 0.0
        self.port = free_port()
        self.plug_in()

    def plug_in(self) -> None:
        """Take connections."""
        self._listener = socket.create_server(("localhost", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def pull(self) -> None:
        """Break every connection, and refuse new ones."""
        # A plain close leaves a thread in accept, and with it the port open.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets.clear()

    def lose(self) -> None:
        """Half-open: bytes of the present connections get lost, and no end learns of it. New ones work."""
        self._dead.update(self._sockets)

    def slow_down(self, delay_s: float) -> None:
        """Let every piece of what is sent, either way, take so long from now on."""
        self._delay_s = delay_s

    def fill(self, *, full: bool = True, messages: float = math.inf) -> None:
        """Let the broker seem full: so many MQTT 5 messages are answered with `quota exceeded`."""
        self._refusals_left = messages if full else 0

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        # Byte 8 of a CONNECT (with a length of one byte) is the protocol's level: 5 is MQTT 5, 4 is 3.1.1.
        with contextlib.suppress(OSError):
            if self._answer_to_mqtt5 is not None and client.recv(9, socket.MSG_PEEK | socket.MSG_WAITALL)[8] == 5:
                client.recv(4096)
                client.sendall(self._answer_to_mqtt5)
                client.close()
                return
            try:
                broker = socket.create_connection(("localhost", self._broker_port))
            except OSError:
                client.close()
                return
            self._sockets += [client, broker]
            threading.Thread(target=self._carry, args=(broker, client, self._answers), daemon=True).start()
            self._carry(client, broker, bytes)

    def _answers(self, packets: bytes) -> bytes:
        """What the broker sends, with another reason in its PUBACKs (type 4; reason 0x97) while it is to seem full."""
        changed = b""
        while self._refusals_left and packets:
            packet, packets = packets[: 2 + packets[1]], packets[2 + packets[1] :]  # short ones: a length of one byte
            if packet[0] == 0x40:
                packet = b"\x40\x03" + packet[2:4] + b"\x97"
                self._refusals_left -= 1
            changed += packet
        return changed + packets

    def _carry(self, source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self._delay_s)
                if source not in self._dead:
                    sink.sendall(change(data))
        if source not in self._dead:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


class Received(NamedTuple):
    """A message as a subscriber got it: JSON as a dict, anything else as text; expiry in seconds (MQTT 5)."""

    topic: str
    payload: Any
    retained: bool
    expiry_s: int | None


class Subscriber:
    """Collects everything below a topic. The broker keeps its place while one of them is away."""

    def __init__(
        self, broker: Broker, topic: str = "edgefer/#", *, version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5
    ) -> None:
        self._topic = topic
        self._news = threading.Condition()
        self._messages: list[Received] = []
        self._subscribed = False
        kept = {} if version == MQTTProtocolVersion.MQTTv5 else {"clean_session": False}
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            f"subscriber-{id(self)}",
            protocol=version,
            **kept,  # type: ignore[arg-type]
        )
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        settings = broker.settings().mqtt
        if settings.username is not None:
            self._client.username_pw_set("subscriber", SUBSCRIBERS_PASSWORD)
        if settings.tls:
            self._client.tls_set(str(settings.ca_file), settings.cert_file, settings.key_file)
        if version == MQTTProtocolVersion.MQTTv5:
            session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            session.SessionExpiryInterval = 3600
            self._client.connect(settings.host, settings.actual_port, clean_start=False, properties=session)
        else:
            self._client.connect(settings.host, settings.actual_port)
        self._client.loop_start()
        self._wait(lambda: self._subscribed, "the subscription", PATIENCE_S)

    @property
    def messages(self) -> list[Received]:
        """Everything so far, in the order of arrival."""
        with self._news:
            return list(self._messages)

    def payloads(self, topic_end: str) -> list[Any]:
        """The payloads so far of topics that end so, in the order of arrival."""
        return [message.payload for message in self.messages if message.topic.endswith(topic_end)]

    def wait_for(
        self, predicate: Callable[[list[Received]], object], timeout_s: float = PATIENCE_S, what: str = "messages"
    ) -> list[Received]:
        """Everything so far, once the predicate holds for it; AssertionError when it doesn't in time."""
        self._wait(lambda: predicate(self._messages), what, timeout_s)
        return self.messages

    def wait_for_payload(self, topic_end: str, predicate: Callable[[Any], object]) -> Any:
        """The first payload on topics that end so for which the predicate holds."""

        def found() -> Any:
            return next(
                (m.payload for m in self._messages if m.topic.endswith(topic_end) and predicate(m.payload)), None
            )

        self._wait(found, f"a payload on {topic_end}", PATIENCE_S)
        return found()

    def catch_up(self) -> None:
        """Wait until all has come that the broker has taken by now: it hands on in the order in which it takes."""
        mark = f"mark-{time.monotonic_ns()}"
        self._client.publish("edgefer/mark", mark, qos=1)
        self.wait_for_payload("/mark", lambda payload: payload == mark)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _wait(self, predicate: Callable[[], object], what: str, timeout_s: float) -> None:
        with self._news:
            if not self._news.wait_for(predicate, timeout_s):
                listed = "\n".join(str(message)[:200] for message in self._messages[-30:])
                raise AssertionError(f"no sign of {what} within {timeout_s} s; the last messages were\n{listed}")

    def _on_connect(
        self, client: paho.Client, _data: Any, flags: paho.ConnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        assert not reason.is_failure, reason
        if not flags.session_present:  # else the broker has kept the subscription
            client.subscribe(self._topic, qos=1)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        assert not reasons[0].is_failure, reasons
        with self._news:
            self._subscribed = True
            self._news.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        text = message.payload.decode()
        payload = json.loads(text) if text.startswith("{") else text
        expiry_s = getattr(message.properties, "MessageExpiryInterval", None)
        with self._news:
            self._messages.append(Received(message.topic, payload, message.retain, expiry_s))
            self._news.notify_all()


def poll_until(timeout_s: float, what: str) -> Iterator[None]:
    """Goes round until the loop is left; AssertionError when that takes too long."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        yield
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def wait_until(predicate: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Waits until the predicate holds; AssertionError when it doesn't in time."""
    for _ in poll_until(timeout_s, what):
        if predicate():
            return
