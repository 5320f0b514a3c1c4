"""Where messages go: one file a sink, named by EDGEFER_SINKS.

A module here opens its sink with `open_sink(settings)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgefer.errors import SettingsError
from edgefer.messages import EventCounts, Frame, Message
from edgefer.settings import Settings


@dataclass(frozen=True, slots=True)
class SinkState:
    """How a sink does: what is wrong (None when nothing is), and what became of the face events."""

    problem: str | None
    events: EventCounts


class Sink(Protocol):
    """Takes messages and brings them somewhere, in a thread of its own where that can take time."""

    @property
    def state(self) -> SinkState:
        """How the sink does now."""

    def publish(self, frame: Frame | None, messages: Sequence[Message]) -> None:
        """Take messages, in order, without waiting; `frame` is the one that they are about, where there is one."""

    def close(self, timeout_s: float) -> None:
        """Bring out what still waits, for at most `timeout_s` seconds, say good-bye, and stop."""


def sink_names() -> list[str]:
    """Every sink that there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_sinks(settings: Settings) -> list[Sink]:
    """The sinks that the settings name; SettingsError lists the known ones."""
    names = settings.sinks.split(",")
    if unknown := [name for name in names if name not in sink_names()]:
        raise SettingsError(
            f"EDGEFER_SINKS: there is no sink {unknown[0]!r}; the known ones are {', '.join(sink_names())}"
        )
    sinks: list[Sink] = [importlib.import_module(f"{__name__}.{name}").open_sink(settings) for name in names]
    return sinks
