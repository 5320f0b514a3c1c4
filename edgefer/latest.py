"""The newest frame of a camera, from a thread of its own, so that a slow stage never builds a queue."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone

import cv2

from edgefer.cameras import Camera, EndOfStream, Picture, open_camera, parse_uri
from edgefer.errors import CameraError, EdgeferError
from edgefer.messages import Frame, Image
from edgefer.pulse import Pulse
from edgefer.settings import FrameSettings

log = logging.getLogger(__name__)

LOST_AFTER_S = 3.0
"""A camera that gives nothing for so long is lost: a driver can wait for ever after an unplug."""
OPEN_S = 10.0
"""One that is being opened has longer: a network camera takes 5 s, a Jetson's pipeline as long."""
OPEN_LIMIT_S, READ_LIMIT_S, CLOSE_LIMIT_S = 20.0, 20.0, 5.0
"""What takes longer than these hangs: every source has time limits of its own below them."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
"""A lost camera is opened again after so long, doubling each time; with jitter, as several may share a bus."""

_turns = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, slots=True)
class CameraState:
    """How the camera does: what is wrong (None when nothing is), and counts since the start."""

    problem: str | None
    dropped_frames: int
    reopened: int
    alive: bool = True
    """Whether the thread that captures goes on, or is in a recovery that ends; a camera that is lost is no matter."""


class Latest:
    """Keeps a camera open and its newest frame at hand.

    `uri` is what EDGEFER_CAMERA holds; `auto` is looked up anew whenever the camera is opened. A lost camera is opened
    again, with back-off, for as long as it takes. A file that can't be read ends it.
    """

    def __init__(self, uri: str, settings: FrameSettings) -> None:
        self._uri = uri
        self._settings = settings
        self._camera: Camera | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._frame: Frame | None = None
        self._end: Exception | None = None
        self._problem: str | None = None
        self._opened_s = math.inf
        self._pulse = Pulse()
        self._waiting_since_s: float | None = time.monotonic()
        self._number = 0
        self._dropped = 0
        self._reopened = 0
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Frame | None:
        """The newest frame that wasn't given yet, or None when none came in time.

        EndOfStream when a file is played to its end; InputError or UsageError when it never can be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frame or self._end, timeout_s)
            frame, self._frame = self._frame, None
            self._changed.notify_all()
            if frame is None and self._end is not None:
                raise self._end
            return frame

    @property
    def state(self) -> CameraState:
        """How the camera does now."""
        with self._changed:
            since_s = self._waiting_since_s
            silent_s = 0.0 if since_s is None else time.monotonic() - since_s
            problem = self._problem
            if problem is None and self._end is None:
                if self._opened_s == math.inf and silent_s > OPEN_S:
                    problem = f"the camera is being opened for {silent_s:.0f} s; is it plugged in, and switched on?"
                elif self._opened_s < math.inf and silent_s > LOST_AFTER_S:
                    problem = f"the camera has given no frame for {silent_s:.0f} s; is it still plugged in?"
            return CameraState(problem, self._dropped, self._reopened, alive=not self._pulse.missed)

    def close(self, timeout_s: float) -> None:
        """Stop capturing; a camera that is stuck in a read is left behind after `timeout_s`."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._camera is not None:
            self._camera.close()  # ends a read that only waits for its picture's time
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            doing = "is still being opened" if self._camera is None else "doesn't answer"
            log.warning("the camera %s; leaving it", doing)

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._stop.is_set():
            self._opened_s = math.inf
            try:
                self._capture()
            except CameraError as error:
                if self._stop.is_set():
                    return
                if time.monotonic() - self._opened_s > LAST_RETRY_S:
                    retry_s = FIRST_RETRY_S
                self._lost(error, retry_s)
                self._pulse.expect_within(2 * retry_s)
                self._stop.wait(retry_s * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, not a secret
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            except (EndOfStream, EdgeferError) as end:
                self._finish(end)
                return
            except Exception as error:  # a thread's edge: whatever it is, `next` raises it
                self._finish(error)
                return

    def _capture(self) -> None:
        self._waiting_since_s = time.monotonic()
        self._pulse.expect_within(OPEN_LIMIT_S)
        uri = parse_uri(self._uri)
        self._camera = camera = open_camera(uri, self._settings)
        self._opened_s = time.monotonic()
        try:
            log.info("camera open: %s", camera.description)
            while not self._stop.is_set():
                self._pulse.expect_within(READ_LIMIT_S)
                self._put(camera.read(), uri.public, wait=not camera.live)
        finally:
            self._pulse.expect_within(CLOSE_LIMIT_S)
            camera.close()

    def _put(self, picture: Picture, camera: str, *, wait: bool) -> None:
        self._waiting_since_s = None
        image = upright(picture.image, self._settings)
        with self._changed:
            if wait:
                self._pulse.rest()
                self._changed.wait_for(lambda: self._frame is None or self._stop.is_set())
            now_s = time.monotonic()
            self._dropped += self._frame is not None
            stream_s = now_s if picture.stream_s is None else picture.stream_s
            self._frame = Frame(image, self._number, now_s, datetime.now(timezone.utc), stream_s, camera)
            if self._problem is not None and self._number > 0:
                self._reopened += 1
                log.info("the camera is back")
            self._number += 1
            self._problem, self._waiting_since_s = None, now_s
            self._changed.notify_all()

    def _lost(self, error: CameraError, retry_s: float) -> None:
        with self._changed:
            # Once a problem is told, a person at the log needs no repetition.
            log.log(logging.DEBUG if self._problem == str(error) else logging.ERROR, "%s; trying again", error)
            self._problem = str(error)
            log.debug("the next try is in %.1f s", retry_s)

    def _finish(self, end: Exception) -> None:
        self._pulse.rest()
        with self._changed:
            self._end = end
            self._changed.notify_all()


def upright(image: Image, settings: FrameSettings) -> Image:
    """The picture turned and mirrored as the settings ask."""
    turned = cv2.rotate(image, _turns[settings.rotation]) if settings.rotation else image
    return (cv2.flip(turned, 1) if settings.mirror else turned).astype(image.dtype, copy=False)
