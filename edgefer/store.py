"""Waiting face events on disk, for the next start: one SQLite file, there only while something waits."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgefer import machine
from edgefer.errors import InputError
from edgefer.files import is_of_a_later_sqlite
from edgefer.messages import FaceEvent
from edgefer.payload import face_event_from_json
from edgefer.seal import Seal

log = logging.getLogger(__name__)

FILE = "outbox.sqlite3"
VERSION = 1
"""Of the tables below, in the file's user_version."""
MAX_FILE_BYTES = 64 * 2**20
"""A larger file isn't ours: what may wait in it is bounded by the outbox, to a quarter of this."""
BUSY_S = 5.0
"""How long `edgefer people remove` and the daemon wait for each other's write, which takes milliseconds."""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL, captured_at REAL NOT NULL, machine_boot TEXT NOT NULL
);
"""
_COLUMNS = {"meta": ["name", "value"], "event": ["id", "payload", "captured_at", "machine_boot"]}
_PASSING = ("disk is full", "unable to open", "readonly", "disk I/O", "is locked", "out of memory")
"""What SQLite says of troubles that aren't the file's own. (Its error codes reach Python from 3.11 on.)"""
_ASIDE = ".aside-"
_PARTS = ("", "-wal", "-shm")
"""What SQLite makes of one file."""


class _SealedError(sqlite3.DatabaseError):
    """The file is sealed with another key than ours."""


class StoreError(InputError):
    """The file can't be used now, and why; where it never can be, it was `set_aside` under another name."""

    def __init__(self, message: str, *, set_aside: bool = False) -> None:
        super().__init__(message)
        self.set_aside = set_aside


@dataclass(frozen=True, slots=True)
class Stored:
    """An event in the file: its place there, its JSON, and its frame's capture on this process's monotonic clock.

    `device` and `name` are the JSON's: where it belongs, and whom it names, if anybody.
    """

    id: int
    payload: bytes
    device: str
    name: str | None
    captured_at: float


class Store:
    """The file in a state folder; `key` seals the events in it, for they say who was where and when.

    One daemon at a time owns it, and one thread of that. Every method raises StoreError where the file can't be read or
    written now; a damaged one, or one of a later version, is set aside first, and the next write begins a new one.
    """

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.path = folder / FILE
        self._key = key
        self._lock: int | None = None
        self._database: sqlite3.Connection | None = None
        self._seal: Seal | None = None
        self._version = 0

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return os.path.lexists(self.path)

    @property
    def set_aside(self) -> list[Path]:
        """Files that couldn't be used, and are still there under another name."""
        return sorted(self.path.parent.glob(f"{FILE}{_ASIDE}*"))

    @property
    def is_open(self) -> bool:
        """Whether the file is in use."""
        return self._database is not None

    def load(self) -> list[Stored]:
        """Every event in the file, oldest first; what can't be read is left out, and deleted."""
        with self._errors():
            database = self._open()
            rows = database.execute("SELECT id, payload, captured_at, machine_boot FROM event ORDER BY id").fetchall()
            events = [(row, self._event(row[1]) if isinstance(row[2], float) else None) for row in rows]
            unreadable = [row[0] for row, event in events if event is None]
            if unreadable:
                log.warning("%s: %d event(s) in it can't be read; dropping them", self.path, len(unreadable))
                self._change(database, [], unreadable)
            # Nobody is younger than who came later, whatever a clock says.
            youngest, found = time.monotonic(), []
            for (row_id, payload, captured_at, machine_boot), event in reversed(events):
                if event is not None:
                    youngest = min(youngest, _captured_at(event, captured_at, machine_boot))
                    found.append(Stored(row_id, self._opened(payload), event.device, event.identity.name, youngest))
            return found[::-1]

    def write(self, add: Sequence[tuple[bytes, float]], remove: Iterable[int]) -> list[int]:
        """Add events (JSON, and when captured), and remove others by their ids, at one go; the ids of the new ones."""
        with self._errors():
            return self._change(self._open(), add, remove)

    def ids_if_changed(self) -> set[int] | None:
        """The ids that are left after another process has changed the file; None where none has since the last look."""
        with self._errors():
            database = self._open()
            version = _data_version(database)
            if version == self._version:
                return None
            self._version = version
            return {row[0] for row in database.execute("SELECT id FROM event")}

    def forget(self, name: str) -> int:
        """Delete the events of a person, and every file that was set aside; how many events there were.

        The daemon that owns the file notices. A file that can't be read stays as it is.
        """
        with self._errors(owner=False):
            for aside in self.set_aside:
                aside.unlink(missing_ok=True)
        if not self.exists:
            return 0
        with self._errors(owner=False), closing(self._connect()) as database:
            rows = database.execute("SELECT id, payload FROM event").fetchall()
            events = [(row_id, self._event(payload)) for row_id, payload in rows]
            theirs = [row_id for row_id, event in events if event is not None and event.identity.name == name]
            self._change(database, [], theirs)
            (busy, _, _) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StoreError(
                    f"{len(theirs)} waiting event(s) are deleted, but traces of them stay in {self.path} and its -wal, "
                    "which another program reads (a backup?): once it has ended, try again"
                )
            return len(theirs)

    def close(self) -> None:
        """Close the file, and remove it where nothing is in it."""
        with suppress(StoreError), self._errors():
            if self._database is not None and self._database.execute("SELECT 1 FROM event").fetchone() is None:
                # What was deleted is overwritten before the file goes.
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._release()
                self._unlink()
        self._release()

    def _change(
        self, database: sqlite3.Connection, add: Sequence[tuple[bytes, float]], remove: Iterable[int]
    ) -> list[int]:
        machine_boot = _machine_boot()
        insert = "INSERT INTO event (payload, captured_at, machine_boot) VALUES (?, ?, ?)"
        with database:  # commits, or rolls back
            database.execute("BEGIN IMMEDIATE")
            database.executemany("DELETE FROM event WHERE id = ?", ((row_id,) for row_id in remove))
            return [
                database.execute(
                    insert, (self._seal.close(payload) if self._seal else payload, captured_at, machine_boot)
                ).lastrowid
                or 0
                for payload, captured_at in add
            ]

    def _open(self) -> sqlite3.Connection:
        """The database, which this process owns from now on."""
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Held open as long as the database: closing it would give up SQLite's own locks.
            self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{self.path} is another edgefer's; give each its own EDGEFER_STATE_DIR") from None
            self._database = self._connect()
        return self._database

    def _connect(self) -> sqlite3.Connection:
        # Opened by whoever starts or stops the daemon, then used by one thread.
        if self.path.stat().st_size > MAX_FILE_BYTES:
            raise sqlite3.DatabaseError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        if is_of_a_later_sqlite(self.path):
            raise sqlite3.DatabaseError("its header is damaged")
        database = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        database.text_factory = lambda text: text.decode(errors="replace")
        try:
            database.execute("PRAGMA secure_delete = ON")
            database.execute("PRAGMA journal_mode = WAL")
            # No wait for the card at each write: what is written outlives our end at once, and a power cut soon.
            database.execute("PRAGMA synchronous = NORMAL")
            # Kilobytes of memory: a write touches a few pages. And a WAL of 256 pages, a megabyte, is folded in.
            database.execute("PRAGMA cache_size = -256")
            database.execute("PRAGMA wal_autocheckpoint = 256")
            self._check_version(database)
            self._seal = self._open_seal(database)
        except BaseException:
            database.close()
            raise
        return database

    def _check_version(self, database: sqlite3.Connection) -> None:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and database.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, and this edgefer reads version {VERSION}")
        for table, columns in _COLUMNS.items():
            if [row[1] for row in database.execute(f"PRAGMA table_info({table})")] != columns:
                raise sqlite3.DatabaseError(f"its table {table!r} isn't the one that version {VERSION} has")

    def _open_seal(self, database: sqlite3.Connection) -> Seal | None:
        meta = dict(database.execute("SELECT name, value FROM meta"))
        if self._key is None:
            if meta:
                raise _SealedError("it is sealed, and EDGEFER_GALLERY__KEY isn't set")
            return None
        if not meta:
            if self._lock is None:  # its owner is who writes it, and may have no key
                return None
            seal = Seal.new(self._key)
            plain = database.execute("SELECT id, payload FROM event").fetchall()
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT INTO meta VALUES (?, ?)", [("salt", seal.salt), ("check", seal.check)])
                sealed = [(seal.close(payload), row_id) for row_id, payload in plain]
                database.executemany("UPDATE event SET payload = ? WHERE id = ?", sealed)
            return seal
        try:
            return Seal.verified(self._key, meta["salt"], meta["check"])
        except (InputError, KeyError) as error:
            raise _SealedError("it is sealed, and not with EDGEFER_GALLERY__KEY") from error

    def _opened(self, payload: bytes) -> bytes:
        return self._seal.open(payload) if self._seal else payload

    def _event(self, payload: bytes) -> FaceEvent | None:
        try:
            return face_event_from_json(self._opened(payload))
        except (InputError, TypeError, ValueError):
            return None

    @contextmanager
    def _errors(self, *, owner: bool = True) -> Iterator[None]:
        try:
            yield
        except StoreError:
            self._release()
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self._release()
            if any(passing in str(error) for passing in _PASSING):
                raise StoreError(_advise(self.path, str(error), owner=owner)) from error
            if not owner:
                way_out = (
                    "set the key that the daemon has, and try again"
                    if isinstance(error, _SealedError)
                    else "stop edgefer and delete it: it may name anybody"
                )
                raise StoreError(f"{self.path} can't be read ({error}), so the events in it stay; {way_out}") from error
            raise self._set_aside(str(error)) from error
        except OSError as error:
            self._release()
            raise StoreError(_advise(self.path, error.strerror or str(error), owner=owner)) from error

    def _release(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
            self._version = 0  # whatever changes it until it is open again is to be noticed
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _set_aside(self, reason: str) -> StoreError:
        when = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        aside = next(
            path
            for n in range(1, 1000)
            if not os.path.lexists(path := self.path.with_name(f"{FILE}{_ASIDE}{when}-{n}"))
        )
        try:
            for part in _PARTS:
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}{part}", f"{aside}{part}")  # noqa: PTH104  # names that end so, not suffixes
        except OSError as error:
            return StoreError(_advise(self.path, f"{reason}, and it can't be moved away: {error.strerror}", owner=True))
        return StoreError(
            f"{self.path} can't be used ({reason}): it was kept as {aside.name}, and the events in it aren't sent; "
            "delete it, or report it",
            set_aside=True,
        )

    def _unlink(self) -> None:
        for part in reversed(_PARTS):
            Path(f"{self.path}{part}").unlink(missing_ok=True)


def _captured_at(event: FaceEvent, captured_at: float, machine_boot: str) -> float:
    """When an event of a former process was captured, on this process's monotonic clock, as far as that is known.

    The monotonic clock goes on over a restart of the daemon. Over one of the machine the wall clock has to do, and says
    nothing unless a time server has set it before and after: then the event counts as new, and only its mark says
    that it is not.
    """
    now_s = time.monotonic()
    if machine_boot and machine_boot == _machine_boot():
        return min(captured_at, now_s)
    if event.clock_synced and machine.is_clock_synced():
        return now_s - max(0.0, (datetime.now(timezone.utc) - event.time).total_seconds())
    return now_s


def _machine_boot() -> str:
    """This start of the machine's kernel; empty where it isn't told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _data_version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA data_version").fetchone()[0])


def _advise(path: Path, reason: str, *, owner: bool) -> str:
    if not owner:
        return f"the events that wait in {path} can't be deleted now ({reason}), so they stay; mend that, and try again"
    return (
        f"waiting events can't be written to {path} ({reason}), so they are lost when edgefer or the machine stops; "
        "EDGEFER_STATE_DIR must be a folder we may write to, with room"
    )
