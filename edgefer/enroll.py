"""Adding a person to the gallery: from pictures, or from the camera, whoever holds it."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefer import analyze, service
from edgefer.cameras import EndOfStream, uri_is_a_setting
from edgefer.control import NO_FRAME, ask_for_looks
from edgefer.errors import CameraError, InputError, UsageError
from edgefer.escape import escape
from edgefer.gallery import Template, check_name, compared, model_id, open_gallery
from edgefer.gallery_file import DamagedGalleryError
from edgefer.identify import identity_rule
from edgefer.latest import Latest
from edgefer.looks import EVERY_S, Look, look
from edgefer.messages import Image
from edgefer.pictures import decode, left_out, list_pictures, read_picture
from edgefer.settings import Settings
from edgefer.vision import Vision, load_vision
from edgefer.vision.embedder import units
from edgefer.vision.model import find_card

FRAME_S = 10.0
"""How long a camera may take to open and to give a frame."""

UNLIKE = 0.6
"""A face whose cosine to the mean of a person's others is under this share of the threshold is told. Of CelebA people
whom the model never learned from, four faces enrolled, that is 99 % of others' faces and one in eleven of their own."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Somebody else who looks like the person who was enrolled: the name, and the similarity of a match.

    `ignored` tells whether that is somebody who is never to be named.
    """

    name: str
    similarity: float
    ignored: bool


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of it: faces that are new, and that were there already; who else looks like the person.

    `unlike` names the looks that are so unlike the person's other faces that they may be somebody else's.
    """

    added: int
    known: int
    alike: Alike | None
    unlike: list[str]


def enroll(
    settings: Settings,
    name: str,
    looks: Iterable[Look],
    *,
    ignored: bool = False,
    tell: Callable[[Look], None] | None = None,
) -> Enrolled:
    """Add a person from looks at their face, all at once.

    `tell` is called for each look as it comes. InputError says why no look could be used, or what is wrong with the
    gallery.
    """
    name = check_name(name)
    _check_enabled(settings)
    card = find_card(settings.identity.model)
    used: list[tuple[str, Template]] = []
    refused: list[Look] = []
    # What is wrong is told before anybody is looked at; a damaged file is kept aside once there is something to write.
    with suppress(DamagedGalleryError), closing(open_gallery(settings, card)) as gallery:
        gallery.check_kind(name, ignored=ignored)
    for seen in looks:
        if tell:
            tell(seen)
        if seen.template is None:
            refused.append(seen)
        else:
            used.append((seen.source, seen.template))
    if not used:
        if refused and all(seen.refused == NO_FRAME for seen in refused):
            raise CameraError(f"{NO_FRAME}: its health, or `systemctl status edgefer`, tells why")
        raise InputError(
            f"no face of {name} could be used ({_summary(refused)}): take pictures of one person, sharp, near and "
            "from the front"
        )
    with closing(open_gallery(settings, card, create=True)) as gallery:
        templates = [template for _, template in used]
        added = gallery.add(name, templates, ignored=ignored)
        threshold = identity_rule(settings, card, tracked=True).threshold
        known = gallery.embeddings()
        ignoring = {person.name for person in gallery.people() if person.ignored}
    alike = _alike(known, ignoring, name, templates, threshold)
    faces = known.get(name, np.empty((0, 0), np.float32))  # removed again already?
    unlike = _unlike(faces, used, UNLIKE * threshold)
    return Enrolled(added, len(used) - added, alike, unlike)


def look_at_pictures(settings: Settings, paths: Sequence[Path], *, keep: bool = False) -> Iterator[Look]:
    """A look at each picture, and at each of a folder; InputError when a path isn't there."""
    pictures = list_all(paths)
    vision = load_vision(settings, analyze.DEFAULT_DETECTOR)
    for path in pictures:
        try:
            image = read_picture(path)
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            yield Look(str(path), "a folder within: name it as well" if path.is_dir() else reason)
            continue
        yield _look(str(path), image, vision, keep=keep)


def look_through_camera(settings: Settings, seconds: float, *, keep: bool = False) -> Iterator[Look]:
    """Looks at whoever stands before the camera: the running daemon's, or else the camera is opened here."""
    asked = ask_for_looks(settings.state_dir, model_id(find_card(settings.identity.model)), seconds, keep=keep)
    yield from _look_ourselves(settings, seconds, keep=keep) if asked is None else asked


def relearn(settings: Settings) -> Iterator[tuple[str, Look]]:
    """Make the templates of other models anew, with the one in use, where pictures were kept: whose, and the look."""
    _check_enabled(settings)
    vision = load_vision(settings, analyze.DEFAULT_DETECTOR)
    renewed: list[tuple[int, Template]] = []
    with closing(open_gallery(settings, find_card(settings.identity.model))) as gallery:
        for number, name, picture in gallery.outdated_pictures():
            image = decode(picture)
            if image is None:
                yield name, Look("a kept picture", "the kept picture can't be read any more: enrol another")
                continue
            seen = _look("a kept picture", image, vision, keep=False)
            if seen.template is not None:
                renewed.append((number, replace(seen.template, picture=picture)))
            yield name, seen
        if renewed:
            gallery.replace(renewed)


def list_all(paths: Sequence[Path]) -> list[Path]:
    """The pictures that are meant: a folder stands for those in it, and for what else may be meant there.

    InputError when one can't be looked at.
    """
    found: list[Path] = []
    for path in paths:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror}") from error
        found += [*list_pictures(path), *left_out(path)] if is_folder else [path]
    return found


def enroll_command(
    settings: Settings,
    name: str,
    images: Sequence[Path] | None,
    seconds: float,
    *,
    keep: bool,
    ignored: bool,
) -> int:
    """`edgefer enroll`: tells of each look, of what came of it, and of whoever looks alike."""
    name = check_name(name)
    if images is not None:
        looks, total = look_at_pictures(settings, images, keep=keep), len(list_all(images))
    else:
        print(f"looking for {seconds:g} s: turn your head a little, alone before the camera", file=sys.stderr)
        looks, total = look_through_camera(settings, seconds, keep=keep), round(seconds / EVERY_S)
    bar = ProgressBar(total)

    def tell(seen: Look) -> None:
        bar.clear()
        print(f"{escape(seen.source)}: {'used' if seen.refused is None else f'refused: {seen.refused}'}", flush=True)
        bar.step()

    try:
        enrolled = enroll(settings, name, looks, ignored=ignored, tell=tell)
    finally:
        bar.clear()
    notes = [f", {enrolled.known} there already" * bool(enrolled.known), ", never to be reported by name" * ignored]
    print(f"{name}: {enrolled.added} face(s) enrolled" + "".join(notes))
    if enrolled.unlike:
        print(
            f"edgefer: {', '.join(map(escape, enrolled.unlike))}: not like the other faces of {name}: somebody else, "
            "or upside down? If so, `edgefer people remove`, and enrol again without",
            file=sys.stderr,
        )
    if (alike := enrolled.alike) is not None:
        advice = (
            "if that is one person, `edgefer people merge`; two who look alike will often be `unknown`"
            if alike.ignored == ignored
            else "one of the two is ignored, and a face near both will be `unknown`: if they are the same, "
            "`edgefer people remove` one"
        )
        found = f"{name} looks like {alike.name}, who is enrolled too (similarity {alike.similarity:.2f})"
        print(f"edgefer: {found}: {advice}", file=sys.stderr)
    return 0


class ProgressBar:
    """How far it is, on a terminal; nothing where the output goes elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = max(1, total)
        self._done = 0
        self._stream = sys.stderr if sys.stderr.isatty() and total > 1 else None

    def step(self) -> None:
        """One more is done."""
        self._done = min(self._done + 1, self._total)
        if self._stream:
            bar = "#" * round(30 * self._done / self._total)
            print(f"[{bar:<30}] {self._done}/{self._total}", end="\r", flush=True, file=self._stream)

    def clear(self) -> None:
        """Make room for a line."""
        if self._stream:
            print("\x1b[2K", end="\r", flush=True, file=self._stream)


def _check_enabled(settings: Settings) -> None:
    if not settings.identity.enabled:
        raise UsageError("EDGEFER_IDENTITY__ENABLED is false: nobody can be enrolled")


def _look_ourselves(settings: Settings, seconds: float, *, keep: bool) -> Iterator[Look]:
    vision = load_vision(settings, service.DEFAULT_DETECTOR)
    camera = Latest(settings.camera, settings.frame)
    try:
        start_s: float | None = None
        due_s = 0.0
        while due_s < seconds:
            with uri_is_a_setting():
                frame = camera.next(FRAME_S)
            if frame is None:
                raise CameraError(camera.state.problem or "the camera gives no frame; `edgefer doctor` tells more")
            start_s = frame.stream_s if start_s is None else start_s
            at_s = frame.stream_s - start_s
            if at_s >= due_s:
                due_s = at_s + EVERY_S
                yield _look(f"{at_s:.1f} s", frame.image, vision, keep=keep)
    except EndOfStream:
        return
    finally:
        camera.close(service.CLOSE_CAMERA_S)


def _look(source: str, image: Image, vision: Vision, *, keep: bool) -> Look:
    assert vision.embedder is not None  # _check_enabled saw to it
    return look(source, image, vision.detector(image), vision.embedder.template, keep=keep)


def _summary(refused: Sequence[Look]) -> str:
    """The reasons, each once with how often it was given."""
    reasons: dict[str, int] = {}
    for seen in refused:
        reason = (seen.refused or "").split(" (")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    listed = sorted(reasons.items(), key=lambda item: -item[1])
    shown = "; ".join(f"{count}x {reason}" if count > 1 else reason for reason, count in listed[:4])
    return shown + ("; and other reasons" if len(listed) > 4 else "") or "there was no look at one"


def _unlike(faces: NDArray[np.float32], used: Sequence[tuple[str, Template]], threshold: float) -> list[str]:
    """The looks that the mean of the person's other faces (n x size) isn't like; all, if theirs isn't like the former.

    Several pictures of somebody else would else make a mean of their own.
    """
    if len(faces) < 3:  # which of two is the wrong one?
        return []
    new = np.stack([face.embedding for _, face in used])
    former = faces[~(faces[:, None] == new).all(-1).any(1)]
    if len(former) and units(new.sum(0)) @ units(former.sum(0)) < threshold:
        return [source for source, _ in used]
    others = [(source, face.embedding, faces.sum(0) - face.embedding) for source, face in used]
    return [source for source, face, other in others if face @ other < threshold * np.linalg.norm(other)]


def _alike(
    known: Mapping[str, NDArray[np.float32]],
    ignoring: Collection[str],
    name: str,
    used: Sequence[Template],
    threshold: float,
) -> Alike | None:
    """Who else is so near that they could be taken for one person, the nearest one; by the similarity of a match."""
    faces = np.stack([template.embedding for template in used])
    mine, my_cost = compared(known.get(name, faces), len(known))
    others = []
    for other, templates in known.items():
        theirs, their_cost = compared(templates, len(known))
        near = float(max((faces @ theirs.T).max() - their_cost, (templates @ mine.T).max() - my_cost))
        if other != name and near >= threshold:
            others.append(Alike(other, near, other in ignoring))
    return max(others, key=lambda other: other.similarity, default=None)
