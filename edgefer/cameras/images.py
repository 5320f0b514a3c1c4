"""The pictures of a folder, one after the other: `images:///folder?fps=1&loop=1`."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import cv2
import numpy as np

from edgefer.cameras import CameraUri, EndOfStream, Picture
from edgefer.cameras._opencv import quiet
from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.settings import FrameSettings

SCHEMES = ("images",)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

log = logging.getLogger(__name__)


def open_source(uri: CameraUri, wanted: FrameSettings) -> ImageFolder:  # noqa: ARG001  # pictures have the size they have
    """The folder's pictures; InputError where there is none that can be read."""
    uri.check_options("fps", "loop")
    quiet()
    folder = Path(os.path.expanduser(uri.location)).absolute()  # noqa: PTH111  # pathlib's raises on an unknown user
    return ImageFolder(folder, uri.number("fps", 1), loop=uri.flag("loop"))


class ImageFolder:
    """Gives the pictures in the order of their names, as a video of `fps` frames a second; none is left out."""

    live = False

    def __init__(self, folder: Path, fps: float, *, loop: bool) -> None:
        self._folder = folder
        self._paths = list_images(folder)
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
            image = _read_image(path)
            if image is not None:
                self._position += 1
                return image
            log.warning("%s can't be read as a picture; leaving it out", path)
            del self._paths[self._position]
        return None


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder in the order that people count: 2 before 10. InputError where there is none."""
    try:
        paths = [path for path in folder.iterdir() if _is_image(path)]
    except NotADirectoryError:
        raise InputError(f"{folder} is no folder: images:// takes one; a single file is named by its path") from None
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error.strerror}") from error
    if not paths:
        raise InputError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return sorted(paths, key=lambda path: (_natural(path.name), path.name))


def _is_image(path: Path) -> bool:
    # macOS leaves a hidden ._name beside each file that it copies to a foreign disk.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text.lower(), int(digits or 0)) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _read_image(path: Path) -> Image | None:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):  # gone or locked; or larger than OpenCV's limit
        return None
