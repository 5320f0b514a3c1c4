"""Pictures and videos, once, without a broker: each picture or video frame is decided alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from edgefer import emotions
from edgefer.cameras import CameraUri, EndOfStream, open_camera
from edgefer.errors import InputError
from edgefer.escape import escape, escape_lines
from edgefer.gallery import open_gallery
from edgefer.identify import identity_rule
from edgefer.messages import Detection, Emotion, FaceReading, Identity, Image, PictureReading
from edgefer.payload import to_json
from edgefer.pictures import SUFFIXES, list_pictures, read_picture
from edgefer.report import pixel_box, pixel_points
from edgefer.settings import Settings
from edgefer.vision import load_vision
from edgefer.vision.quality import rate

DEFAULT_DETECTOR = "far"
"""Photos hold rooms and groups, and there's time."""

Read = Callable[[Image], tuple[FaceReading, ...]]


def analyze(settings: Settings, files: Sequence[str], *, as_json: bool) -> int:
    """Print what is in each file; a file that can't be read is told, and the others are read all the same.

    The exit code: 0, or that of the last file that couldn't be read.
    """
    code = 0
    with ExitStack() as parts:
        read = reader(settings, parts)
        waiting = [*reversed(files)]
        while waiting:
            file = waiting.pop()
            try:
                if os.path.isdir(file):  # noqa: PTH112  # pathlib's raises where we may not look
                    waiting += map(str, reversed(list_pictures(Path(file))))
                    continue
                for picture in read_file(file, settings, read):
                    sys.stdout.write(to_json(picture).decode() + "\n" if as_json else table(picture))
            except InputError as error:
                sys.stdout.flush()
                print(f"edgefer: {escape_lines(str(error))}", file=sys.stderr)
                code = error.exit_code
    return code


def reader(settings: Settings, parts: ExitStack) -> Read:
    """What reads the faces of one picture; `parts` closes the gallery that it looks into."""
    vision = load_vision(settings, DEFAULT_DETECTOR)
    identify: Callable[[Image, Detection], Identity] = lambda *_: Identity("off")  # noqa: E731  # two ways to be off
    read_emotion: Callable[[Image, Detection], Emotion] = lambda *_: Emotion("off")  # noqa: E731
    if embed := vision.embedder:
        gallery = parts.enter_context(closing(open_gallery(settings, embed.model.card)))
        rule = identity_rule(settings, embed.model.card, tracked=False)

        def identify(image: Image, face: Detection) -> Identity:
            return rule.decide(None if gallery.is_empty else gallery.match(embed(image, face)))

    if emotion := vision.emotion:

        def read_emotion(image: Image, face: Detection) -> Emotion:
            return emotions.decide(emotion(image, face), emotion.labels, emotion.min_confidence)

    def read(image: Image) -> tuple[FaceReading, ...]:
        height, width = image.shape[:2]
        return tuple(
            FaceReading(
                bbox=pixel_box(face.box, width, height),
                score=face.score,
                landmarks=pixel_points(face.landmarks),
                identity=identify(image, face),
                emotion=read_emotion(image, face),
                quality=rate(image, face),
            )
            for face in vision.detector(image)
        )

    return read


def read_file(file: str, settings: Settings, read: Read) -> Iterator[PictureReading]:
    """The picture, or the frames of the video, in a file; InputError when it can't be read."""
    shown = file.encode(errors="backslashreplace").decode()  # JSON can't hold a name that isn't UTF-8
    for time_s, image in _pictures(file, settings):
        height, width = image.shape[:2]
        yield PictureReading(file=shown, time_s=time_s, width=width, height=height, faces=read(image))


def _pictures(file: str, settings: Settings) -> Iterator[tuple[float | None, Image]]:
    if "://" in file and not os.path.exists(file):  # noqa: PTH110  # pathlib's raises where we may not look
        raise InputError(f"{file.partition('://')[0]}://… is no file: cameras are for `edgefer run` and `edgefer demo`")
    if Path(file).suffix.lower() in SUFFIXES:
        yield None, read_picture(Path(file))
        return
    # A path, whatever its name looks like.
    uri = CameraUri("file", str(Path(file).absolute()), {}, file)
    with closing(open_camera(uri, settings.frame)) as video:
        try:
            while True:
                picture = video.read()
                yield picture.stream_s, picture.image
        except EndOfStream:
            return


def table(picture: PictureReading) -> str:
    """One picture's faces for people, a line each."""
    when = "" if picture.time_s is None else f" at {picture.time_s:.2f} s"
    lines = [f"{escape(picture.file)}{when}: {picture.width}x{picture.height}, {len(picture.faces)} face(s)"]
    for face in picture.faces:
        who = face.identity.name or face.identity.status
        feels = face.emotion.label or face.emotion.status
        sure = "" if face.emotion.confidence is None else f" {face.emotion.confidence:4.0%}"
        box = face.bbox
        place = f"{box.width}x{box.height} at {box.x},{box.y}"
        lines.append(f"  {who:<20} {feels + sure:<16} {place:<20} score {face.score:.2f}")
    return "\n".join(lines) + "\n"
