"""One connection to an MQTT broker.

MQTT 5 is spoken first, 3.1.1 with brokers that don't know it. A connection that broke is never mended: the next one
starts afresh, so that paho resends nothing by itself, and the sink decides what is sent again and how it is marked.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgefer.broker_errors import CHECK_ADDRESS, reason_of, what_it_may_want, where, why_refused, why_unreachable
from edgefer.errors import BrokerError
from edgefer.settings import MqttSettings, Settings

ANSWER_TIMEOUT_S = 5.0
"""How long a broker may take to let us in."""
RETAINED_S = 2.0
"""How long what a broker retains may take to come: it doesn't tell that there is nothing."""
KEEPALIVE_S = 15
"""A broker that is silent for so long is asked, and after as long again is given up. A dead daemon's last will comes
after one and a half times this."""
IN_FLIGHT = 20
"""So many messages may be on their way at once, fewer if the broker says so: enough for a long line to be busy."""
STALL_S = 1.0
"""No more is sent once an acknowledgement is missing for so long. What is sent can't be called back: a broker that
hangs and wakes up later would hand it on as if it were new, whereas what is kept here can still be marked as late."""
MAX_PACKET = 64 * 1024
"""Bytes of what a broker may send at once: a presence, and acknowledgements are short."""

Acknowledged = Callable[[str | None], None]
"""Is told what became of a message: None when the broker took it, else why it didn't."""


def connect(settings: Settings, client_id: str, will_topic: str) -> Connection:
    """A connection that the broker has accepted; BrokerError says why there is none, and what to do.

    `will_topic` is where the broker publishes `offline`, retained, when the connection ends without a good-bye.
    """
    version = _find_version(settings.mqtt, client_id)
    return _connect(settings.mqtt, version, client_id, will_topic)


def check_broker(settings: Settings) -> None:
    """Connect once; BrokerError says why that fails, and what to do."""
    _find_version(settings.mqtt, client_id(settings) + "-check")


def clear_retained(settings: Settings, topic: str) -> None:
    """Make the broker forget what it retains on a topic; BrokerError when it can't be reached or refuses."""
    refusals: list[str | None] = []
    with _briefly(settings) as connection:
        connection.publish(topic, b"", refusals.append, retain=True)
        while not connection.idle:
            connection.exchange(0.5)
            if connection.silent_s > ANSWER_TIMEOUT_S:
                raise BrokerError(why_unreachable(TimeoutError(), settings.mqtt, ANSWER_TIMEOUT_S))
        connection.say_goodbye()
    if refusals[0] is not None:
        raise BrokerError(f"{where(settings.mqtt)} refuses messages on {topic}: {refusals[0]}")


def read_retained(settings: Settings, topic: str) -> bytes:
    """What the broker retains on a topic, empty where nothing comes; BrokerError when it can't be reached."""
    with _briefly(settings) as connection:
        found = connection.read(topic, RETAINED_S)
        connection.say_goodbye()
    return found


def client_id(settings: Settings) -> str:
    """The name that the broker knows this daemon by: the device's, with a few letters that tell daemons apart.

    It is the same after a restart: a broker that still holds the connection of before then ends that one, and its last
    will, before it lets us in; otherwise its `offline` would come minutes later and overwrite our `online`. And it
    differs between daemons that share a device's name by mistake: with one name they would throw each other out.
    """
    daemon = f"edgefer {_machine_id()} {settings.camera} {settings.state_dir}"
    device = re.sub("[^A-Za-z0-9_-]", "_", settings.device)
    return f"edgefer-{device}-{hashlib.sha256(daemon.encode()).hexdigest()[:8]}"


class Connection:
    """A connection that the broker has accepted. Not thread-safe: one thread owns it."""

    def __init__(self, settings: MqttSettings, version: MQTTProtocolVersion, client_id: str, will: str | None) -> None:
        self._settings = settings
        self._where = where(settings)
        self._version = version
        self._unacknowledged: dict[int, tuple[float, Acknowledged]] = {}
        self._window = IN_FLIGHT
        self._accepted = False
        self._refusal: ReasonCode | None = None
        self._goodbye: str | None = None
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=version, reconnect_on_failure=False)
        self._client.connect_timeout = ANSWER_TIMEOUT_S
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._client.on_disconnect = self._on_disconnect
        if will is not None:
            self._client.will_set(will, "offline", qos=1, retain=True)
        if settings.username is not None:
            self._client.username_pw_set(settings.username, _password(settings))
        if settings.tls:
            self._client.tls_set_context(tls_context(settings))

    def close(self) -> None:
        """Hang up; without a good-bye before, the broker publishes the last will."""
        if (connection := self._client.socket()) is not None:
            connection.close()

    @property
    def protocol(self) -> str:
        """What is spoken, for people."""
        return "MQTT 5" if self._version == MQTTProtocolVersion.MQTTv5 else "MQTT 3.1.1"

    @property
    def idle(self) -> bool:
        """Whether everything is acknowledged."""
        return not self._unacknowledged

    @property
    def silent_s(self) -> float:
        """For how many seconds the oldest message has been waiting for its acknowledgement."""
        oldest = next(iter(self._unacknowledged.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest[0]

    @property
    def has_room(self) -> bool:
        """Whether a message may be sent now."""
        return len(self._unacknowledged) < self._window and self.silent_s < STALL_S

    def open(self) -> None:
        """Connect, and wait until the broker has accepted us."""
        patience_until = time.monotonic() + ANSWER_TIMEOUT_S
        try:
            self._client.connect(self._settings.host, self._settings.actual_port, KEEPALIVE_S)
        except (OSError, UnicodeError) as error:
            raise BrokerError(why_unreachable(error, self._settings, ANSWER_TIMEOUT_S)) from error
        if isinstance(connection := self._client.socket(), socket.socket):
            # paho takes a hundred such bufferfuls before it lets us look at what comes.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_PACKET)
            # Otherwise Nagle's algorithm holds back what follows an unacknowledged packet: 23 ms a message, not 0.6.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self._accepted:
            self.exchange(0.5)
            if time.monotonic() > patience_until:
                raise BrokerError(why_unreachable(TimeoutError(), self._settings, ANSWER_TIMEOUT_S))

    def publish(
        self, topic: str, payload: bytes, acknowledged: Acknowledged, *, retain: bool, expiry_s: float | None = None
    ) -> None:
        """Send a message, which the broker (MQTT 5) throws away after `expiry_s` seconds."""
        properties = None
        if expiry_s is not None and self._version == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
            properties.MessageExpiryInterval = max(1, math.ceil(expiry_s))
        sent = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        self._unacknowledged[sent.mid] = time.monotonic(), acknowledged

    def read(self, topic: str, patience_s: float) -> bytes:
        """The first message that comes on a topic, empty where none does in that time."""
        found: list[bytes] = []
        self._client.on_message = lambda _client, _data, message: found.append(bytes(message.payload))
        self._client.subscribe(topic, qos=1)
        patience_until_s = time.monotonic() + patience_s
        while not found and (left_s := patience_until_s - time.monotonic()) > 0:
            self.exchange(left_s)
        return found[0] if found else b""

    def exchange(self, timeout_s: float, bell: socket.socket | None = None) -> None:
        """Wait until the broker or the `bell` has something, for at most `timeout_s`, and deal with what came.

        BrokerError when the connection is no more.
        """
        connection = self._client.socket()
        # What TLS has decrypted already makes the socket readable no more.
        if connection is not None and not (isinstance(connection, ssl.SSLSocket) and connection.pending()):
            poll = select.poll()
            poll.register(connection, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
            if bell is not None:
                poll.register(bell, select.POLLIN)
            poll.poll(timeout_s * 1000)
        try:
            self._client.loop_read()
            self._client.loop_write()
            self._client.loop_misc()
        except (MQTTException, struct.error, LookupError, ValueError) as error:
            raise BrokerError(f"{self._where} sends something that isn't MQTT; {CHECK_ADDRESS}") from error
        if self._client.socket() is None:
            raise self._lost()
        # paho itself would keep up to 256 MB.
        if self._client._in_packet["remaining_length"] > MAX_PACKET:  # noqa: SLF001  # told by nothing public
            raise BrokerError(f"{self._where} sends a message larger than {MAX_PACKET >> 10} KiB; {CHECK_ADDRESS}")

    def say_goodbye(self) -> None:
        """End the connection in good order: the broker forgets the last will."""
        self._client.disconnect()

    def _on_connect(
        self,
        _client: paho.Client,
        _data: None,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refusal = reason
            return
        self._accepted = True
        self._window = min(IN_FLIGHT, getattr(properties, "ReceiveMaximum", IN_FLIGHT))

    def _on_publish(
        self, _client: paho.Client, _data: None, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        _, acknowledged = self._unacknowledged.pop(mid)
        acknowledged(reason.getName().lower() if reason.is_failure else None)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _data: None,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server or reason == "Keep alive timeout":
            self._goodbye = reason.getName().lower()

    def _lost(self) -> BrokerError:
        if self._refusal == "Unsupported protocol version":
            return _NotUnderstoodError(f"{self._where} speaks neither MQTT 5 nor 3.1.1")
        if self._refusal is not None:
            return BrokerError(why_refused(self._refusal, self._settings))
        if not self._accepted:
            return _NotUnderstoodError(f"{self._where} hangs up without an answer; {what_it_may_want(self._settings)}")
        return BrokerError(
            f"lost {self._where}: {self._goodbye or 'the connection was closed'}; if that goes on, see the broker's "
            "log, and whether another edgefer has the same EDGEFER_DEVICE"
        )


class _NotUnderstoodError(BrokerError):
    """The broker refuses this version of MQTT, or hangs up without an answer."""


def _find_version(settings: MqttSettings, client_id: str) -> MQTTProtocolVersion:
    """The newest version that the broker speaks: an older broker refuses MQTT 5, or hangs up.

    Found anew for each connection, for a broker can be exchanged; and without a last will, for amqtt, which speaks
    3.1.1 only, takes a will in MQTT 5's form for the beginning of a longer message, and never answers.
    """

    def knock(version: MQTTProtocolVersion) -> MQTTProtocolVersion:
        with contextlib.closing(_connect(settings, version, client_id, None)) as connection:
            connection.say_goodbye()
        return version

    try:
        return knock(MQTTProtocolVersion.MQTTv5)
    except _NotUnderstoodError:
        return knock(MQTTProtocolVersion.MQTTv311)


def _connect(settings: MqttSettings, version: MQTTProtocolVersion, client_id: str, will: str | None) -> Connection:
    connection = Connection(settings, version, client_id, will)
    try:
        connection.open()
    except BaseException:
        connection.close()
        raise
    return connection


def _briefly(settings: Settings) -> contextlib.closing[Connection]:
    """A connection for a command, beside the daemon's."""
    name = client_id(settings) + "-people"
    return contextlib.closing(_connect(settings.mqtt, _find_version(settings.mqtt, name), name, None))


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


def _password(settings: MqttSettings) -> str | None:
    try:
        return settings.read_password()
    except (OSError, UnicodeError) as error:
        # The error's own text could quote what it read.
        reason = error.strerror if isinstance(error, OSError) else "it isn't text"
        raise BrokerError(f"EDGEFER_MQTT__PASSWORD_FILE={settings.password_file} can't be read: {reason}") from error


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """How to encrypt, and whom to trust; BrokerError when a file is of no use, by its setting's name."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise BrokerError(
            f"EDGEFER_MQTT__CA_FILE={settings.ca_file} holds no certificate in PEM format ({reason_of(error)})"
        ) from error
    if settings.cert_file and settings.key_file:
        try:
            # A key with a passphrase would ask for it on the terminal; an empty one is refused.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except OSError as error:
            raise BrokerError(
                f"EDGEFER_MQTT__CERT_FILE={settings.cert_file} and EDGEFER_MQTT__KEY_FILE={settings.key_file} must be "
                f"a certificate and its key, in PEM format, the key without a passphrase ({reason_of(error)})"
            ) from error
    return context
