"""Face events that nobody has acknowledged yet, in order and within bounds."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from edgefer.messages import EventCounts, FaceEvent

CAPACITY = 4096
"""So many events wait at most: an hour (the default expiry) of five faces in view, in about 8 MB."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that waits: its place in the order of arrival, and its frame's capture on the monotonic clock."""

    number: int
    event: FaceEvent
    captured_at: float

    @property
    def age_s(self) -> float:
        """Seconds since the capture, whatever happened to the wall clock."""
        return time.monotonic() - self.captured_at


class Outbox:
    """Keeps events until they are acknowledged, too old, or too many.

    Every event that was put is counted exactly once: it waits, or it was published, expired or dropped. Any thread may
    call.
    """

    def __init__(self, expiry_s: float, capacity: int = CAPACITY) -> None:
        self._expiry_s = expiry_s
        self._capacity = capacity
        self._lock = threading.Lock()
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._put = self._published = self._replayed = self._expired = self._dropped = 0

    def put(self, event: FaceEvent, captured_at: float) -> None:
        """Add an event at the end; when the outbox is full, the oldest one makes room."""
        with self._lock:
            self._put += 1
            self._waiting[self._put] = Waiting(self._put, event, captured_at)
            if len(self._waiting) > self._capacity:
                self._waiting.popitem(last=False)
                self._dropped += 1

    def next_after(self, number: int) -> Waiting | None:
        """The oldest event that came after `number` (0: the oldest of all) and is still worth sending, if any.

        Expired events are taken out first.
        """
        with self._lock:
            self._expire()
            return next((waiting for waiting in self._waiting.values() if waiting.number > number), None)

    def acknowledge(self, number: int, *, replayed: bool) -> None:
        """The event has arrived, `replayed` as one that was late. Nothing happens when it was given up before."""
        with self._lock:
            if self._waiting.pop(number, None):
                self._published += 1
                self._replayed += replayed

    def give_up(self, number: int) -> None:
        """The event can't be delivered: count it as dropped."""
        with self._lock:
            if self._waiting.pop(number, None):
                self._dropped += 1

    @property
    def counts(self) -> EventCounts:
        """What became of all events so far."""
        with self._lock:
            self._expire()
            return EventCounts(
                published=self._published,
                waiting=len(self._waiting),
                replayed=self._replayed,
                expired=self._expired,
                dropped=self._dropped,
            )

    def _expire(self) -> None:
        fresh_from = time.monotonic() - self._expiry_s
        old = list(itertools.takewhile(lambda waiting: waiting.captured_at < fresh_from, self._waiting.values()))
        for waiting in old:
            del self._waiting[waiting.number]
        self._expired += len(old)
