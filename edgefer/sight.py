"""Whether a live camera still sees: its pictures may be frozen, dark, or too few, while its driver is content."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgefer.messages import Image

NOTICE_S = 2.5
"""What is so for so long is told: within three seconds of its beginning, with the time that telling takes."""
FEWEST = 5
"""So many pictures must be the same before they are frozen: at a frame a second, that takes longer than NOTICE_S."""
DARK_LEVEL, DARK_CONTRAST = 12.0, 10.0
"""Mean and standard deviation of the pixels, 0..255, below which there is nothing to be seen: a covered lens, or night
without a light. A dim room has 25 and more, as a camera turns up its gain."""
SLOW_FPS = 4.0
"""Fewer frames a second can't follow a face that moves. Low light alone brings webcams from 30 to 15 or 7.5, and is no
fault: hence a fixed bound, and a quarter of what was asked for where that is less."""
_STEP = 8
"""Every eighth row and column stand for the picture, where a glance will do."""


@dataclass(frozen=True, slots=True)
class Ailment:
    """What is wrong with the pictures, and whether opening the camera anew may help."""

    code: Literal["frozen", "dark", "slow"]
    message: str
    reopen: bool = False


class Sight:
    """Looks at every picture of a camera, also across its reopenings. Costs 0.1 ms a picture of 640x480.

    Frozen pictures are the same to the last bit: a sensor's noise makes no two alike. A dark picture may be, and so is
    never frozen. What shows a still picture by nature (a screen, a test pattern) is taken for frozen.
    """

    def __init__(self, fps: float) -> None:
        self._slow_fps = min(SLOW_FPS, fps / 4)
        self._last: Image | None = None
        self._frozen = self._slow = False
        self.opened(0.0)

    def opened(self, now_s: float) -> None:
        """The camera was opened (anew): it has the whole time again."""
        self._opened_s = self._changed_s = self._bright_s = now_s
        self._same = 0
        self._times: deque[float] = deque()

    def look(self, image: Image, now_s: float) -> Ailment | None:
        """What is wrong, with this picture of this moment (of the monotonic clock); None when nothing is."""
        dark = is_dark(image)
        if not dark:
            self._bright_s = now_s
        self._compare(image, now_s, comparable=not dark)
        self._count(now_s)
        if self._frozen:
            return Ailment(
                "frozen", "the camera gives the same picture again and again", reopen=now_s - self._changed_s > NOTICE_S
            )
        if dark and now_s - self._bright_s > NOTICE_S:
            return Ailment("dark", "the camera's picture is black: is its lens covered, or is it night?")
        if self._slow:
            return Ailment(
                "slow",
                f"the camera gives fewer than {self._slow_fps:g} frames a second: is its cable, network or hub too "
                "slow, or EDGEFER_FRAME__FPS far from what it can do?",
            )
        return None

    def _compare(self, image: Image, now_s: float, *, comparable: bool) -> None:
        last, self._last = self._last, image
        if comparable and last is not None and _same(image, last):
            self._same += 1
            self._frozen |= self._same >= FEWEST and now_s - self._changed_s > NOTICE_S
        else:
            self._same, self._changed_s, self._frozen = 0, now_s, False

    def _count(self, now_s: float) -> None:
        self._times.append(now_s)
        while now_s - self._times[0] > NOTICE_S:
            self._times.popleft()
        if now_s - self._opened_s > NOTICE_S:
            # Half as many again, before it is well: a camera at the bound would come and go.
            enough = self._slow_fps * NOTICE_S * (1.5 if self._slow else 1)
            self._slow = len(self._times) < enough


def is_dark(image: Image) -> bool:
    """Whether there is nothing to be seen."""
    glance = image[::_STEP, ::_STEP]
    return bool(glance.mean() < DARK_LEVEL and glance.std() < DARK_CONTRAST)


def _same(image: Image, other: Image) -> bool:
    if image.shape != other.shape or not np.array_equal(image[::_STEP, ::_STEP], other[::_STEP, ::_STEP]):
        return False
    return bool(np.array_equal(image, other))
