"""Where messages go: one file a sink, named by EDGEFER_SINKS.

A module here opens its sink with `open_sink(settings)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edgefer.messages import EventCounts, Frame, Message
from edgefer.settings import Settings


@dataclass(frozen=True, slots=True)
class SinkState:
    """How a sink does: what is wrong (None when nothing is), and what became of the face events."""

    problem: str | None
    events: EventCounts
    part: Literal["broker", "stdout"] = "broker"
    """Where the problem is, in the words of `health`."""
    hung: tuple[str, ...] = ()
    """What of it neither goes on nor is in a recovery that ends; a broker that is away is no reason."""
    unstored: str | None = None
    """Why events that wait can't be kept for the next start; None while they can, or needn't."""


class Sink(Protocol):
    """Takes messages and brings them somewhere, in a thread of its own where that can take time."""

    @property
    def state(self) -> SinkState:
        """How the sink does now."""

    def publish(self, frame: Frame | None, messages: Sequence[Message]) -> None:
        """Take messages, in order, without waiting; `frame` is the one that they are about, where there is one."""

    def forget(self, names: frozenset[str]) -> None:
        """Drop what waits and names one of these people: they were removed."""

    def close(self, timeout_s: float) -> None:
        """Bring out what still waits, for at most `timeout_s` seconds, say good-bye, and stop."""


def open_sinks(settings: Settings) -> list[Sink]:
    """The sinks that the settings name, a broker first: it is its counts that health tells."""
    names = sorted(settings.sinks.split(","))
    sinks: list[Sink] = [importlib.import_module(f"{__name__}.{name}").open_sink(settings) for name in names]
    return sinks
