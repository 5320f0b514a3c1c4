"""A camera that fails as real ones do, when it is told to, for tests: `faulty:///path/to/a/file`.

The file holds one word, which is read before each picture; without the file all is well:

- `freeze`: the same picture again and again, as some drivers give after an unplug
- `dark`: black, but for the noise of the sensor
- `slow`: two pictures a second
- `hang`: no answer, for ever, as from a wedged driver
- `crash`: the driver ends the process
- `vanish`: unplugged

It shows the test picture of synthetic://; with `?show=sample`, the two people of sample://.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgefer.cameras import CameraUri, Picture, Wanted, synthetic
from edgefer.errors import CameraError, UsageError

if TYPE_CHECKING:
    from edgefer.messages import Image

SCHEMES = WORKER_SCHEMES = ("faulty",)


def open_source(uri: CameraUri, wanted: Wanted) -> FaultyCamera:
    """A camera that does as the file says."""
    uri.check_options("show")
    shown = uri.options.get("show", "synthetic")
    if shown not in ("synthetic", "sample"):
        raise UsageError(f"{uri.public}: show={shown} should be synthetic or sample")
    draw = (_test_picture if shown == "synthetic" else _sample)(wanted)
    return FaultyCamera(Path(uri.location), wanted, draw)


class FaultyCamera:
    """Gives moving pictures at the asked pace, until it is told otherwise."""

    live = True

    def __init__(self, control: Path, wanted: Wanted, draw: Callable[[int], Image]) -> None:
        self.description = f"faulty camera, {wanted.width}x{wanted.height} at {wanted.fps:g} fps"
        self._control = control
        self._wanted = wanted
        self._draw = draw
        self._noise = np.random.default_rng(0)
        self._index = 0
        self._obey()

    def read(self) -> Picture:
        """The next picture, or what a fault leaves of it."""
        word = self._obey()
        time.sleep(0.5 if word == "slow" else 1 / self._wanted.fps)
        if word == "dark":
            return Picture(self._noise.integers(0, 4, (self._wanted.height, self._wanted.width, 3), np.uint8))
        self._index += word != "freeze"
        return Picture(self._draw(self._index))

    def close(self) -> None:
        """Nothing is held open."""

    def _obey(self) -> str:
        word = self._control.read_text().strip() if self._control.exists() else ""
        if word == "vanish":
            raise CameraError(f"faulty://{self._control} was unplugged, as it was asked to be")
        if word == "hang":
            threading.Event().wait()
        if word == "crash":
            os.abort()
        return word


def _test_picture(wanted: Wanted) -> Callable[[int], Image]:
    background = synthetic.background(wanted.width, wanted.height)
    return lambda index: synthetic.draw(background, index, index / wanted.fps)


def _sample(wanted: Wanted) -> Callable[[int], Image]:
    from edgefer.cameras import sample  # noqa: PLC0415  # it imports more than a worker should

    return lambda index: sample.draw(index / wanted.fps % sample.SECONDS)
