"""A camera that fails as real ones do, when it is told to, for tests: `faulty:///path/to/a/file`.

The file holds one word, which is read before each picture; without the file all is well:

- `freeze`: the same picture again and again, as some drivers give after an unplug
- `dark`: black, but for the noise of the sensor
- `slow`: two pictures a second
- `hang`: no answer, for ever, as from a wedged driver
- `crash`: the driver ends the process
- `vanish`: unplugged
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np

from edgefer.cameras import CameraUri, Picture, Wanted, synthetic
from edgefer.errors import CameraError

SCHEMES = WORKER_SCHEMES = ("faulty",)


def open_source(uri: CameraUri, wanted: Wanted) -> FaultyCamera:
    """A camera that does as the file says."""
    uri.check_options()
    return FaultyCamera(Path(uri.location), wanted)


class FaultyCamera:
    """Gives the moving test picture at the asked pace, until it is told otherwise."""

    live = True

    def __init__(self, control: Path, wanted: Wanted) -> None:
        self.description = f"faulty camera, {wanted.width}x{wanted.height} at {wanted.fps:g} fps"
        self._control = control
        self._wanted = wanted
        self._background = synthetic.background(wanted.width, wanted.height)
        self._noise = np.random.default_rng(0)
        self._index = 0
        self._obey()

    def read(self) -> Picture:
        """The next picture, or what a fault leaves of it."""
        word = self._obey()
        time.sleep(0.5 if word == "slow" else 1 / self._wanted.fps)
        if word == "dark":
            return Picture(self._noise.integers(0, 4, self._background.shape, np.uint8))
        self._index += word != "freeze"
        return Picture(synthetic.draw(self._background, self._index, self._index / self._wanted.fps))

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
