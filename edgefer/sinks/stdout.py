"""Messages as JSON lines on standard output, the same JSON that goes to MQTT."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from io import FileIO

from edgefer.errors import SettingsError
from edgefer.messages import EventCounts, FaceEvent, Frame, Message, Presence
from edgefer.outbox import CAPACITY
from edgefer.payload import to_json
from edgefer.settings import Settings
from edgefer.sinks import Sink, SinkState

log = logging.getLogger(__name__)

STUCK_AFTER_S = 5.0
"""A reader that takes nothing for so long is a problem."""


class StdoutSink:
    """Writes every message as it comes, in a thread: a reader that pauses (`| less`) never stops the camera.

    A reader that went away (`| head`) or a full disk is a problem that is told, not a crash. `stream` is the sink's
    own, and unbuffered: a buffer that a stuck thread holds would abort the interpreter when it exits.
    """

    def __init__(self, stream: FileIO) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._writing: Message | None = None
        self._writing_since_s = 0.0
        self._closing = False
        self._is_cut = False
        self._published = self._dropped = 0
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="stdout", daemon=True)
        self._thread.start()

    @property
    def state(self) -> SinkState:
        """Whether somebody reads, and what became of the face events."""
        with self._changed:
            waiting = sum(isinstance(message, FaceEvent) for message in (self._writing, *self._waiting))
            problem = self._problem
            if self._writing is not None and time.monotonic() - self._writing_since_s > STUCK_AFTER_S:
                problem = "whatever reads standard output has stopped reading; let it go on, or events will be dropped"
            counts = EventCounts(published=self._published, waiting=waiting, dropped=self._dropped)
            return SinkState(problem, counts, part="stdout")

    def publish(self, frame: Frame | None, messages: Sequence[Message]) -> None:  # the pixels stay here
        """Take messages; when too many wait, the oldest make room."""
        with self._changed:
            self._waiting.extend(messages)
            while len(self._waiting) > CAPACITY:
                self._dropped += isinstance(self._waiting.popleft(), FaceEvent)
            self._changed.notify()

    def forget(self, names: frozenset[str]) -> None:
        """Drop the messages that wait and name one of these people."""
        with self._changed:
            kept = [message for message in self._waiting if names.isdisjoint(_named(message))]
            self._dropped += sum(isinstance(message, FaceEvent) for message in self._waiting)
            self._dropped -= sum(isinstance(message, FaceEvent) for message in kept)
            self._waiting = deque(kept)

    def close(self, timeout_s: float) -> None:
        """Write what waits; a reader that doesn't take it within `timeout_s` is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if lost := self.state.events.waiting:
            log.warning("%d face event(s) weren't read from standard output", lost)

    def _run(self) -> None:
        """Write one message after the other, until all are written after the end was asked for."""
        with self._stream:
            while (message := self._next()) is not None:
                problem = None
                try:
                    self._write(to_json(message) + b"\n")
                except OSError as error:
                    problem = f"can't write to standard output: {error.strerror}"
                self._note(message, problem)

    def _next(self) -> Message | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._writing = self._waiting.popleft() if self._waiting else None
            self._writing_since_s = time.monotonic()
            return self._writing

    def _write(self, line: bytes) -> None:
        rest = memoryview(b"\n" * self._is_cut + line)  # what couldn't be written whole spoils no other line
        while rest:
            written = self._stream.write(rest)
            if written is None:  # whom we share it with has made it non-blocking
                os.set_blocking(self._stream.fileno(), True)
            else:
                rest = rest[written:]
                self._is_cut = bool(rest)

    def _note(self, message: Message, problem: str | None) -> None:
        with self._changed:
            self._writing = None
            if isinstance(message, FaceEvent):
                self._published += problem is None
                self._dropped += problem is not None
            if problem is not None and problem != self._problem:
                log.warning("%s", problem, extra={"EDGEFER_CODE": "undelivered"})
            self._problem = problem


def _named(message: Message) -> tuple[str | None, ...]:
    """Whom a message names."""
    if isinstance(message, FaceEvent):
        return (message.identity.name,)
    return message.known if isinstance(message, Presence) else ()


def open_sink(settings: Settings) -> Sink:  # noqa: ARG001  # the signature is every sink's
    """A sink on this process's standard output."""
    if sys.stdout is None:
        raise SettingsError("EDGEFER_SINKS=stdout: standard output is closed")
    descriptor = os.dup(sys.stdout.fileno())
    os.set_blocking(descriptor, True)
    return StdoutSink(FileIO(descriptor, "w"))
