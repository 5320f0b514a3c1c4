"""Where frames come from: one file a source, named by the schemes of its URI.

A module here lists its URI schemes in `SCHEMES` and opens a camera with `open_source(uri, wanted)`. It imports its
hardware's library inside that function, so that every module can be listed on every machine.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from edgefer.errors import CameraError, UsageError
from edgefer.messages import Image
from edgefer.settings import FrameSettings


class EndOfStream(Exception):  # noqa: N818  # not an error: a file is played to its end
    """The source has no more pictures."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a camera gives: the pixels (BGR), and its position in the stream in seconds where the source knows it."""

    image: Image
    stream_s: float | None = None


class Camera(Protocol):
    """An open source of pictures."""

    live: bool
    """Whether pictures come at their own pace, so that only the newest matters; else none is left out."""
    description: str
    """What was really opened: size, frames a second, pixel format; for the log."""

    def read(self) -> Picture:
        """The next picture; waits for it. EndOfStream at the end of a file, CameraError when the camera is lost."""

    def close(self) -> None:
        """Give the camera back; may be called twice, and while another thread waits in `read`."""


@dataclass(frozen=True, slots=True)
class CameraUri:
    """A camera's URI, taken apart."""

    scheme: str
    location: str
    """What stands after `scheme://` up to the query: a path, an index, or host and path (with user and password)."""
    options: dict[str, str] = field(default_factory=dict)
    """The query's names and values. For rtsp and http they belong to the camera, and are in `address` too."""
    address: str = ""
    """The whole URI as it was given; may hold a password: not for logs."""

    @property
    def public(self) -> str:
        """The URI as it is published and logged: without credentials and query."""
        return f"{self.scheme}://{quote(self.location.rpartition('@')[2], safe='/:[]@!,;=()')}"

    def option(self, name: str, default: str) -> str:
        """One option of the query."""
        return self.options.get(name, default)

    def flag(self, name: str) -> bool:
        """One option of the query that is 1 or 0."""
        value = self.options.get(name, "0")
        if value not in ("0", "1"):
            raise UsageError(f"{self.public}: {name}={value!r} should be 0 or 1")
        return value == "1"

    def check_options(self, *known: str) -> None:
        """UsageError where the query holds a name that the source doesn't know."""
        if unknown := sorted(set(self.options) - set(known)):
            takes = ", ".join(known) or "none"
            raise UsageError(f"{self.public}: unknown option {', '.join(unknown)}; this source takes {takes}")


def parse_uri(text: str) -> CameraUri:
    """A camera's URI, or one of the short forms `0`, `/dev/video0`, `clip.mp4`, `auto`."""
    if text == "auto":
        return _first_camera()
    if "://" not in text:
        return _short_form(text)
    parts = urlsplit(text)
    return CameraUri(parts.scheme.lower(), unquote(parts.netloc + parts.path), dict(parse_qsl(parts.query)), text)


def _short_form(text: str) -> CameraUri:
    if text.isdecimal():
        return CameraUri("v4l2", f"/dev/video{text}", {}, text)
    if text.startswith("/dev/"):
        return CameraUri("v4l2", text, {}, text)
    path = Path(text).expanduser().absolute()
    return CameraUri("images" if path.is_dir() else "file", str(path), {}, text)


def _first_camera() -> CameraUri:
    for module in source_modules():
        for uri in getattr(module, "find_cameras", list)():
            return parse_uri(uri)
    raise CameraError(
        "no camera was found: connect one, or name one with EDGEFER_CAMERA (docs/cameras.md lists the forms)"
    )


def source_modules() -> list[ModuleType]:
    """Every module of this folder, Pi camera first: the order in which cameras are looked for."""
    names = sorted((m.name for m in pkgutil.iter_modules(__path__)), key=lambda name: (name != "picamera2", name))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def open_camera(uri: CameraUri, wanted: FrameSettings) -> Camera:
    """Open a camera; CameraError or InputError say why it can't be, UsageError that no such scheme is known."""
    modules = {scheme: module for module in source_modules() for scheme in module.SCHEMES}
    if uri.scheme not in modules:
        known = ", ".join(f"{scheme}://" for scheme in sorted(modules))
        raise UsageError(f"EDGEFER_CAMERA: unknown scheme {uri.scheme}://; the known ones are {known}")
    camera: Camera = modules[uri.scheme].open_source(uri, wanted)
    return camera
