"""The people we know: templates of their faces, and who is nearest to a face."""

from __future__ import annotations

import logging
import math
import re
import shlex
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgefer.errors import InputError, UsageError
from edgefer.gallery_file import GalleryFile, UnreadableGalleryError, are_units
from edgefer.settings import Settings
from edgefer.vision.card import ModelCard
from edgefer.vision.embedder import Embedding, units

log = logging.getLogger(__name__)

MAX_NAME = 64
"""Characters of a name: it goes into every event."""
FILE = "gallery.sqlite3"
_JOINER = re.compile(
    "(?<=[^\0-\x7f\u200c\u200d])[\u200c\u200d](?=[^\0-\x7f\u200c\u200d])"
    "|(?<=[^\0-\u036f\ufe00-\ufe0f])[\u034f\ufe00-\ufe0f]|\ufe0f(?=\u20e3)"
)
"""What isn't seen itself but joins, parts or shapes its neighbours, in Persian names and emoji; beside Latin letters it
would only make two names of what looks like one."""
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Fillers, blanks and selectors that Unicode counts as printable."""
BINS = 100
"""Bins of the strangers' histogram to a similarity of 1."""
SPREAD_COST = 0.1
"""Strangers come nearer to somebody the more templates there are, and the more these differ. This much of their
variance (0 for one template, 0.3 for three of CelebA) is taken off the cosine: at one threshold strangers are named
about as seldom after people of one to three templates; of five they would need 0.02 more, of eight 0.05
(models/MODELS.md)."""
CROWD, CROWD_COST = 50, 0.033
"""Strangers come nearer to somebody the more people there are, too: by so much for each e times as many as CROWD, for
the nearest strangers fall off exponentially with the similarity, by this length (models/MODELS.md). Fewer people get
nothing for it: who comes to a small household is often related to it."""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Template:
    """What is kept of one look at a face: its embedding, its quality (0..1), when, and a JPEG only if asked for."""

    embedding: Embedding
    quality: float
    enrolled: str = field(default_factory=_now)
    picture: bytes | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody we know: templates of the model in use and of others (of no use to it), and pictures that are kept."""

    name: str
    templates: int
    ignored: bool = False
    other_models: int = 0
    pictures: int = 0


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Somebody who is to be enrolled, or to be ignored: never to be reported by name."""

    name: str
    templates: Sequence[Template]
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """The nearest person to a face: the similarity, and how much nearer than the second person (None without one).

    `ignored` is a person, or a poster, that is never to be named.
    """

    name: str
    similarity: float
    margin: float | None
    ignored: bool = False


class Gallery:
    """The people in a state folder, as one model sees them.

    `model` names the embedding model: templates of another can't be compared and are left out. `key` seals what is
    stored. The file is made only where `create` says so; without it, nobody is known. InputError when the file can't
    be used, with what to do; but where `outlast`, one that can't be read for now is as none: `problem` tells, and
    `refresh` looks whether it can be by then.

    `removed` holds the people whom the last `refresh` found removed, gone with all their faces. Who was renamed or
    merged is not among them, nor is anybody where the whole file was replaced or moved away.
    """

    def __init__(
        self, folder: Path, model: str, key: str | None = None, *, create: bool = False, outlast: bool = False
    ) -> None:
        self.path = folder / FILE
        self.model = model
        self.problem: str | None = None
        self.removed: frozenset[str] = frozenset()
        self._key = key
        try:
            self._file = GalleryFile(self.path, key, model, create=create)
            self._load()
        except UnreadableGalleryError as error:
            if not outlast:
                raise
            self._tell(str(error))
            self._file = GalleryFile(self.path, None, model, blank=True)
            self._load()

    def refresh(self) -> bool:
        """Take up what another process has changed since; whether that was anything. Cheap when nothing was.

        When the file can't be read any more, everything stays as it was, and `problem` says why.
        """
        before: dict[str, set[tuple[int, bytes]]] = {}
        self.removed = frozenset()
        try:
            if not self._file.is_current:
                fresh = GalleryFile(self.path, self._key, self.model)
                self._file.close()
                self._file = fresh
            elif self._file.changes == self._changes and self.problem is None:
                return False
            else:
                before = self._rows()
            self._load()
        except InputError as error:
            self._tell(str(error))
            return False
        self.problem = None
        after = self._rows()
        left = set().union(*after.values())
        self.removed = frozenset(name for name, rows in before.items() if name not in after and not rows & left)
        return True

    @property
    def is_empty(self) -> bool:
        """Whether nobody is enrolled (with this model)."""
        return not self._names

    def match(self, face: Embedding) -> Match | None:
        """Who is nearest to a face, by a template or by the mean of a person's; None when nobody is enrolled.

        The similarity is that cosine less `costs`.
        """
        if not self._names:
            return None
        cosines = self._compared @ face
        templates, means = np.split(cosines, [len(cosines) - len(self._names)])
        similarities = np.maximum(np.maximum.reduceat(templates, self._starts), means) - self._costs
        person = int(similarities.argmax())
        similarity, margin = float(similarities[person]), None
        if len(self._names) > 1:
            similarities[person] = -np.inf
            margin = similarity - float(similarities.max())
        return Match(self._names[person], min(1.0, max(-1.0, similarity)), margin, self._ignored[person])

    def embeddings(self) -> dict[str, NDArray[np.float32]]:
        """Everybody's templates by name, each n x size."""
        return dict(zip(self._names, np.split(self._templates, self._starts[1:]), strict=True)) if self._names else {}

    def templates(self, name: str) -> list[Template]:
        """What is kept of a person, for this model."""
        rows = self._file.read(
            "SELECT embedding, quality, enrolled, picture FROM template JOIN person ON person.id = person "
            "WHERE name = ? AND model = ? ORDER BY template.id",
            name,
            self.model,
        )
        return [self._template(*cast("tuple[bytes, float, str, bytes | None]", row)) for row in rows]

    def people(self) -> list[Person]:
        """Everybody, by name, with those who were enrolled with other models only."""
        rows = self._file.read(
            "SELECT name, sum(model = ?), ignored, sum(model != ?), count(picture) "
            "FROM person JOIN template ON person.id = person GROUP BY name ORDER BY name",
            self.model,
            self.model,
        )
        return [
            Person(name, here, bool(ignored), elsewhere, pictures)
            for name, here, ignored, elsewhere, pictures in cast("list[tuple[str, int, int, int, int]]", rows)
        ]

    def other_models(self) -> list[str]:
        """Models that templates in the file were made with, and that aren't this one."""
        return [
            str(model) for (model,) in self._file.read("SELECT DISTINCT model FROM template") if model != self.model
        ]

    def enroll(self, name: str, face: Embedding, quality: float) -> None:
        """Add one template to a person, new or known; UsageError when the name can't be one."""
        self.add(name, [Template(face, quality)])

    def add(self, name: str, templates: Sequence[Template], *, ignored: bool = False) -> int:
        """Add templates to a person, new or known, all of them or none; how many weren't there already.

        UsageError when the name can't be one, or is that of somebody who is ignored and now isn't to be, or the other
        way round.
        """
        return self.add_people([Newcomer(name, templates, ignored)])[check_name(name)]

    def add_people(self, newcomers: Sequence[Newcomer]) -> dict[str, int]:
        """Add templates of several people, all of them or none; how many of each weren't there already.

        One that is there without a picture gets it.
        """
        added: dict[str, int] = {}
        with self._file.changing() as database:
            if self._file.changes != self._changes:  # since it was loaded, and nobody can any more
                self._load()
            known, size = self._rows(), self._templates.shape[1]
            for newcomer in newcomers:
                name = check_name(newcomer.name)
                number = self._person(database, name, ignored=newcomer.ignored)
                size = size or len(newcomer.templates[0].embedding)
                if any(len(template.embedding) != size for template in newcomer.templates):
                    raise InputError(f"{name}: the model in use gives {size} values a face, not another number")
                if not are_units(np.stack([template.embedding for template in newcomer.templates])).all():
                    raise InputError(f"{name}: the model in use gives no vector of length 1 for a face; is it whole?")
                here = {face: there for there, face in known.get(name, ())}
                fresh = {template.embedding.astype("<f4").tobytes(): template for template in newcomer.templates}
                rows = [(number, *self._row(template)) for blob, template in fresh.items() if blob not in here]
                database.executemany(_INSERT, rows)
                database.executemany(
                    "UPDATE template SET picture = ? WHERE id = ? AND picture IS NULL",
                    [
                        (self._file.close_blob(template.picture), here[blob])
                        for blob, template in fresh.items()
                        if blob in here and template.picture is not None
                    ],
                )
                added[name] = added.get(name, 0) + len(rows)
            self._forget_strangers(database)
        self._load()
        return added

    def check_kind(self, name: str, *, ignored: bool) -> None:
        """UsageError where somebody of this name is ignored and this one isn't to be, or the other way round."""
        is_ignored = self._kind(name)
        if is_ignored not in (None, ignored):
            raise UsageError(
                f"{name} is {'ignored' if is_ignored else 'known by name'}: `edgefer people remove` first, "
                "or take another name"
            )

    def remove(self, name: str) -> int:
        """Forget a person, without a trace in the file; how many templates there were.

        TracesLeftError, here and below, where it is done but for the traces.
        """
        with self._file.changing() as database:
            removed = database.execute(
                "SELECT count(*) FROM template JOIN person ON person.id = person WHERE name = ?", (name,)
            ).fetchone()[0]
            if database.execute("DELETE FROM person WHERE name = ?", (name,)).rowcount:
                self._forget_strangers(database)
        self._load()
        self._file.leave_no_trace(f"{name} is removed", removal(name))
        return int(removed)

    def rename(self, name: str, to: str) -> None:
        """Give a person another name; UsageError when nobody has the one, or somebody the other."""
        to = check_name(to)
        with self._file.changing() as database:
            kind, others = self._known_kind(name), self._kind(to)
            if to != name and others is not None:
                way_out = "`edgefer people merge` makes one person of two" if others == kind else "take another name"
                raise UsageError(f"{to} is enrolled too: {way_out}")
            database.execute("UPDATE person SET name = ? WHERE name = ?", (to, name))
        self._load()
        self._file.leave_no_trace(f"{name} is {to} now", removal(name))

    def merge(self, name: str, into: str) -> None:
        """Make one person of two, who has the second one's name; UsageError when either isn't enrolled.

        A face that both have is kept once.
        """
        with self._file.changing() as database:
            if self._known_kind(name) != self._known_kind(into):
                raise UsageError(f"one of {name} and {into} is ignored, the other known by name: they can't be merged")
            if name == into:
                raise UsageError(f"{name} and {into} are one person already")
            # Of each two, the one by whose number a daemon knows the first person again; with either's picture.
            for kept, other in self._doubles(name, into):
                database.execute(
                    "UPDATE template SET picture = COALESCE(picture, (SELECT picture FROM template WHERE id = ?)) "
                    "WHERE id = ?",
                    (other, kept),
                )
                database.execute("DELETE FROM template WHERE id = ?", (other,))
            database.execute(
                "UPDATE template SET person = (SELECT id FROM person WHERE name = ?) "
                "WHERE person = (SELECT id FROM person WHERE name = ?)",
                (into, name),
            )
            database.execute("DELETE FROM person WHERE name = ?", (name,))
        self._load()
        self._file.leave_no_trace(f"{name} is {into} now", removal(name))

    def outdated_pictures(self) -> list[tuple[int, str, bytes]]:
        """Templates of other models whose picture was kept: number, person, JPEG."""
        rows = self._file.read(
            "SELECT template.id, name, picture FROM template JOIN person ON person.id = person "
            "WHERE model != ? AND picture IS NOT NULL ORDER BY template.id",
            self.model,
        )
        return [
            (n, name, self._file.open_blob(picture)) for n, name, picture in cast("list[tuple[int, str, bytes]]", rows)
        ]

    def replace(self, renewed: Iterable[tuple[int, Template]]) -> None:
        """Put templates of this model, with their pictures, in the place of older ones, by their numbers.

        Where the number has gone to another picture since, or to none, nothing is put: its person was removed.
        """
        with self._file.changing() as database:
            for number, template in renewed:
                there = database.execute("SELECT person, picture FROM template WHERE id = ?", (number,)).fetchone()
                if there and there[1] is not None and self._file.open_blob(there[1]) == template.picture:
                    database.execute("DELETE FROM template WHERE id = ?", (number,))
                    database.execute(_INSERT, (there[0], *self._row(template)))
            self._forget_strangers(database)
        self._load()
        self._file.leave_no_trace("the faces are learned anew", "relearn")

    def note_strangers(self, similarities: Iterable[float]) -> None:
        """Count how near strangers came to somebody known; nothing else of them is kept."""
        bins = Counter(int(np.floor(similarity * BINS)) for similarity in similarities)
        with self._file.changing() as database:
            database.executemany(
                "INSERT INTO stranger VALUES (?, ?, ?) "
                "ON CONFLICT (model, bin) DO UPDATE SET count = count + excluded.count",
                [(self.model, bin_, count) for bin_, count in bins.items()],
            )

    def strangers(self) -> dict[float, int]:
        """How many strangers came how near: the upper edge of each bin, and the count."""
        rows = self._file.read("SELECT bin, count FROM stranger WHERE model = ? ORDER BY bin", self.model)
        return {(bin_ + 1) / BINS: count for bin_, count in cast("list[tuple[int, int]]", rows)}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _load(self) -> None:
        """Take the templates and each person's mean into one matrix: a match is then one product."""
        self._changes = self._file.changes
        self._file.check_seal()
        rows, templates = self._file.templates()
        counts = Counter(name for name, *_ in rows)
        ignored = {name for name, is_ignored, _ in rows if is_ignored}
        self._names = list(counts)
        self._ignored = [name in ignored for name in self._names]
        self._starts = np.cumsum([0, *counts.values()])[:-1]
        self._numbers = [number for *_, number in rows]
        # What all looks at a person share tells more than any of them (models/MODELS.md has the figures).
        sums = np.add.reduceat(templates, self._starts) if rows else templates
        self._compared = np.concatenate([templates, units(sums)])
        self._costs = costs(sums, np.array(list(counts.values())), len(counts))
        self._templates = self._compared[: len(rows)]

    def _rows(self) -> dict[str, set[tuple[int, bytes]]]:
        """Everybody's templates with their numbers, which alone could be given to another's."""
        numbers = iter(self._numbers)
        return {name: {(next(numbers), face.tobytes()) for face in faces} for name, faces in self.embeddings().items()}

    def _forget_strangers(self, database: sqlite3.Connection) -> None:
        """What strangers were like to other people says nothing any more."""
        database.execute("DELETE FROM stranger WHERE model = ?", (self.model,))

    def _person(self, database: sqlite3.Connection, name: str, *, ignored: bool) -> int:
        """The number of a person, who is entered where they are new."""
        self.check_kind(name, ignored=ignored)
        database.execute("INSERT OR IGNORE INTO person (name, ignored) VALUES (?, ?)", (name, ignored))
        return int(database.execute("SELECT id FROM person WHERE name = ?", (name,)).fetchone()[0])

    def _row(self, template: Template) -> tuple[str, bytes, float, str, bytes | None]:
        picture = None if template.picture is None else self._file.close_blob(template.picture)
        embedding = self._file.close_blob(template.embedding.astype("<f4").tobytes())
        return self.model, embedding, template.quality, template.enrolled, picture

    def _template(self, embedding: bytes, quality: float, enrolled: str, picture: bytes | None) -> Template:
        vector = np.frombuffer(self._file.open_blob(embedding), "<f4")
        return Template(vector, quality, enrolled, None if picture is None else self._file.open_blob(picture))

    def _kind(self, name: str) -> bool | None:
        """Whether a person is ignored; None where nobody has that name."""
        rows = self._file.read("SELECT ignored FROM person WHERE name = ?", name)
        return bool(rows[0][0]) if rows else None

    def _known_kind(self, name: str) -> bool:
        if (kind := self._kind(name)) is None:
            raise UsageError(f"nobody named {name!r} is enrolled; `edgefer people list` shows who is")
        return kind

    def _doubles(self, name: str, other: str) -> list[tuple[int, int]]:
        """The templates that stand in both people, by their numbers in either."""
        there = {face: number for number, face in self._faces(other)}
        return [(number, there[face]) for number, face in self._faces(name) if face in there]

    def _faces(self, name: str) -> list[tuple[int, bytes]]:
        rows = self._file.read(
            "SELECT template.id, embedding FROM template JOIN person ON person.id = person "
            "WHERE name = ? AND model = ?",
            name,
            self.model,
        )
        return [(number, self._file.open_blob(face)) for number, face in cast("list[tuple[int, bytes]]", rows)]

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s", problem, extra={"EDGEFER_CODE": "unreadable"})
        self.problem = problem


_INSERT = "INSERT INTO template (person, model, embedding, quality, enrolled, picture) VALUES (?, ?, ?, ?, ?, ?)"


def costs(sums: NDArray[np.float32], counts: NDArray[np.intp], people: int) -> NDArray[np.float32]:
    """What is taken off cosines to somebody, so that strangers are named as seldom after many templates and people.

    By the sum of each one's templates, n x size, how many these are, and how many people the gallery has.
    """
    variances: NDArray[np.float32] = 1 - np.square(sums).sum(-1) / np.square(counts).astype(np.float32)
    return SPREAD_COST * variances + np.float32(CROWD_COST * math.log(max(people, CROWD) / CROWD))


def compared(templates: NDArray[np.float32], people: int) -> tuple[NDArray[np.float32], float]:
    """What a face is compared with for one of so many people, n x size: templates and their mean; and the `costs`."""
    total = templates.sum(0, keepdims=True)
    return np.concatenate([templates, units(total)]), float(costs(total, np.array([len(templates)]), people)[0])


def open_gallery(settings: Settings, card: ModelCard, *, create: bool = False, outlast: bool = False) -> Gallery:
    """The gallery of the settings' state folder, as the model with this card sees it."""
    key = settings.gallery.key.get_secret_value() if settings.gallery.key else None
    gallery = Gallery(settings.state_dir, model_id(card), key, create=create, outlast=outlast)
    # Who adds people has looked before, or brings them from elsewhere. No name: this is logged.
    if not create and (lost := sum(not person.templates for person in gallery.people())):
        log.warning(
            "%d of the people (`edgefer people list`) were enrolled with another model (%s) than the one in use (%s), "
            "and aren't recognised: `edgefer people relearn` where pictures were kept, else enrol again or import",
            lost,
            ", ".join(gallery.other_models()),
            gallery.model,
        )
    return gallery


def model_id(card: ModelCard) -> str:
    """How templates name the model that made them."""
    # The digest is part of the id: a retrained model of the same name sees faces differently.
    return f"{card.name} {card.sha256[:12]}".strip()


def check_name(name: str) -> str:
    """The name without white space around it; UsageError when it can't be a person's."""
    name = tidy_name(name)
    if not 0 < len(name) <= MAX_NAME:
        raise UsageError(f"a name has 1 to {MAX_NAME} printable characters, not {len(name)}: {name[:MAX_NAME]!r}")
    letters = _JOINER.sub("", name)
    if refused := next((letter for letter in letters if not letter.isprintable() or _UNSEEN.match(letter)), None):
        called = " ".join([f"U+{ord(refused):04X}", unicodedata.name(refused, "")]).strip()
        raise UsageError(f"a name has 1 to {MAX_NAME} printable characters, and {name!r} holds {called}")
    return name


def removal(name: str) -> str:
    """What is typed to remove somebody."""
    return f"remove {'-- ' * name.startswith('-')}{shlex.quote(name)}"


def tidy_name(name: str) -> str:
    """The one way to write a name, however it was typed."""
    return unicodedata.normalize("NFC", name.strip())
