"""The pictures of a folder, one after the other: `images:///folder?fps=1&loop=1`."""

from __future__ import annotations

import logging
from pathlib import Path

from edgefer.cameras import CameraUri, EndOfStream, Picture, Wanted
from edgefer.cameras._opencv import quiet
from edgefer.errors import InputError
from edgefer.files import expand_home
from edgefer.messages import Image
from edgefer.pictures import list_pictures, read_picture

SCHEMES = ("images",)

log = logging.getLogger(__name__)


def open_source(uri: CameraUri, wanted: Wanted) -> ImageFolder:  # noqa: ARG001  # pictures have the size they have
    """The folder's pictures; InputError where there is none that can be read."""
    uri.check_options("fps", "loop")
    quiet()
    folder = expand_home(uri.location).absolute()
    return ImageFolder(folder, uri.number("fps", 1), loop=uri.flag("loop"))


class ImageFolder:
    """Gives the pictures in the order of their names, as a video of `fps` frames a second; none is left out."""

    live = False

    def __init__(self, folder: Path, fps: float, *, loop: bool) -> None:
        self._folder = folder
        self._paths = list_pictures(folder)
        self._fps = fps
        self._loop = loop
        self._position = 0
        self._given = 0
        self._closed = False
        found = len(self._paths)
        self._first = self._next_image()
        if self._first is None:
            raise InputError(f"{folder}: none of its {found} pictures can be read")
        height, width = self._first.shape[:2]
        self.description = f"{found} pictures, the first of {width}x{height}"

    def read(self) -> Picture:
        """The next picture that can be read."""
        image = self._next_image() if self._first is None else self._first
        self._first = None
        if image is None or self._closed:
            raise EndOfStream(f"{self._folder}: all {self._given} pictures were shown")
        picture = Picture(image, self._given / self._fps)
        self._given += 1
        return picture

    def close(self) -> None:
        """Nothing is held open."""
        self._closed = True

    def _next_image(self) -> Image | None:
        while self._position < len(self._paths) or (self._loop and self._paths):
            self._position %= len(self._paths)
            path = self._paths[self._position]
            try:
                image = read_picture(path)
            except InputError as error:
                log.warning("%s; leaving it out", error)
                del self._paths[self._position]
            else:
                self._position += 1
                return image
        return None
