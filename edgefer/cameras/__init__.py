"""Where frames come from: one file a source, named by the schemes of its URI.

A module here lists its URI schemes in `SCHEMES` and opens a camera with `open_source(uri, wanted)`. It imports its
hardware's library inside that function, so that every module can be listed on every machine. One that can say which
cameras are plugged in has `find_cameras()` too, which gives their URIs. What the sources share stands in the modules
with an underscore.

A source whose driver or network can block for ever names its schemes in `WORKER_SCHEMES` too: it runs in a process of
its own, which can be killed. `check(uri)`, where it has one, says what is wrong without starting that process. Nothing
that such a source imports may import pydantic, which takes 15 MB.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, quote, unquote

from edgefer.errors import CameraError, InputError, SettingsError, UsageError
from edgefer.files import expand_home

if TYPE_CHECKING:
    import threading

    from edgefer.messages import Image

_PATH_SCHEMES = ("file", "images", "v4l2")
"""The schemes whose location is a path: there an `@` is a character like any other."""


class EndOfStream(Exception):  # noqa: N818  # not an error: a file is played to its end
    """The source has no more pictures, or was closed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a camera gives: the pixels (BGR), and its position in the stream in seconds where the source knows it.

    A live source that knows it gives its pictures at once: whoever shows them keeps the pace. A source that knows it
    tells when a picture was captured, on the monotonic clock; it was just now where none is told.
    """

    image: Image
    stream_s: float | None = None
    captured_at: float | None = None


class Wanted(Protocol):
    """What is asked of a camera: settings.FrameSettings, for a source in a process of its own without pydantic."""

    @property
    def width(self) -> int:
        """In pixels."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def fps(self) -> float:
        """Frames a second."""


class Camera(Protocol):
    """An open source of pictures."""

    live: bool
    """Whether pictures come at their own pace, so that only the newest matters; else none is left out."""
    description: str
    """What was really opened: size, frames a second, pixel format; for the log."""

    def read(self) -> Picture:
        """The next picture; waits for it.

        EndOfStream at the end of a file and once the camera is closed, CameraError when the camera is lost.
        """

    def close(self) -> None:
        """Give the camera back, from the thread that reads; may be called twice."""


@dataclass(frozen=True, slots=True)
class CameraUri:
    """A camera's URI, taken apart."""

    scheme: str
    location: str
    """What stands after `scheme://` up to the `?`, decoded: a path, an index, or user, password, host and path."""
    options: dict[str, str] = field(default_factory=dict)
    """The query's names and values. For rtsp and http they belong to the camera, and are in `address` too."""
    address: str = ""
    """The whole URI as it was given; may hold a password: not for logs."""

    @property
    def public(self) -> str:
        """The URI as it is published and logged: without credentials and query."""
        return f"{self.scheme}://{self._public_location()}"

    def _public_location(self) -> str:
        if self.scheme in _PATH_SCHEMES:
            return quote(self.location, safe="/:@!,;=()", errors="surrogateescape")
        if self.scheme == "gstreamer":
            # A pipeline may hold a password anywhere; its first element says enough.
            return "".join(re.findall(r"^[\w-]+", self.location, re.ASCII))
        address = self.address.partition("://")[2]
        authority = re.split("[/?#]", address, maxsplit=1)[0]
        rest = address.removeprefix(authority)
        if "@" in rest:
            return "hidden"  # the @ may end a password that holds a / ? or #
        # A path's part with a = is a query in disguise: some cameras take /user=admin&password=... .
        path = re.split(r"[?#]|/[^/?#]*=", rest)[0]
        return quote(authority.rpartition("@")[2] + path, safe="/:[]!,;()%&+~", errors="surrogateescape")

    def flag(self, name: str) -> bool:
        """One option of the query that is 1 or 0."""
        value = self.options.get(name, "0")
        if value not in ("0", "1"):
            raise UsageError(f"{self.public}: {name}={value} should be 0 or 1")
        return value == "1"

    def number(self, name: str, default: float) -> float:
        """One option of the query that is a number above 0."""
        try:
            value = float(self.options.get(name, default))
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UsageError(f"{self.public}: {name}={self.options[name]} should be a number above 0")
        return value

    def count(self, name: str) -> int | None:
        """One option of the query that is a whole number from 0; None where it isn't given."""
        value = self.options.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal()):
            raise UsageError(f"{self.public}: {name}={value} should be a whole number")
        return int(value)

    def check_options(self, *known: str) -> None:
        """UsageError where the query holds a name that the source doesn't know."""
        if unknown := sorted(set(self.options) - set(known)):
            takes = ", ".join(known) or "no options"
            raise UsageError(f"{self.public}: unknown option {', '.join(unknown)}; this source takes {takes}")


def parse_uri(text: str) -> CameraUri:
    """A camera's URI, or one of the short forms `0`, `/dev/video0`, `clip.mp4`, `auto`.

    A `?` and a `%` in the path of a URI are written %3F and %25; the short forms take every path as it is.
    """
    if text == "auto":
        return _first_camera()
    scheme, colon, rest = text.partition("://")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return _short_form(text)
    location, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return CameraUri(scheme.lower(), unquote(location, errors="surrogateescape"), options, text)


@contextlib.contextmanager
def uri_is_a_setting() -> Iterator[None]:
    """Where the URI is EDGEFER_CAMERA's, what is wrong with it is wrong with the settings."""
    try:
        yield
    except UsageError as error:
        raise SettingsError(f"EDGEFER_CAMERA: {error}") from error


def _short_form(text: str) -> CameraUri:
    if not text:
        raise UsageError("no camera is named: docs/cameras.md lists the forms")
    if text.isascii() and text.isdecimal():
        return CameraUri("v4l2", f"/dev/video{text}", {}, text)
    if text.startswith("/dev/") and not (os.path.isfile(text) or os.path.isdir(text)):  # noqa: PTH112, PTH113  # pathlib's raise
        return CameraUri("v4l2", text, {}, text)
    path = expand_home(text).absolute()
    # Not path.exists() and is_dir(), which raise where a folder above may not be read.
    if re.search(r"://|=|:.*@|^(rtsps?|https?):/", text, re.DOTALL) and not os.path.exists(path):  # noqa: PTH110
        # It isn't shown: it may hold a password.
        raise UsageError(
            "the camera is no file, and an address without its scheme: write rtsp://user:password@host/path, or "
            "gstreamer:// before a pipeline"
        )
    return CameraUri("images" if os.path.isdir(path) else "file", str(path), {}, text)  # noqa: PTH112


def _first_camera() -> CameraUri:
    for module in source_modules():
        for uri in getattr(module, "find_cameras", list)():
            return parse_uri(uri)
    raise CameraError(
        "no camera was found: connect one, or name one with EDGEFER_CAMERA; a Pi's own camera needs python3-picamera2, "
        "a Jetson's an OpenCV with GStreamer (docs/cameras.md)"
    )


@functools.cache
def source_modules() -> tuple[ModuleType, ...]:
    """Every source of this folder, Pi camera first: the order in which cameras are looked for.

    They are looked up once. CameraError when the machine is too short of files for that: it passes.
    """
    try:
        # pkgutil would take a folder that can't be read for an empty one.
        names = [path.stem for path in Path(__file__).parent.iterdir() if re.fullmatch(r"[a-z]\w*\.py", path.name)]
        names.sort(key=lambda name: (name != "picamera2", name))
        return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)
    except OSError as error:
        raise CameraError(f"edgefer's own camera sources can't be read: {error.strerror}") from error


def source_module(scheme: str) -> ModuleType:
    """The source of a URI's scheme; UsageError lists the known ones."""
    modules = {name: module for module in source_modules() for name in module.SCHEMES}
    if scheme not in modules:
        known = ", ".join(f"{name}://" for name in sorted(modules) if name != "faulty")  # which is for tests
        raise UsageError(f"unknown scheme {scheme}://; the known ones are {known}")
    return modules[scheme]


def open_camera(uri: CameraUri, wanted: Wanted, stop: threading.Event | None = None) -> Camera:
    """Open a camera; CameraError or InputError say why it can't be, UsageError what the URI should have been.

    When `stop` is set, a camera that takes its time to open or to give a picture ends with EndOfStream.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in uri.location + uri.address):
        # OpenCV ends the process over such a name.
        raise InputError(f"{uri.public}: the name isn't UTF-8; rename the file or folder")
    module = source_module(uri.scheme)
    if uri.scheme in getattr(module, "WORKER_SCHEMES", ()):
        from edgefer.cameras._worker import WorkerCamera  # noqa: PLC0415  # which imports this module

        getattr(module, "check", lambda _: None)(uri)
        return WorkerCamera(module.__name__, uri, wanted, stop)
    camera: Camera = module.open_source(uri, wanted)
    return camera
