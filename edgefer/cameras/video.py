"""Video files and network cameras, through OpenCV: `file:///clip.mp4?realtime=1&loop=1`, `rtsp://`, `http://`."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import cv2

from edgefer.cameras import Camera, CameraUri, EndOfStream, Picture, Wanted
from edgefer.cameras._opencv import next_image, quiet
from edgefer.errors import CameraError, InputError
from edgefer.files import expand_home

if TYPE_CHECKING:
    from edgefer.messages import Image

WORKER_SCHEMES = ("rtsp", "rtsps", "http", "https")
SCHEMES = ("file", *WORKER_SCHEMES)

OPEN_S = 10.0
"""A network camera has so long to answer; FFmpeg takes up to 5 s of them to find out what it sends."""
READ_S = 5.0
"""A network camera that sends nothing for so long is lost; over RTSP, FFmpeg tries three times."""
LONGEST_STEP_S = 10.0
"""Two pictures of a file are at most so far apart; timestamps that say otherwise are wrong."""
USUAL_FPS = 25.0
"""Of a file that doesn't tell its own."""

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}

log = logging.getLogger(__name__)


def open_source(uri: CameraUri, wanted: Wanted) -> Camera:  # noqa: ARG001  # a video has the size it has
    """A video file (InputError where it isn't one), or a network camera (CameraError where it gives no picture)."""
    quiet()
    if uri.scheme != "file":
        return NetworkCamera(uri)
    uri.check_options("realtime", "loop")
    path = expand_home(uri.location).absolute()
    return VideoFile(path, uri.address, realtime=uri.flag("realtime"), loop=uri.flag("loop"))


class VideoFile:
    """Plays a file: every picture of it, or with `realtime` those that there is time for."""

    def __init__(self, path: Path, given: str = "", *, realtime: bool, loop: bool) -> None:
        check_file(path, given)
        self.live = realtime
        self._path = path
        self._loop = loop
        self._capture = cv2.VideoCapture()
        self._closed = False
        self._first = self._rewind()
        if self._first is None:
            raise InputError(f"{path} isn't a video that can be played, or it was cut off before its first picture")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        # 0, 90000 and NaN are what files without a frame rate give.
        self._clock = MediaClock(fps if 0.01 <= fps <= 1000 else USUAL_FPS)
        self._frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._played = 0
        height, width = self._first.shape[:2]
        self.description = f"{width}x{height} at {fps:g} fps, {_codec(self._capture)}"

    def read(self) -> Picture:
        """The next picture, with its time in the film."""
        if self._closed:
            raise EndOfStream(f"{self._path} was closed")
        image = self._next()
        return Picture(image, self._clock.tick(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000))

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._capture.release()

    def _next(self) -> Image:
        image = next_image(self._capture) if self._first is None else self._first
        self._first = None
        if image is None:
            self._tell_end()
            # Opened again rather than wound back: not every format can be.
            image = self._rewind() if self._loop else None
        if image is None:
            raise EndOfStream(f"{self._path} is played to its end")
        self._played += 1
        return image

    def _rewind(self) -> Image | None:
        self._capture.open(str(self._path), _backend())
        self._played = 0
        return next_image(self._capture)

    def _tell_end(self) -> None:
        # Some formats only estimate how many pictures they hold.
        if self._played < 0.9 * self._frames:
            log.warning("%s ends early: %d of about %d pictures", self._path, self._played, self._frames)


class MediaClock:
    """The time in the film, in seconds, from the file's timestamps where they make sense, else from its frame rate.

    It starts at 0 and only goes forward, also where a file begins again.
    """

    def __init__(self, fps: float) -> None:
        self._frame_s = 1 / fps
        self._now_s: float | None = None
        self._offset_s = 0.0

    def tick(self, timestamp_s: float) -> float:
        """The time of the picture that has this timestamp."""
        if self._now_s is None:
            self._now_s, self._offset_s = 0.0, -timestamp_s
            return 0.0
        told_s = timestamp_s + self._offset_s
        if 0 < told_s - self._now_s <= LONGEST_STEP_S:
            self._now_s = told_s
        else:
            self._now_s += self._frame_s
            # A timestamp may stand twice; one that went back or leapt is the new beginning.
            if not -2 * self._frame_s <= told_s - self._now_s <= 0:
                self._offset_s = self._now_s - timestamp_s
        return self._now_s


class NetworkCamera:
    """Plays what a camera sends over the network."""

    live = True

    def __init__(self, uri: CameraUri) -> None:
        self._name = uri.public
        # Over RTSP, OpenCV asks for TCP on its own: pictures then don't tear when packets are lost.
        self._capture = cv2.VideoCapture(uri.address, _backend(), _time_limits())
        image = next_image(self._capture) if self._capture.isOpened() else None
        if image is None:
            self.close()
            raise CameraError(f"{self._name} gives no picture: {_why(uri)}")
        height, width = image.shape[:2]
        self.description = f"{self._name}: {width}x{height}, {_codec(self._capture)}"

    def read(self) -> Picture:
        """The next picture that arrives."""
        image = next_image(self._capture)
        if image is None:
            raise CameraError(f"{self._name} has stopped sending pictures")
        return Picture(image)

    def close(self) -> None:
        """Hang up."""
        self._capture.release()


def check_file(path: Path, given: str = "") -> None:
    """InputError, in plain words, for what OpenCV would only call unopened; `given` is how the path was written."""
    try:
        found = path.stat()
    except FileNotFoundError:
        hint = ""
        if "://" in given:
            hint = " (in a file:// URI, a ? or % of the name is written %3F or %25)"
        elif given.isalnum():  # no film's name, and no path
            hint = "; a camera is auto, 0, /dev/video0 or picamera2://0, and docs/cameras.md lists the others"
        raise InputError(f"{path} isn't there{hint}") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder; for the pictures in it write images://{path}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise InputError(f"{path} is empty")


def _backend() -> int:
    # Any other would take a name with digits in it for a series of pictures; not every OpenCV has FFmpeg (Jetson's).
    return cv2.CAP_FFMPEG if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG) else cv2.CAP_ANY


def _time_limits() -> list[int]:
    return [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(OPEN_S * 1000)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(READ_S * 1000)),
    ]


def _codec(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    name = code.to_bytes(4, "little", signed=True).decode("ascii", "replace")
    return name.strip("\0 ") if name.strip("\0 ").isprintable() else "unknown codec"


def _why(uri: CameraUri) -> str:
    """What can be said about a network camera that OpenCV couldn't open."""
    try:
        parts = urlsplit(uri.address)
        host, port = parts.hostname, parts.port or _PORTS[uri.scheme]
    except ValueError:
        host = None
    if not host:
        return "the address isn't well formed; a : / ? # @ or % in the user or password is percent-encoded"
    try:
        socket.create_connection((host, port), timeout=READ_S).close()
    except OSError as error:
        return f"nothing answers at port {port} of that host ({error.strerror or error})"
    return "something answers there; are the path, the user and the password right?"
