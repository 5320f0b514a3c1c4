"""Messages to an MQTT broker: face events one by one and complete, presence and health as the newest of each.

docs/mqtt.md tells what a subscriber sees.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence

from edgefer.broker import Connection, client_id, connect
from edgefer.broker_errors import CHECK_ADDRESS, where
from edgefer.errors import BrokerError
from edgefer.messages import FaceEvent, Frame, Message, Presence
from edgefer.outbox import open_outbox
from edgefer.payload import as_replayed, to_json
from edgefer.pulse import Pulse
from edgefer.settings import Settings
from edgefer.sinks import Sink, SinkState

log = logging.getLogger(__name__)

REPLAYED_AFTER_S = 2.0
"""An event that is sent later than this after its frame says so."""
SILENT_AFTER_S = 5.0
"""A broker that has acknowledged nothing for so long is a problem, though it still holds the connection."""
AWAY_AFTER_S = 10.0
"""Being on the way to the broker, at the start or after a loss, is a problem after so long: twice the time that it has
to let us in. A try that fails is one at once."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0
"""A lost broker is tried again after so long, doubling each time; with jitter, as a whole house may have lost it."""
CONNECT_S, ROUND_S = 60.0, 10.0
"""How long connecting (a name server that doesn't answer takes half of it), and a round of sending, take at most."""
FULL = "quota exceeded"
"""The broker's refusal that passes: it has no room now. The event waits; every other refusal is final."""
FULL_RETRY_S = 5.0
"""A full broker is sent the same again after so long."""
BEGIN_S = 1.0
"""`online` waits so long for the first messages at most: presence and health of this start."""
RETAINED = ("presence", "health", "availability")
"""Topics that the broker keeps, in the order of sending: `online` vouches for the two before it."""


class MqttSink:
    """Keeps a connection to the broker and brings everything there, for as long as it takes.

    Nothing is lost or reordered while the broker is away, within the bounds of the outbox. What the broker hasn't
    acknowledged is sent again after a break, so a subscriber can see an event twice, with the same boot_id and seq.
    What a full broker refused may come after what it took meanwhile, and is marked as replayed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = f"{settings.mqtt.prefix}/{settings.device}"
        self._outbox = open_outbox(settings)
        self._last_sent = self._newest_taken = 0
        self._full_since_s: float | None = None
        self._lock = threading.Lock()
        self._newest: dict[str, Message | bytes] = {}
        self._due: dict[str, float] = {}  # topics, and from when on they are to be sent (monotonic)
        self._announced = False
        self._refusals: dict[str, tuple[str, str]] = {}
        self._problem: str | None = None
        self._delivers = False
        self._begun_s = self._away_since_s = time.monotonic()
        self._given = False
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_rope.setblocking(False)
        self._pulse = Pulse()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    @property
    def state(self) -> SinkState:
        """Whether the broker takes our messages, and what became of the face events."""
        return SinkState(
            self._problem or self._absence(),
            self._outbox.counts,
            unstored=self._outbox.problem,
            hung=("broker",) * self._pulse.missed + ("store of waiting events",) * (not self._outbox.alive),
        )

    @property
    def delivers(self) -> bool:
        """Whether the broker takes our messages. On the way to it, it doesn't yet, and there need be no problem."""
        return self._delivers

    def publish(self, frame: Frame | None, messages: Sequence[Message]) -> None:
        """Take messages: face events are queued; of presence and of health the newest is kept."""
        captured_at = time.monotonic() if frame is None else frame.captured_at
        for message in messages:
            if isinstance(message, FaceEvent):
                self._outbox.put(message, captured_at)
            else:
                self._retain("presence" if isinstance(message, Presence) else "health", message)
        self._given = True
        self._ring()

    def forget(self, names: frozenset[str]) -> None:
        """Drop the events that wait and name one of these people; presence without them follows."""
        self._outbox.forget(names)

    def close(self, timeout_s: float) -> None:
        """Send what waits, then `offline`; a broker that doesn't take it within `timeout_s` publishes our last will."""
        self._deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._ring()
        self._thread.join(timeout_s)
        lost = self._outbox.close()
        if waiting := self._outbox.counts.waiting:
            fate = f"; {lost} of them are lost" if lost else "; they are sent after the next start"
            log.warning("%d face event(s) didn't reach the broker%s", waiting, fate)

    def _run(self) -> None:
        """Connect, send what waits until the connection breaks, back off, and do it again."""
        retry_s = FIRST_RETRY_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            self._pulse.expect_within(CONNECT_S)
            try:
                with contextlib.closing(self._connect()) as connection:
                    self._serve(connection)
            except BrokerError as error:
                refusal = self._refusal()
                # What was well for long is usually back with the first retry. (Two daemons that throw each other out
                # by turns don't hold a connection for long.)
                passing = self._delivers and refusal is None and time.monotonic() - started_s > LAST_RETRY_S
                # Some brokers hang up on a message that they refuse: the refusal is what helps.
                self._tell(refusal or str(error), passing=passing)
            except Exception as error:  # a thread's edge: the daemon goes on, and says so
                log.exception("the MQTT sink failed")
                self._tell(f"the MQTT sink failed: {error!r}; this is a defect, please report it with the log")
            if time.monotonic() - started_s > LAST_RETRY_S:
                retry_s = FIRST_RETRY_S
            self._pulse.expect_within(retry_s + ROUND_S)
            self._stopping.wait(retry_s * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
            retry_s = min(2 * retry_s, LAST_RETRY_S)
        self._bell.close()
        self._bell_rope.close()

    def _connect(self) -> Connection:
        try:
            return connect(self._settings, client_id(self._settings), f"{self._topics}/availability")
        except BrokerError:
            self._refusals.clear()
            raise

    def _serve(self, connection: Connection) -> None:
        """Say `online` after what is known, send what waits and what comes; at the end, say good-bye."""
        self._last_sent, self._full_since_s, self._announced = 0, None, False
        self._retain("availability", b"online")
        with self._lock:
            self._due = dict.fromkeys(self._newest, 0.0)
        self._exchange(connection, enough=self._stopping.is_set)
        self._retain("availability", b"offline")
        self._exchange(connection, enough=lambda: True)
        if "availability" not in self._due:  # where the broker was too full for it, our last will says it
            connection.say_goodbye()

    def _exchange(self, connection: Connection, enough: Callable[[], bool]) -> None:
        """Send and receive until it is `enough` and the broker has everything."""
        while True:
            self._pulse.expect_within(ROUND_S)
            last_round = enough()
            while connection.has_room and (self._send_retained(connection) or self._send_event(connection)):
                pass
            if last_round and connection.idle:
                return
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise BrokerError(f"{where(self._settings.mqtt)} didn't take everything in time")
            connection.exchange(min(left_s, 1.0), self._bell)
            with contextlib.suppress(BlockingIOError):
                self._bell.recv(4096)
            self._judge(connection)

    def _send_retained(self, connection: Connection) -> bool:
        """Send one of the retained messages that are due; False when none is."""
        with self._lock:
            # `online` vouches for the two others, and those that the broker retains may be of an earlier start.
            begun = self._given or time.monotonic() - self._begun_s > BEGIN_S
            now_s = time.monotonic()
            due = (t for t in RETAINED if self._due.get(t, math.inf) <= now_s and (begun or t != "availability"))
            topic = next(due, None)
            if topic is None:
                return False
            del self._due[topic]
            message = self._newest[topic]
        payload = message if isinstance(message, bytes) else to_json(message)

        def acknowledged(refusal: str | None) -> None:
            self._note(topic, f"{self._topics}/{topic}", refusal)
            self._announced |= payload == b"online"
            if refusal == FULL:
                with self._lock:
                    self._due.setdefault(topic, time.monotonic() + FULL_RETRY_S)

        connection.publish(f"{self._topics}/{topic}", payload, acknowledged, retain=True)
        return True

    def _send_event(self, connection: Connection) -> bool:
        """Send the next face event, marked if it is late; False when none waits, or the broker is full."""
        if self._full_since_s is not None:
            if not connection.idle or time.monotonic() - self._full_since_s < FULL_RETRY_S:
                return False
            # All that was on its way is decided: from the oldest that still waits on, in order.
            self._full_since_s, self._last_sent = None, 0
        if self._last_sent < self._newest_taken and not connection.idle:
            return False  # what was overtaken by others goes alone, lest more overtake it
        waiting = self._outbox.next_after(self._last_sent)
        if waiting is None:
            return False
        self._last_sent = waiting.number
        age_s = waiting.age_s
        late = waiting.restored or age_s > REPLAYED_AFTER_S or waiting.number < self._newest_taken
        payload = as_replayed(waiting.payload) if late else waiting.payload
        # Of an earlier start, perhaps, when the device had another name.
        topic = f"{self._settings.mqtt.prefix}/{waiting.device}/face"

        def acknowledged(refusal: str | None) -> None:
            self._note("face", topic, refusal)
            if refusal is None:
                self._newest_taken = max(self._newest_taken, waiting.number)
                self._outbox.acknowledge(waiting.number, replayed=late)
            elif refusal == FULL:
                self._full_since_s = time.monotonic()
            else:
                self._outbox.give_up(waiting.number)

        expiry_s = self._settings.events.expiry_s - age_s
        connection.publish(topic, payload, acknowledged, retain=False, expiry_s=expiry_s)
        return True

    def _retain(self, topic: str, message: Message | bytes) -> None:
        with self._lock:
            self._newest[topic] = message
            self._due[topic] = 0.0

    def _ring(self) -> None:
        # A full socket has rung already; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            self._bell_rope.send(b"!")

    def _note(self, kind: str, topic: str, refusal: str | None) -> None:
        if refusal is None:
            self._refusals.pop(kind, None)
        else:
            self._refusals[kind] = topic, refusal

    def _refusal(self) -> str | None:
        for topic, reason in self._refusals.values():
            broker = where(self._settings.mqtt)
            if reason == FULL:
                return f"{broker} is full: {reason}; give it more room, or see why nobody takes what it holds"
            return f"{broker} refuses messages on {topic}: {reason}; allow our user to publish there"
        return None

    def _judge(self, connection: Connection) -> None:
        broker = where(self._settings.mqtt)
        if (refusal := self._refusal()) is not None:
            self._tell(refusal)
        elif connection.silent_s > SILENT_AFTER_S:
            self._tell(f"{broker} has acknowledged nothing for over {SILENT_AFTER_S:.0f} s; is it overloaded?")
        elif self._announced:
            if not self._delivers:
                log.info("%s takes our messages, with %s", broker, connection.protocol)
            self._tell(None)

    def _tell(self, problem: str | None, *, passing: bool = False) -> None:
        """Tell the log and `state` of a problem, or of its end; the log alone of one that may pass with a retry."""
        # Once a problem is told, a person at the log needs no repetition.
        if problem is not None and problem != self._problem:
            log.warning("%s", problem, extra={"EDGEFER_CODE": "undelivered"})
        self._problem = None if passing else problem
        self._away_since_s = time.monotonic() if passing else math.inf
        self._delivers = problem is None

    def _absence(self) -> str | None:
        """What is wrong where nobody has let us in, nor refused us, for long."""
        if time.monotonic() - self._away_since_s < AWAY_AFTER_S:
            return None
        broker = where(self._settings.mqtt)
        return (
            f"no connection to {broker} for over {AWAY_AFTER_S:.0f} s; {CHECK_ADDRESS}, the network and its name server"
        )


def open_sink(settings: Settings) -> Sink:
    """A sink on the broker that the settings name; it connects in the background."""
    return MqttSink(settings)
