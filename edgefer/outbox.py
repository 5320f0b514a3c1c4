"""Face events that nobody has acknowledged yet, in order and within bounds; on disk where that takes long."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from edgefer.messages import EventCounts, FaceEvent
from edgefer.payload import to_json
from edgefer.pulse import Pulse
from edgefer.settings import Settings
from edgefer.store import Store, StoreError

log = logging.getLogger(__name__)

CAPACITY = 4096
"""So many events wait at most: an hour (the default expiry) of five faces in view, in about 8 MB."""
MAX_BYTES = 16 * 2**20
"""So many bytes of JSON wait at most: four times what the events of shipped models come to."""
KEPT_AFTER_S = 1.0
"""An event that has waited for so long is written to the store, with all that came after it. A broker that answers in
time thus costs an SD card nothing, and one that doesn't a write a second."""
EMPTY_FOR_S = 10.0
"""The store's file is removed when nothing was in it for so long; a slow broker has it made once."""
FORGETTING_S = 5.0
"""Somebody who was forgotten may still be recognised for a moment, until the gallery is read again."""
WRITE_S = 30.0
"""A look at the store that takes longer hangs: waiting for another process and a tired SD card take less."""
CLOSE_S = 4.0
"""How long the last write may take: it syncs a new file eight times, each of which may take a tired SD card 0.25 s."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that waits, as JSON: its place in the order of arrival, its frame's capture and its own coming.

    Both times are on the monotonic clock; `name` is whom it names, if anybody. A `restored` one is of an earlier start.
    """

    number: int
    payload: bytes
    device: str
    name: str | None
    captured_at: float
    since: float
    restored: bool

    @property
    def age_s(self) -> float:
        """Seconds since the capture, whatever happened to the wall clock."""
        return time.monotonic() - self.captured_at


class Outbox:
    """Keeps events until they are acknowledged, too old, or too many.

    Every event that was put, or found in the store, is counted exactly once: it waits, or it was published, expired or
    dropped. What waits in the store comes before all that is put; where it can be read only later, before all that
    isn't sent yet by then. Any thread may call; the store is written by a thread of its own, which `close` ends.
    """

    def __init__(self, expiry_s: float, capacity: int = CAPACITY, store: Store | None = None) -> None:
        self._expiry_s = expiry_s
        self._capacity = capacity
        self._lock = threading.Lock()
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._bytes = 0
        self._sent = 0
        self._last = self._published = self._replayed = self._expired = self._dropped = 0
        self._forgotten_until: dict[str, float] = {}
        self._store = store
        self._in_store: dict[int, int] = {}
        self._emptied_s = 0.0
        self._taken_up = False
        self._set_aside: str | None = None
        self._problem: str | None = None
        self._warned: set[str] = set()
        self._pulse = Pulse()
        self._closing = threading.Event()
        if store is not None:
            self._keep(store)
            self._thread = threading.Thread(target=self._run, args=(store,), name="outbox", daemon=True)
            self._thread.start()

    def put(self, event: FaceEvent, captured_at: float) -> None:
        """Add an event at the end; when the outbox is full, the oldest ones make room."""
        payload, name = to_json(event), event.identity.name
        waiting = Waiting(0, payload, event.device, name, captured_at, since=time.monotonic(), restored=False)
        with self._lock:
            if name is not None and self._forgotten_until.get(name, 0.0) > time.monotonic():
                self._dropped += 1
            else:
                self._add(waiting)

    def next_after(self, number: int) -> Waiting | None:
        """The oldest event that came after `number` (0: the oldest of all) and is still worth sending, if any.

        Expired events are taken out first. What is given counts as sent, like all before it.
        """
        with self._lock:
            self._sent = number
            self._expire()
            found = next((waiting for waiting in self._waiting.values() if waiting.number > number), None)
            self._sent = number if found is None else found.number
            return found

    def acknowledge(self, number: int, *, replayed: bool) -> None:
        """The event has arrived, `replayed` as one that was late. Nothing happens when it was given up before."""
        with self._lock:
            if self._take_out(number):
                self._published += 1
                self._replayed += replayed

    def give_up(self, number: int) -> None:
        """The event can't be delivered: count it as dropped."""
        with self._lock:
            self._dropped += self._take_out(number)

    def forget(self, names: frozenset[str]) -> None:
        """Drop what waits and names one of these people; the store follows."""
        with self._lock:
            theirs = [number for number, waiting in self._waiting.items() if waiting.name in names]
            for number in theirs:
                self._dropped += self._take_out(number)
        _log_forgotten(len(theirs))

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

    @property
    def problem(self) -> str | None:
        """Why events can't be kept for the next start; None while they can, or needn't."""
        return self._problem or self._set_aside

    @property
    def alive(self) -> bool:
        """Whether the thread that writes the store goes on."""
        return not self._pulse.missed

    def close(self) -> int:
        """Write what still waits to the store; how many events are lost with this process."""
        self._closing.set()
        if self._store is not None and self._thread.is_alive():
            self._thread.join(CLOSE_S)
        with self._lock:
            return len(self._waiting.keys() - self._in_store.keys())

    def _add(self, waiting: Waiting) -> int:
        """Give an event the next number, which is returned; when that is too much, the oldest make room."""
        self._last += 1
        self._waiting[self._last] = replace(waiting, number=self._last)
        self._bytes += len(waiting.payload)
        while len(self._waiting) > self._capacity or self._bytes > MAX_BYTES:
            self._dropped += self._take_out(next(iter(self._waiting)))
        return self._last

    def _take_out(self, number: int) -> bool:
        waiting = self._waiting.pop(number, None)
        self._bytes -= len(waiting.payload) if waiting else 0
        return waiting is not None

    def _expire(self) -> None:
        fresh_from = time.monotonic() - self._expiry_s
        # What is on its way may arrive yet: it expires when it would be sent again.
        waiting_here = (waiting for number, waiting in self._waiting.items() if number > self._sent)
        old = [waiting for waiting in waiting_here if waiting.captured_at < fresh_from]
        for waiting in old:
            self._expired += self._take_out(waiting.number)

    def _run(self, store: Store) -> None:
        """Keep the store as it should be, until the end; then everything that waits goes there."""
        while True:
            spare_s = self._spare_s()
            self._pulse.expect_within(spare_s + WRITE_S)
            if self._closing.wait(spare_s):
                break
            self._keep(store)
        self._keep(store, everything=True)
        store.close()
        self._pulse.rest()

    def _spare_s(self) -> float:
        """How long nothing has to be written; a little, where a write failed."""
        with self._lock:
            oldest = next((w for number, w in self._waiting.items() if number not in self._in_store), None)
        if oldest is None or self._problem is not None:
            return KEPT_AFTER_S
        return max(0.05, oldest.since + KEPT_AFTER_S - time.monotonic())

    def _keep(self, store: Store, *, everything: bool = False) -> None:
        """Bring memory and store together: what one side has lost leaves the other, and what waits long is written."""
        try:
            self._take_up(store)
            if store.is_open:
                self._drop_forgotten(store)
            self._write(store, everything=everything)
            if store.is_open and self._warned:
                log.info("%s can be written again", store.path)
                self._warned.clear()
            if store.is_open and not self._in_store and time.monotonic() - self._emptied_s > EMPTY_FOR_S:
                store.close()
            self._problem = None
            if self._set_aside and not store.set_aside:
                self._set_aside = None
        except StoreError as error:
            if error.set_aside:
                self._in_store.clear()
                self._set_aside = str(error)
            # One outage can show by turns: a full disk is an I/O error too.
            if str(error) not in self._warned:
                log.warning("%s", error, extra={"EDGEFER_CODE": "unstored"})
            if not error.set_aside:
                self._warned.add(str(error))
            self._problem = None if error.set_aside else str(error)
        except Exception as error:  # a thread's edge: events are sent all the same
            log.exception("the store of waiting events failed")
            self._problem = f"the store of waiting events failed: {error!r}; this is a defect, please report it"

    def _take_up(self, store: Store) -> None:
        """Take in what an earlier start has left, once: at the start, or when the file can be read at last."""
        if self._taken_up:
            return
        found = store.load() if store.exists else []
        now_s = time.monotonic()
        with self._lock:
            # Before all that isn't sent yet, which gets new numbers.
            later = [waiting for number, waiting in self._waiting.items() if number > self._sent]
            for waiting in later:
                self._take_out(waiting.number)
            for old in found:
                restored = Waiting(0, old.payload, old.device, old.name, old.captured_at, now_s, restored=True)
                self._in_store[self._add(restored)] = old.id
            for waiting in later:
                self._add(waiting)
        self._taken_up = True
        if found:
            log.info("%d event(s) of an earlier start wait in %s", len(found), store.path)

    def _write(self, store: Store, *, everything: bool) -> None:
        with self._lock:
            self._expire()
            unwritten = [waiting for number, waiting in self._waiting.items() if number not in self._in_store]
            gone = [number for number in self._in_store if number not in self._waiting]
        due = unwritten and (everything or time.monotonic() - unwritten[0].since >= KEPT_AFTER_S)
        if not due and not gone:
            return
        add = unwritten if due else []
        ids = store.write(
            [(waiting.payload, waiting.captured_at) for waiting in add], [self._in_store[number] for number in gone]
        )
        with self._lock:
            for number in gone:
                del self._in_store[number]
            self._in_store.update(zip((waiting.number for waiting in add), ids, strict=True))
        self._emptied_s = time.monotonic()

    def _drop_forgotten(self, store: Store) -> None:
        """Forget what another process has deleted from the store, and with it all that names the same people."""
        left = store.ids_if_changed()
        if left is None:
            return
        with self._lock:
            gone = {number for number, row in self._in_store.items() if row not in left}
            names = {self._waiting[number].name for number in gone if number in self._waiting} - {None}
            theirs = [n for n, waiting in self._waiting.items() if n in gone or waiting.name in names]
            for number in theirs:
                self._dropped += self._take_out(number)
            for number in gone:
                del self._in_store[number]
            until_s = time.monotonic() + FORGETTING_S
            self._forgotten_until |= {name: until_s for name in names if name is not None}
        _log_forgotten(len(theirs))


def open_outbox(settings: Settings) -> Outbox:
    """The outbox of a daemon with these settings, with what an earlier start has left."""
    return Outbox(settings.events.expiry_s, store=_store(settings) if settings.events.store else None)


def forget(settings: Settings, name: str) -> int:
    """Delete the waiting events of a person from the state folder; how many there were.

    A daemon that runs drops what it has of them in memory within a second. Files that were set aside are deleted:
    nobody can tell whom they name. InputError where that can't be done.
    """
    return _store(settings).forget(name)


def are_waiting(settings: Settings) -> bool:
    """Whether events lie in the state folder, of whomever."""
    return _store(settings).exists


def _log_forgotten(count: int) -> None:
    if count:
        log.info("%d waiting event(s) of somebody who was forgotten are dropped", count)


def _store(settings: Settings) -> Store:
    key = settings.gallery.key
    return Store(settings.state_dir, None if key is None else key.get_secret_value())
