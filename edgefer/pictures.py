"""Pictures from files, however odd their names and contents."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from edgefer.errors import InputError
from edgefer.files import read_bounded
from edgefer.messages import Image

MAX_BYTES = 64 * 2**20
"""Of a picture's file. What it may come to once it is read, edgefer/__init__.py says."""
MAX_SIDE = 32_000
"""Pixels: OpenCV warps no picture with a side of 2^15 and more."""
SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".webp")
OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".heif", ".tif", ".tiff")
"""Pictures too, phones' above all, which OpenCV doesn't read everywhere."""


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order that people count: 2 before 10. InputError where there is none."""
    try:
        paths = [path for path in folder.iterdir() if is_picture(path)]
    except NotADirectoryError:
        raise InputError(f"{folder} is no folder: images:// takes one; a single file is named by its path") from None
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error.strerror}") from error
    if not paths:
        raise InputError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}){_what_else(folder)}")
    return sorted(paths, key=lambda path: (_natural(path.name), path.name))


def left_out(folder: Path) -> list[Path]:
    """What somebody may have meant in a folder besides its pictures: other kinds of these, and folders."""
    others = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(path for path in others if path.suffix.lower() in OTHER_SUFFIXES or path.is_dir())


def _what_else(folder: Path) -> str:
    """What a folder without pictures may hold instead: an iPhone's, or folders of them."""
    others = left_out(folder)
    if kinds := sorted({path.suffix.lower() for path in others if not path.is_dir()}):
        return f": turn the {', '.join(kinds)} in it into .jpg"
    return ", but folders: name these" if others else ""


def is_picture(path: Path) -> bool:
    """Whether a file is named as a picture."""
    # macOS leaves a hidden ._name beside each file that it copies to a foreign disk.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_picture(path: Path) -> Image:
    """A picture, BGR, turned upright as its EXIF data says; InputError when it can't be read."""
    try:
        # Not imread: it ends the process over a name that isn't UTF-8.
        data = read_bounded(path, MAX_BYTES)
        image = decode(data)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
    except cv2.error as error:
        raise InputError(f"{path}: larger than what can be read; make it smaller") from error
    if image is None:
        known = path.suffix.lower() in SUFFIXES
        advice = "is it whole?" if known else f"make it one of {', '.join(SUFFIXES)}"
        raise InputError(f"{path}: not a picture that can be read ({len(data)} bytes); {advice}")
    if max(image.shape) > MAX_SIDE:
        height, width = image.shape[:2]
        raise InputError(f"{path}: {width}x{height} pixels: a side may have {MAX_SIDE}; cut it, or make it smaller")
    return image


def decode(data: bytes) -> Image | None:
    """The picture, BGR, in a file's bytes; None where they are none."""
    image: Image | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    return image


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text.lower(), int(digits or 0)) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)]
