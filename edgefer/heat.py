"""Fewer frames while the machine is too hot or throttled, so that it cools down by itself."""

from __future__ import annotations

import logging
import time
from typing import Literal

from edgefer.machine import MachineState
from edgefer.problems import HOT_C

log = logging.getLogger(__name__)

COOL_C = 72.0
"""It goes on as before only from here on down, else it would come and go with every cloud."""
CALM_S = 30.0
"""And when it was well for so long: a weak power supply dips for moments."""
HOT_FPS = 5.0
"""Enough to know who is there; a seventh to a third of the work."""


class Thermostat:
    """Looks at the machine, and says how long to wait before the next frame."""

    def __init__(self) -> None:
        self.cause: Literal["hot", "throttled"] | None = None
        """Why fewer frames are taken, until that is over; None when all are."""
        self._well_since_s: float | None = None
        self._taken_s = 0.0

    def note(self, machine: MachineState) -> None:
        """How the machine does now."""
        now_s = time.monotonic()
        degrees = machine.temperature_c
        if machine.throttled or (degrees is not None and degrees >= HOT_C):
            self._well_since_s = None
            if self.cause is None:
                self.cause = "throttled" if machine.throttled else "hot"
                why = "the machine is throttled" if machine.throttled else f"the machine has {degrees:.0f} °C"
                log.warning(
                    "%s: looking at %g frames a second until that is over",
                    why,
                    HOT_FPS,
                    extra={"EDGEFER_CODE": self.cause},
                )
        elif self.cause and (self.cause == "throttled" or degrees is None or degrees < COOL_C):
            self._well_since_s = self._well_since_s or now_s
            if now_s - self._well_since_s >= CALM_S:
                self.cause = None
                log.info("the machine is neither hot nor throttled any more: looking at every frame again")
        else:
            self._well_since_s = None

    def pause_s(self) -> float:
        """How long to wait before the next frame is taken; to be called before each."""
        now_s = time.monotonic()
        pause_s = max(0.0, self._taken_s + 1 / HOT_FPS - now_s) if self.cause else 0.0
        self._taken_s = now_s + pause_s
        return pause_s
