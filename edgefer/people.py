"""`edgefer people`: who is known, and what may be done about it."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from contextlib import closing

from edgefer.broker import clear_retained, read_retained
from edgefer.control import is_daemon_there
from edgefer.enroll import relearn
from edgefer.errors import BrokerError, InputError, UsageError
from edgefer.exchange import export_people, read_people
from edgefer.files import read_bounded, write_private
from edgefer.gallery import FILE, Gallery, check_name, open_gallery, removal, tidy_name
from edgefer.gallery_file import TracesLeftError, kept_aside
from edgefer.identify import identity_rule
from edgefer.outbox import are_waiting, forget
from edgefer.separation import Separation, separation
from edgefer.settings import Settings
from edgefer.vision import load_embedder
from edgefer.vision.model import find_card

MAX_IMPORT_BYTES = 400 * 2**20
"""Ten thousand people of five templates of 512 values."""


def list_people(settings: Settings, options: argparse.Namespace) -> int:
    """Everybody who is enrolled."""
    with _gallery(settings) as gallery:
        people = gallery.people()
    if options.json:
        print(json.dumps([dataclasses.asdict(person) for person in people], ensure_ascii=False))
        return 0
    for person in people:
        notes = [
            "ignored" * person.ignored,
            f"{person.pictures} picture(s) kept" * bool(person.pictures),
            f"{person.other_models} face(s) of another model" * bool(person.other_models),
        ]
        print("  ".join([f"{person.name:<32} {person.templates} face(s)", *filter(None, notes)]))
    if not people:
        print("nobody is enrolled; `edgefer enroll NAME --images PATH...` adds somebody", file=sys.stderr)
    return 0


def remove(settings: Settings, options: argparse.Namespace) -> int:
    """Forget a person: faces, pictures, and what still goes round with the name."""
    name = tidy_name(options.name)
    problems, removed, waiting = [], 0, 0  # told once the rest is done
    try:
        with _gallery(settings) as gallery:
            enrolled = sum(person.templates + person.other_models for person in gallery.people() if person.name == name)
            try:
                gallery.remove(name)
            except TracesLeftError as error:
                problems.append(str(error))
            removed = enrolled
    except InputError as error:
        problems.append(str(error))
    problems += [
        f"{path}: a damaged gallery that was kept aside may hold {name}'s faces: delete it (with its -wal) once you "
        "don't need it"
        for path in kept_aside(settings.state_dir / FILE)
    ]
    try:
        waiting = forget(settings, name)  # also of a name that somebody had before
    except InputError as error:
        problems.append(str(error))
    was_there = bool(removed or waiting)
    is_cleared = _clear_presence(settings, name, only_if_named=not was_there)
    if was_there:
        print(f"{name}: {removed} face(s)" + (f" and {waiting} waiting event(s)" if waiting else "") + " removed")
    elif is_cleared:
        print(f"{name}: the presence that the broker retained is cleared")
    elif not problems:
        raise UsageError(
            f"nobody named {name!r} is enrolled, and nothing of them is left here; `edgefer people list` shows who is"
        )
    if problems:
        raise InputError("\n".join(problems))
    return 0


def rename(settings: Settings, options: argparse.Namespace) -> int:
    """Give a person another name."""
    name, to = tidy_name(options.name), check_name(options.to)
    with _gallery(settings) as gallery:
        gallery.rename(name, to)
    _tell_renamed(settings, name, to)
    return 0


def merge(settings: Settings, options: argparse.Namespace) -> int:
    """Make one person of two, who keeps the second name."""
    name, into = tidy_name(options.name), tidy_name(options.into)
    with _gallery(settings) as gallery:
        gallery.merge(name, into)
    _tell_renamed(settings, name, into)
    return 0


def _tell_renamed(settings: Settings, name: str, to: str) -> None:
    print(f"{name} is {to} now")
    if are_waiting(settings):
        advice = f"`edgefer people {removal(name)}` drops them"
        print(f"edgefer: events that wait for the broker may still name {name}: {advice}", file=sys.stderr)


def export(settings: Settings, options: argparse.Namespace) -> int:
    """Write everybody's faces as JSON, unsealed: personal data."""
    with _gallery(settings) as gallery:
        text, people = export_people(gallery), gallery.people()
    if others := sum(person.other_models for person in people):
        print(f"edgefer: left out: {others} face(s) of another model than the one in use", file=sys.stderr)
    if pictures := sum(person.pictures for person in people):
        print(f"edgefer: left out: {pictures} picture(s) that were kept", file=sys.stderr)
    if options.file is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as `import` reads it, whatever the terminal's
        sys.stdout.write(text)
        return 0
    try:
        write_private(options.file, text)
    except OSError as error:
        raise InputError(f"{options.file}: can't be written: {error.strerror}") from error
    return 0


def import_(settings: Settings, options: argparse.Namespace) -> int:
    """Add people from JSON: an export, or names with their embeddings."""
    embedder = load_embedder(settings)
    try:
        text = read_bounded(options.file, MAX_IMPORT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't text in UTF-8"
        raise InputError(f"{options.file}: can't be read: {reason}") from error
    try:
        newcomers = read_people(text, embedder.model.card, embedder.size, options.model_id)
    except InputError as error:
        raise InputError(f"{options.file}: {error}") from error
    with closing(open_gallery(settings, embedder.model.card, create=True)) as gallery:
        for name, added in gallery.add_people(newcomers).items():
            print(f"{name}: {added} face(s) added")
    print("`edgefer people check` tells who looks like somebody else, or is there under two names", file=sys.stderr)
    return 0


def relearn_people(settings: Settings, _: argparse.Namespace) -> int:
    """Learn anew, with the model in use, whose pictures were kept."""
    tried = list(relearn(settings))
    for name, seen in tried:
        print(f"{name}: {'learned anew' if seen.refused is None else f'refused: {seen.refused}'}")
    if not tried:
        print("no picture of another model is kept: `edgefer enroll --keep-images` keeps them", file=sys.stderr)
    return 0


def check(settings: Settings, options: argparse.Namespace) -> int:
    """How well people are told apart, from each other and from strangers."""
    card = find_card(settings.identity.model)
    with _gallery(settings) as gallery:
        found = separation(gallery, identity_rule(settings, card, tracked=True).threshold)
    if options.json:
        print(json.dumps({**dataclasses.asdict(found), "separating": found.separating}, ensure_ascii=False))
    else:
        print("\n".join(_verdict(found)))
    return 0


def _verdict(found: Separation) -> list[str]:
    closest, widest, nearest, separating = found.closest, found.widest, found.nearest_stranger, found.separating
    lines = [
        f"{found.people} people, {found.faces} faces; a face is somebody's from similarity {found.threshold:.3f} on",
        "closest two people      "
        + (f"{closest.similarity:.3f}  {closest.first} and {closest.second}" if closest else "there are no two"),
        "widest spread           "
        + (
            f"{widest.similarity:.3f}  a face of {widest.name}, to the others"
            if widest
            else "one face each"
            if found.faces
            else "there is no face"
        ),
        "nearest stranger        "
        + (f"{nearest:.3f} or less, of {found.strangers} seen" if nearest is not None else "none was seen yet"),
    ]
    if closest and closest.similarity >= found.threshold:
        lines.append("somebody is over the threshold to somebody else: merge who is one person, or remove the ignored")
    if nearest is not None and nearest > found.threshold:
        lines.append("a stranger came over the threshold in use: set a higher EDGEFER_IDENTITY__THRESHOLD")
    if found.others is None or widest is None:
        missing = "nobody else" if found.others is None else "nobody has two faces"
        return [*lines, f"no threshold to tell ({missing}): enrol several faces of each, and let the daemon run"]
    if separating is None:
        advice = "no threshold separates them: enrol more and better pictures, or merge who is one person"
    elif found.others <= found.threshold <= widest.similarity:
        # A lower one would let strangers pass whom nobody has seen yet.
        advice = f"the threshold in use separates them; halfway lies {separating:.3f}" + (
            ", too low to keep strangers out" if separating < found.threshold else ""
        )
    elif separating > found.threshold:
        advice = f"EDGEFER_IDENTITY__THRESHOLD={separating:.3f} separates them"
    else:
        advice = (
            f"{separating:.3f} separates them, but is too low to keep strangers out: enrol more and better pictures of "
            f"{widest.name}, and leave the threshold as it is"
        )
    return [*lines, advice]


def _gallery(settings: Settings) -> closing[Gallery]:
    return closing(open_gallery(settings, find_card(settings.identity.model)))


def _clear_presence(settings: Settings, name: str, *, only_if_named: bool) -> bool:
    """Clear the retained presence, which may name somebody who was removed; whether that was done.

    Not every user of a broker may read, so it is looked at only where it must not go for another's name.
    """
    # A running daemon takes the change up within a second, and publishes presence anew.
    if "mqtt" not in settings.sinks.split(",") or is_daemon_there(settings.state_dir):
        return False
    topic = f"{settings.mqtt.prefix}/{settings.device}/presence"
    try:
        if only_if_named and not _is_named(name, read_retained(settings, topic)):
            return False
        clear_retained(settings, topic)
    except BrokerError as error:
        print(f"edgefer: {error}; if a broker retains {topic} with {name} in it, clear it there", file=sys.stderr)
        return False
    return True


def _is_named(name: str, presence: bytes) -> bool:
    try:
        return name in json.loads(presence)["known"]
    except (ValueError, LookupError, TypeError, RecursionError):  # no presence of ours, or none at all
        return False
