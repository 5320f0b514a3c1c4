"""A moving test picture, for tests and first tries: `synthetic://`.

Its four corners have colours of their own, so that a wrong rotation, mirroring or colour order shows: red top left,
green top right, blue bottom left, white bottom right. Picture n is the same in every run.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edgefer.cameras import CameraUri, EndOfStream, Picture, Wanted
from edgefer.errors import CameraError

if TYPE_CHECKING:
    from edgefer.messages import Image

SCHEMES = ("synthetic",)

CORNERS_BGR = ((0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255))
"""Top left, top right, bottom left, bottom right."""


def open_source(uri: CameraUri, wanted: Wanted) -> SyntheticCamera:
    """A camera of the wanted size; live, at `fps`, or as fast as it is read where `frames` gives it an end."""
    uri.check_options("fps", "frames", "fail_after", "stall_after")
    return SyntheticCamera(
        width=wanted.width,
        height=wanted.height,
        fps=uri.number("fps", wanted.fps),
        frames=uri.count("frames"),
        fail_after=uri.count("fail_after"),
        stall_after=uri.count("stall_after"),
    )


class SyntheticCamera:
    """Gives the test picture; then, after so many pictures, ends, fails or stalls as a real camera would."""

    def __init__(
        self,
        *,
        width: int,
        height: int,
        fps: float,
        frames: int | None = None,
        fail_after: int | None = None,
        stall_after: int | None = None,
    ) -> None:
        self.live = frames is None
        self.description = f"test picture, {width}x{height} at {fps:g} fps"
        self._background = background(width, height)
        self._fps = fps
        self._frames = frames
        self._fail_after = fail_after
        self._stall_after = stall_after
        self._index = 0
        self._closed = False

    def read(self) -> Picture:
        """The next picture."""
        if self._index == self._frames:
            raise EndOfStream(f"the test picture was shown {self._frames} times")
        if self._index == self._fail_after:
            raise CameraError(f"synthetic:// fails after {self._fail_after} pictures, as it was asked to")
        if self._index == self._stall_after:
            threading.Event().wait()  # for ever, as a stuck driver does
        if self._closed:
            raise EndOfStream("the test picture was closed")
        stream_s = self._index / self._fps
        image = draw(self._background, self._index, stream_s)
        self._index += 1
        return Picture(image, stream_s)

    def close(self) -> None:
        """Nothing is held open."""
        self._closed = True


def draw(background: Image, index: int, stream_s: float) -> Image:
    """Picture number `index`: a square that wanders, one step a picture, above the number and the time."""
    image = background.copy()
    height, width = image.shape[:2]
    side = height // 8
    x = side + index * 4 % max(1, width - 3 * side)
    cv2.rectangle(image, (x, height // 2 - side), (x + side, height // 2), (0, 200, 255), cv2.FILLED)
    text = f"#{index} {stream_s:.2f} s"
    cv2.putText(image, text, (side, 3 * height // 4), cv2.FONT_HERSHEY_SIMPLEX, height / 320, (255, 255, 255), 2)
    return image


def background(width: int, height: int) -> Image:
    """A ramp of grays, with the corners."""
    ramp = np.linspace(40, 160, width).astype(np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], height, axis=0), 3, axis=2)
    side = height // 8
    for colour, rows, columns in zip(
        CORNERS_BGR,
        (slice(side), slice(side), slice(-side, None), slice(-side, None)),
        (slice(side), slice(-side, None), slice(side), slice(-side, None)),
        strict=True,
    ):
        image[rows, columns] = colour
    return image
