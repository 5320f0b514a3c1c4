"""Messages as JSON lines on standard output, the same JSON that goes to MQTT."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import BinaryIO

from edgefer.messages import EventCounts, FaceEvent, Frame, Message
from edgefer.payload import to_json
from edgefer.settings import Settings
from edgefer.sinks import Sink, SinkState


class StdoutSink:
    """Writes every message as it comes; a reader that went away (`| head`) is a problem, not a crash."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._published = 0
        self._problem: str | None = None

    @property
    def state(self) -> SinkState:
        """How many events were written, and whether somebody still reads them."""
        return SinkState(self._problem, EventCounts(published=self._published))

    def publish(self, frame: Frame | None, messages: Sequence[Message]) -> None:  # noqa: ARG002  # the pixels stay here
        """Write the messages."""
        try:
            for message in messages:
                self._stream.write(to_json(message) + b"\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError) as error:
            self._problem = f"standard output is closed: {error}"
            return
        self._published += sum(isinstance(message, FaceEvent) for message in messages)

    def close(self, timeout_s: float) -> None:  # nothing waits here
        """Nothing waits here."""


def open_sink(settings: Settings) -> Sink:  # noqa: ARG001  # the signature is every sink's
    """A sink on this process's standard output."""
    return StdoutSink(sys.stdout.buffer)
