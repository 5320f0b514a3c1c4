"""The people we know: templates of their faces in one SQLite file, and the nearest to a face."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edgefer.errors import InputError, UsageError
from edgefer.seal import Seal
from edgefer.settings import Settings
from edgefer.vision.card import ModelCard
from edgefer.vision.embedder import Embedding

log = logging.getLogger(__name__)

MAX_NAME = 64
"""Characters of a name: it goes into every event."""

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS template (
    id INTEGER PRIMARY KEY, person TEXT NOT NULL, model TEXT NOT NULL, embedding BLOB NOT NULL,
    quality REAL NOT NULL, enrolled TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody we know, and by how many templates."""

    name: str
    templates: int


@dataclass(frozen=True, slots=True)
class Match:
    """The nearest person to a face: the cosine, and how much nearer than the second person (None without one)."""

    name: str
    similarity: float
    margin: float | None


class Gallery:
    """The people in a state folder, as one model sees them.

    `model` names the embedding model: templates of another can't be compared and are left out. `key` seals the
    templates. The file is made only where `create` says so; without it, nobody is known. InputError when the file can't
    be used, with what to do.
    """

    def __init__(self, folder: Path, model: str, key: str | None = None, *, create: bool = False) -> None:
        self.path = folder / "gallery.sqlite3"
        self.model = model
        self._key = key
        with self._errors():
            if create:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self.path.touch(mode=0o600)
                if os.geteuid() == 0:  # the folder's owner, the service's user perhaps, must be able to read it
                    os.chown(self.path, folder.stat().st_uid, folder.stat().st_gid)
            self._open()

    def refresh(self) -> None:
        """Take up what another process has changed since; cheap when nothing was."""
        with self._errors():
            if self._place != self.path and self.path.exists():
                self._database.close()
                self._open()
            elif self._data_version() != self._version:
                self._load()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is enrolled (with this model)."""
        return not self._names

    def match(self, face: Embedding) -> Match | None:
        """Who is nearest to a face, or None when nobody is enrolled."""
        if not self._names:
            return None
        similarities = self._templates @ face
        best = np.full(len(self._names), -1.0, np.float32)
        np.maximum.at(best, self._persons, similarities)
        first = int(best.argmax())
        margin = float(best[first] - np.delete(best, first).max()) if len(best) > 1 else None
        return Match(self._names[first], float(best[first].clip(-1, 1)), margin)

    def enroll(self, name: str, face: Embedding, quality: float) -> None:
        """Add a template to a person, new or known; UsageError when the name can't be one."""
        name = check_name(name)
        blob = face.astype("<f4").tobytes()
        if self._seal:
            blob = self._seal.close(blob)
        with self._errors():
            self._database.execute(
                "INSERT INTO template (person, model, embedding, quality, enrolled) VALUES (?, ?, ?, ?, ?)",
                (name, self.model, blob, quality, datetime.now(timezone.utc).isoformat(timespec="seconds")),
            )
            self._load()

    def remove(self, name: str) -> int:
        """Forget a person; how many templates there were."""
        with self._errors():
            removed = self._database.execute("DELETE FROM template WHERE person = ?", (name,)).rowcount
            self._load()
        return removed

    def people(self) -> list[Person]:
        """Everybody, by name, as this model sees them."""
        counts = np.bincount(self._persons, minlength=len(self._names))
        return [Person(name, int(count)) for name, count in zip(self._names, counts, strict=True)]

    def other_models(self) -> list[str]:
        """Models that templates in the file were made with, and that aren't this one."""
        with self._errors():
            rows = self._database.execute("SELECT DISTINCT model FROM template WHERE model != ?", (self.model,))
            return [row[0] for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _open(self) -> None:
        self._place = self.path if self.path.exists() else Path(":memory:")
        self._database = sqlite3.connect(self._place, timeout=5, isolation_level=None)
        if self._place == self.path:
            self._database.execute("PRAGMA journal_mode=WAL")
        self._database.executescript(_TABLES)
        self._seal = self._open_seal(self._key)
        self._load()

    def _data_version(self) -> int:
        """A number that moves when another connection changes the file."""
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def _load(self) -> None:
        """Take the templates into one matrix: a match is then one product."""
        self._version = self._data_version()
        rows = self._database.execute(
            "SELECT person, embedding FROM template WHERE model = ? ORDER BY person", (self.model,)
        ).fetchall()
        blobs = [self._seal.open(blob) if self._seal else blob for _, blob in rows]
        self._names = sorted({person for person, _ in rows})
        index = {name: i for i, name in enumerate(self._names)}
        self._persons = np.array([index[person] for person, _ in rows], np.intp)
        self._templates = np.stack([np.frombuffer(blob, "<f4") for blob in blobs]) if blobs else np.zeros((0, 0))

    def _open_seal(self, key: str | None) -> Seal | None:
        meta = dict(self._database.execute("SELECT name, value FROM meta"))
        used = self._database.execute("SELECT 1 FROM template").fetchone() is not None
        if key is None:
            if "salt" in meta:
                raise InputError(f"{self.path} is sealed: set EDGEFER_GALLERY__KEY to the key it was sealed with")
            return None
        if "salt" not in meta:
            if used:
                raise InputError(
                    f"{self.path} was made without a key, so EDGEFER_GALLERY__KEY can't open it: "
                    "unset the key, or move the file away and enrol again"
                )
            seal = Seal.new(key)
            self._database.executemany("INSERT INTO meta VALUES (?, ?)", [("salt", seal.salt), ("check", seal.check)])
            return seal
        return Seal.verified(key, meta["salt"], meta["check"])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path}: {error}; if the file is damaged, move it away and enrol again "
                "(EDGEFER_STATE_DIR is its folder)"
            ) from error
        except InputError:
            raise
        except OSError as error:
            raise InputError(
                f"{self.path}: {error.strerror}; EDGEFER_STATE_DIR must be a folder we may write to"
            ) from error


def open_gallery(settings: Settings, card: ModelCard, *, create: bool = False) -> Gallery:
    """The gallery of the settings' state folder, as the model with this card sees it."""
    key = settings.gallery.key.get_secret_value() if settings.gallery.key else None
    # The digest is part of the id: a retrained model of the same name sees faces differently.
    model = f"{card.name} {card.sha256[:12]}".strip()
    gallery = Gallery(settings.state_dir, model, key, create=create)
    if others := gallery.other_models():
        log.warning(
            "%s holds people enrolled with another model (%s); they aren't recognised until they are enrolled again",
            gallery.path,
            ", ".join(others),
        )
    return gallery


def check_name(name: str) -> str:
    """The name without white space around it; UsageError when it can't be a person's."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(f"a name has 1 to {MAX_NAME} printable characters; {name[:80]!r} doesn't do")
    return name
