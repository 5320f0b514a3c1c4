"""The file that keeps the gallery: SQLite, for its owner only, proof against power cuts, sealed where a key is set."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shlex
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgefer.errors import InputError
from edgefer.files import is_of_a_later_sqlite
from edgefer.seal import Seal, load_cipher

log = logging.getLogger(__name__)

VERSION = 1
"""Of the tables below, kept in the file's user_version: a file of a newer one is left alone."""
PATIENCE_S = 5.0
"""How long another process may hold the file."""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, ignored INTEGER NOT NULL);
CREATE TABLE template (
    id INTEGER PRIMARY KEY, person INTEGER NOT NULL REFERENCES person ON DELETE CASCADE, model TEXT NOT NULL,
    embedding BLOB NOT NULL, quality REAL NOT NULL, enrolled TEXT NOT NULL, picture BLOB
);
CREATE INDEX template_person ON template (person);
CREATE TABLE stranger (model TEXT, bin INTEGER, count INTEGER NOT NULL, PRIMARY KEY (model, bin));
"""

Identity = tuple[int, int] | None
"""Device and inode: whether a path still is the file that was opened. None is no file."""


_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""SQLite's, and what Python raises where SQLite's message itself isn't text."""

MAX_LENGTH_ERROR = 1e-3
"""How far a template's length may be from 1: what makes and reads them keeps it to 1e-5, and a flipped bit that moves
it by less changes no cosine that counts."""


class UnreadableGalleryError(InputError):
    """The file can't be read as things are: its disk, its owner or somebody else is in the way, or it is damaged."""


class DamagedGalleryError(UnreadableGalleryError):
    """The file isn't a database any more, or a template in it can't be one."""

    def __init__(self, path: Path, found: str) -> None:
        self.told = f"{path}: the file is damaged ({found})"
        super().__init__(
            f"{self.told}. Stop edgefer, move the file away together with its -wal and -shm, "
            "and put a copy in its place; or just enrol again: `edgefer enroll` and `edgefer people import` keep it "
            "aside and begin a new one"
        )


class TracesLeftError(InputError):
    """What was to be deleted is deleted, but its last traces couldn't be overwritten."""


class GalleryFile:
    """A connection to the gallery's file; to an empty one in memory where there is no file and `create` is false.

    `model` names the one whose templates are read. With `create`, a missing file is made, and a damaged one is kept
    aside under another name. `blank` leaves whatever is there alone, and is the empty one in memory. InputError when
    the file can't be used, with what to do.
    """

    def __init__(self, path: Path, key: str | None, model: str, *, create: bool = False, blank: bool = False) -> None:
        self.path = path
        self._model = model
        self._seal: Seal | None = None
        with self.errors():
            if not create:
                is_there = not blank and _identity(path) is not None
                if is_there:
                    try:
                        _close_to_others(path)  # a copy may have been put there by hand
                    except InputError:  # a link
                        raise
                    except OSError:  # somebody else's, or on a read-only disk
                        pass
                self._open(key, is_there=is_there)
                return
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone_in(path.parent):
                _make_private(path)
                try:
                    self._open(key, is_there=True, create=True)
                except DamagedGalleryError as error:
                    log.warning("%s: it is kept as %s; enrol again who was in it", error.told, _set_aside(path).name)
                    _make_private(path)
                    self._open(key, is_there=True, create=True)

    @property
    def is_current(self) -> bool:
        """Whether the path still leads to the file that was opened."""
        with self.errors():
            return _identity(self.path) == self._identity

    @property
    def changes(self) -> int:
        """A number that moves when another connection changes the file."""
        with self.errors():
            return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def read(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """The rows of a query."""
        with self.errors():
            return self._database.execute(query, values).fetchall()

    def templates(self) -> tuple[list[tuple[str, bool, int]], NDArray[np.float32]]:
        """The model's templates by name: of each the person, whether they are ignored and its number; and n x size.

        DamagedGalleryError where one is no vector of length 1 or differs in size: it could look like anybody.
        """
        rows = cast(
            "list[tuple[str, int, int, bytes]]",
            self.read(
                "SELECT name, ignored, template.id, CAST(embedding AS BLOB) FROM template "
                "JOIN person ON person.id = person WHERE model = ? ORDER BY name, template.id",
                self._model,
            ),
        )
        if not all(isinstance(name, str) for name, *_ in rows):
            raise DamagedGalleryError(self.path, "a name in it isn't text")
        blobs = [self.open_blob(blob) for *_, blob in rows]
        size = len(blobs[0]) if blobs else 0
        if size % 4 or any(len(blob) != size for blob in blobs):
            raise DamagedGalleryError(self.path, "its templates have several sizes")
        faces = np.frombuffer(b"".join(blobs), "<f4").reshape(len(rows), size // 4)
        if not (sound := are_units(faces)).all():
            # Not whose: this is published and logged, and a name that was removed would stay there.
            raise DamagedGalleryError(self.path, f"face {rows[int(sound.argmin())][2]} isn't what was enrolled")
        return [(name, bool(ignored), number) for name, ignored, number, _ in rows], faces

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is kept, or nothing where it fails."""
        with self.errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def leave_no_trace(self, done: str, again: str) -> None:
        """Bring what was deleted out of the file and its write-ahead log.

        secure_delete overwrites it where it was, but not where SQLite had moved it from as its neighbours grew: so the
        file is written anew. The first checkpoint brings what was overwritten to the disk before the file gets shorter.
        TracesLeftError where that can't be: what was `done` nonetheless, and the arguments of the `edgefer people`
        that tries `again`.
        """
        try:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.execute("VACUUM")
            (busy, _, _) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except _ERRORS as error:
            explained = _explained(self.path, error)
            if isinstance(explained, DamagedGalleryError):
                raise TracesLeftError(f"{done}, but traces of what was before stay: {explained}") from error
            raise TracesLeftError(
                f"{done}, but traces of what was before stay in {self.path} ({error}): make room on the disk "
                f"(df -h {self.path.parent}), then `edgefer people {again}`"
            ) from error
        if busy:
            raise TracesLeftError(
                f"{done}, but traces of what was before stay in {self.path} and its -wal, which another program reads "
                f"(a backup?): once it has ended, `edgefer people {again}`"
            )

    def check_seal(self) -> None:
        """InputError where the file is sealed, perhaps since it was opened, and we have no key."""
        with self.errors():
            if self._seal is None and self._is_sealed():
                raise InputError(f"{self.path} is sealed: set EDGEFER_GALLERY__KEY to the key it was sealed with")

    def close_blob(self, data: bytes) -> bytes:
        """The data as it is stored: sealed where a key is set."""
        return self._seal.close(data) if self._seal else data

    def open_blob(self, data: bytes) -> bytes:
        """The data as it was before it was stored."""
        try:
            return self._seal.open(data) if self._seal else data
        except InputError as error:
            raise DamagedGalleryError(self.path, str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of SQLite and of the disk become an InputError that names the file."""
        try:
            yield
        except _ERRORS as error:
            raise _explained(self.path, error) from error
        except InputError:
            raise
        except OSError as error:
            passes = isinstance(error, PermissionError) or error.errno in (errno.EIO, errno.ESTALE)
            kind = UnreadableGalleryError if passes else InputError
            raise kind(f"{self.path}: {error.strerror}; EDGEFER_STATE_DIR must be a folder we may write to") from error

    def _open(self, key: str | None, *, is_there: bool, create: bool = False) -> None:
        with self.errors():
            self._connect(self.path if is_there else None)
            try:
                is_blank = self._is_blank()
                if is_there and not create and (is_blank or self._is_to_be_sealed(key)):  # another process is at it
                    self._database.close()
                    self._connect(None)
                    is_there, is_blank = False, True
                if is_blank:
                    self._make_tables()
                elif create:
                    self._check_whole()
                if is_there:
                    self._seal = self._open_seal(key)
                elif key is not None:  # with nothing to seal yet, only what it takes
                    load_cipher()
                self.templates()
                self.read("SELECT name FROM person")  # of those whom another model knows, too
                self._identity = _identity(self.path) if is_there else None
            except BaseException:
                self._database.close()
                raise

    def _connect(self, path: Path | None) -> None:
        if path is not None and is_of_a_later_sqlite(path):
            raise DamagedGalleryError(path, "its header")
        self._database = sqlite3.connect(path or ":memory:", timeout=PATIENCE_S, isolation_level=None)
        self._database.execute("PRAGMA foreign_keys=ON")
        self._database.execute("PRAGMA secure_delete=ON")
        self._database.execute("PRAGMA temp_store=MEMORY")  # no face in a file outside the state folder
        self._database.execute("PRAGMA synchronous=FULL")  # what was said to be enrolled survives a power cut

    def _is_blank(self) -> bool:
        """Whether the database is still without tables; InputError where they aren't ours."""
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            return True
        if version > VERSION:
            raise InputError(
                f"{self.path} is of a newer edgefer (version {version} of the file; this one knows {VERSION}) and was "
                "left as it is: install that edgefer, or set EDGEFER_STATE_DIR to another folder"
            )
        if version < VERSION:
            raise _foreign(self.path)
        return False

    def _make_tables(self) -> None:
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={VERSION}; COMMIT;")

    def _check_whole(self) -> None:
        if self._database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("malformed")

    def _open_seal(self, key: str | None) -> Seal | None:
        if key is None:
            self._seal = None
            self.check_seal()
            return None
        if not self._is_sealed():
            if self._has_templates():
                raise InputError(
                    f"{self.path} was made without a key, so EDGEFER_GALLERY__KEY can't open it: unset it; to seal the "
                    "file, `edgefer people export`, stop edgefer, move the file away together with its -wal and -shm, "
                    "set the key, and `edgefer people import`"
                )
            seal = Seal.new(key)
            with self.changing() as database:
                database.executemany("INSERT INTO meta VALUES (?, ?)", [("salt", seal.salt), ("check", seal.check)])
        meta = dict(self._database.execute("SELECT name, CAST(value AS BLOB) FROM meta"))
        try:
            return Seal.verified(key, meta["salt"], meta.get("check", b""))
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def _is_to_be_sealed(self, key: str | None) -> bool:
        return key is not None and not self._is_sealed() and not self._has_templates()

    def _is_sealed(self) -> bool:
        return self._database.execute("SELECT 1 FROM meta WHERE name = 'salt'").fetchone() is not None

    def _has_templates(self) -> bool:
        return self._database.execute("SELECT 1 FROM template").fetchone() is not None


def are_units(faces: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of n x size values are vectors of length 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: NDArray[np.bool_] = np.abs(np.linalg.norm(faces, axis=1) - 1) < MAX_LENGTH_ERROR  # NaN is near nothing
    return found


def _identity(path: Path) -> Identity:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def _explained(path: Path, error: sqlite3.DatabaseError | UnicodeDecodeError) -> InputError:
    # Python 3.10 knows no error codes; SQLite's texts are fixed.
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return DamagedGalleryError(path, "what it says of its tables isn't text")
    if "not a database" in text or "malformed" in text or "unsupported file format" in text:
        return DamagedGalleryError(path, text)
    if "decode to UTF-8" in text:
        return DamagedGalleryError(path, "a name in it isn't text")
    if "no such table" in text or "no such column" in text:
        return _foreign(path)
    if "disk is full" in text or "disk I/O error" in text:
        problem = f"{path}: {text}: nothing was changed; make room on the disk (df -h {path.parent})"
        return UnreadableGalleryError(problem)
    if "locked" in text:
        return UnreadableGalleryError(f"{path}: another process has held the file for {PATIENCE_S:.0f} s; try again")
    if "unable to open" in text or "readonly" in text:
        if _is_read_only(path.parent):
            return UnreadableGalleryError(
                f"{path}: its folder is mounted read-only (`findmnt -T {path.parent}`): a card that fails is, and for "
                "the service all but its own folders are (ReadWritePaths= in the unit)"
            )
        told = misowned(path) or "run this as the owner of EDGEFER_STATE_DIR and of what is in it, or with sudo"
        return UnreadableGalleryError(f"{path}: {text}; {told}")
    return InputError(f"{path}: {text}; EDGEFER_STATE_DIR is its folder")


def misowned(path: Path) -> str | None:
    """What to do about a file of root's in a folder of somebody else's, as one is that was copied there; else None."""
    owners = {}
    for one in (path.parent, path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(OSError):
            owners[one] = one.stat().st_uid
    wanted = owners.pop(path.parent, 0)
    roots = [shlex.quote(str(one)) for one, owner in owners.items() if owner == 0]
    if wanted == 0 or not roots:
        return None
    return (
        f"it belongs to root, and its folder to user {wanted}, who may not use it: "
        f"`sudo chown --reference={shlex.quote(str(path.parent))} {' '.join(roots)}`"
    )


def _is_read_only(folder: Path) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _foreign(path: Path) -> InputError:
    return InputError(f"{path} is no gallery that this edgefer knows: move it away and enrol again")


def kept_aside(path: Path) -> list[Path]:
    """The damaged files that were kept aside of a gallery's."""
    return sorted(path.parent.glob(f"{path.stem}.damaged-*{path.suffix}"))


def _set_aside(path: Path) -> Path:
    """Rename a damaged file and what belongs to it; the new name."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.stem}.damaged-{stamp}{path.suffix}")
    while aside.exists():
        aside = aside.with_stem(f"{aside.stem}+")
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside


def _make_private(path: Path) -> None:
    """Make the file where it isn't there; for its owner only, who is the folder's where root is at work."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    _close_to_others(path)
    if os.geteuid() == 0:  # the service's user, perhaps; SQLite gives what it puts beside the file the same owner
        with _unfollowed(path) as itself:
            os.chown(itself, path.parent.stat().st_uid, path.parent.stat().st_gid)


def _close_to_others(path: Path) -> None:
    for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(FileNotFoundError), _unfollowed(part) as itself:
            if itself.stat().st_mode & 0o077:
                itself.chmod(0o600)


@contextmanager
def _unfollowed(path: Path) -> Iterator[Path]:
    """A way to the file itself. InputError where it is a link: what that leads to isn't ours, whatever root may do."""
    # Closing any other descriptor of the file would give up SQLite's locks on it.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise InputError(f"{path} is a link; EDGEFER_STATE_DIR says in which folder the file itself is to be")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time makes a file, or puts a damaged one aside."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        patience_until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > patience_until_s:
                    raise InputError(f"{folder}: another process is at work there; try again") from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
