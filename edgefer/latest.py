"""The newest frame of a camera, from a thread of its own, so that a slow stage never builds a queue."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import cv2

from edgefer.cameras import EndOfStream, Picture, open_camera, parse_uri, v4l2
from edgefer.errors import CameraError, InputError
from edgefer.messages import Frame, Image
from edgefer.pulse import Pulse
from edgefer.settings import FrameSettings
from edgefer.sight import Ailment, Sight

log = logging.getLogger(__name__)

LOST_AFTER_S = 2.5
"""A camera that gives nothing for so long is lost: told within three seconds, with the time that telling takes."""
OPEN_S = 10.0
"""One that is being opened has longer: a network camera takes 5 s, a Jetson's pipeline as long."""
OPEN_LIMIT_S, READ_LIMIT_S, CLOSE_LIMIT_S = 20.0, 10.0, 5.0
"""What takes longer than these hangs: a camera's own process is ended before, and the other sources wait for nobody."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
"""A lost camera is opened again after so long, doubling each time; with jitter, as several may share a bus."""

_turns = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}

Code = Literal["lost", "frozen", "dark", "slow"]


@dataclass(frozen=True, slots=True)
class CameraState:
    """How the camera does: what is wrong (None when nothing is), and counts since the start."""

    problem: str | None
    dropped_frames: int
    reopened: int
    code: Code = "lost"
    """What kind of problem it is, where there is one."""
    alive: bool = True
    """Whether the thread that captures goes on, or is in a recovery that ends; that a camera is lost doesn't matter."""

    @property
    def is_blind(self) -> bool:
        """Whether no new pictures come, so that nobody is known to be in view."""
        return self.problem is not None and self.code in ("lost", "frozen")


class Latest:
    """Keeps a camera open and its newest frame at hand.

    `uri` is what EDGEFER_CAMERA holds; `auto` is looked up anew whenever the camera is opened. A lost camera, or one
    that gives the same picture again and again, is opened again, with back-off, for as long as it takes. A file that
    can't be read ends it.
    """

    def __init__(self, uri: str, settings: FrameSettings) -> None:
        self._uri = uri
        self._settings = settings
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._frame: Frame | None = None
        self._end: Exception | None = None
        self._trouble: tuple[Code, str] | None = None
        self._sight = Sight(settings.fps)
        self._pulse = Pulse()
        self._lasting_name: Path | None = None
        self._opened_s = math.inf
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
            code, problem = self._trouble or self._silence() or ("lost", None)
            return CameraState(problem, self._dropped, self._reopened, code, alive=not self._pulse.missed)

    def stop(self) -> None:
        """Have the camera given back, without waiting for it."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Stop capturing and give the camera back; what takes longer than `timeout_s` is left behind."""
        self.stop()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("the camera doesn't answer; leaving it")

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._stop.is_set():
            self._opened_s = math.inf
            try:
                self._capture()
            except (EndOfStream, InputError) as end:
                self._finish(end)
                return
            except OSError as error:  # a CameraError, or the machine is short of something, which passes
                if self._stop.is_set():
                    return
                if time.monotonic() - self._opened_s > LAST_RETRY_S:
                    retry_s = FIRST_RETRY_S
                self._lost("frozen" if isinstance(error, _FrozenError) else "lost", error, retry_s)
                self._pulse.expect_within(2 * retry_s)
                self._stop.wait(retry_s * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, not a secret
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            except Exception as error:  # a thread's edge: whatever it is, `next` raises it
                self._finish(error)
                return

    def _capture(self) -> None:
        self._waiting_since_s = time.monotonic()
        self._pulse.expect_within(OPEN_LIMIT_S)
        uri = parse_uri(self._uri)
        found = v4l2.found_again(uri, self._lasting_name)
        camera = open_camera(found, self._settings, self._stop)
        try:
            log.info("camera open: %s", camera.description, extra={"EDGEFER_CAMERA": uri.public})
            self._lasting_name = v4l2.lasting_name(found) or self._lasting_name
            self._waiting_since_s = self._opened_s = time.monotonic()
            self._sight.opened(self._opened_s)
            while not self._stop.is_set():
                self._pulse.expect_within(READ_LIMIT_S + 3 / self._settings.fps)
                picture, ailment = camera.read(), None
                if not camera.live:
                    self._wait_until_taken()
                elif picture.stream_s is not None:
                    self._wait_for_time(picture.stream_s)
                else:
                    ailment = self._sight.look(picture.image, time.monotonic())
                if ailment is not None and ailment.code == "frozen":
                    self._hold_back(ailment)
                else:
                    self._note(None if ailment is None else (ailment.code, ailment.message))
                    self._put(picture, uri.public)
        finally:
            self._pulse.expect_within(CLOSE_LIMIT_S)
            camera.close()

    def _wait_until_taken(self) -> None:
        """Wait until the frame before was taken: of a file, none is left out."""
        self._waiting_since_s = None
        self._pulse.rest()
        with self._changed:
            self._changed.wait_for(lambda: self._frame is None or self._stop.is_set())

    def _wait_for_time(self, stream_s: float) -> None:
        """Wait until it is time for a picture of a film."""
        self._waiting_since_s = None
        wait_s = max(0.0, self._opened_s + stream_s - time.monotonic())
        self._pulse.expect_within(wait_s + READ_LIMIT_S)
        self._stop.wait(wait_s)

    def _hold_back(self, frozen: Ailment) -> None:
        """Don't show an old picture as if it were new."""
        if frozen.reopen:
            raise _FrozenError(frozen.message)
        self._waiting_since_s = time.monotonic()

    def _put(self, picture: Picture, camera: str) -> None:
        image = upright(picture.image, self._settings)
        with self._changed:
            now_s = time.monotonic()
            captured_at = now_s if picture.captured_at is None else picture.captured_at
            captured = datetime.now(timezone.utc) - timedelta(seconds=now_s - captured_at)
            stream_s = captured_at if picture.stream_s is None else picture.stream_s
            self._dropped += self._frame is not None
            self._frame = Frame(image, self._number, captured_at, captured, stream_s, camera)
            self._number += 1
            self._waiting_since_s = now_s
            self._changed.notify_all()

    def _note(self, trouble: tuple[Code, str] | None) -> None:
        """Pictures come, with or without something that is wrong with them."""
        with self._changed:
            former, self._trouble = self._trouble, trouble
            # Where none came before, it wasn't lost: it wasn't there yet.
            self._reopened += former is not None and former[0] in ("lost", "frozen") and self._number > 0
        if trouble is not None and trouble != former:
            log.warning("%s", trouble[1], extra={"EDGEFER_CODE": trouble[0]})
        elif trouble is None and former is not None and self._number > 0:
            log.info("the camera is back")

    def _lost(self, code: Code, error: OSError, retry_s: float) -> None:
        with self._changed:
            former, self._trouble = self._trouble, (code, str(error))
        # Once a problem is told, a person at the log needs no repetition.
        level = logging.DEBUG if former == (code, str(error)) else logging.ERROR
        log.log(level, "%s; trying again", error, extra={"EDGEFER_CODE": code})
        log.debug("the next try is in %.1f s", retry_s)

    def _silence(self) -> tuple[Code, str] | None:
        """What is wrong with a camera that says nothing."""
        since_s = self._waiting_since_s  # once: the camera's thread changes it
        if since_s is None or self._end is not None:
            return None
        silent_s = time.monotonic() - since_s
        if self._opened_s == math.inf:
            return ("lost", _silent("is being opened", silent_s)) if silent_s > OPEN_S else None
        # A camera that is asked for a frame a second or fewer has three frames' time.
        limit_s = max(LOST_AFTER_S, 3 / self._settings.fps)
        return ("lost", _silent("has given no frame", silent_s)) if silent_s > limit_s else None

    def _finish(self, end: Exception) -> None:
        self._pulse.rest()
        with self._changed:
            self._end = end
            self._changed.notify_all()


class _FrozenError(CameraError):
    """The camera gives the same picture again and again."""


def _silent(what: str, seconds: float) -> str:
    return f"the camera {what} for {seconds:.0f} s; is it plugged in, and switched on?"


def upright(image: Image, settings: FrameSettings) -> Image:
    """The picture turned and mirrored as the settings ask."""
    turned = cv2.rotate(image, _turns[settings.rotation]) if settings.rotation else image
    return (cv2.flip(turned, 1) if settings.mirror else turned).astype(image.dtype, copy=False)
