"""OpenCV's VideoCapture, as its sources use it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    from edgefer.messages import Image

DAMAGED_S = 2.0
"""Pictures that don't decode are a bad cable's or network's doing; for so long, they are a lost camera."""


def quiet() -> None:
    """Keep OpenCV's and FFmpeg's own lines off the terminal: our errors say what went wrong.

    Whoever wants to see them sets OPENCV_LOG_LEVEL or OPENCV_FFMPEG_LOGLEVEL, and they are left alone.
    """
    if "OPENCV_LOG_LEVEL" not in os.environ:
        # It moved: cv2.setLogLevel is in 4.8 and 4.10, cv2.utils.logging in 4.14.
        set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
        set_level(1)  # LOG_LEVEL_FATAL
    # AV_LOG_QUIET. OpenCV reads it when it opens the first video.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def next_image(capture: cv2.VideoCapture) -> Image | None:
    """The next picture that decodes; None when there is none."""
    started_s = time.monotonic()
    while capture.grab():
        try:
            decoded, image = capture.retrieve()
        except cv2.error:  # an empty JPEG, as some webcams send now and then
            decoded, image = False, None
        if decoded and image is not None and image.size:
            return image
        if time.monotonic() - started_s > DAMAGED_S:
            return None
    return None
