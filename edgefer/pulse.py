"""A stage's own word on when it will be heard of again, so that one that hangs is told from one that waits."""

from __future__ import annotations

import math
import time


class Pulse:
    """Set by a stage's thread before each thing that takes time; looked at by the loop that feeds the watchdog.

    A stage that makes progress sets it again and again; one that recovers says how long that takes at most. Nobody
    else sets it, so that a stage that neither goes on nor recovers misses its own word.
    """

    def __init__(self) -> None:
        self._due_s = math.inf

    def expect_within(self, seconds: float) -> None:
        """The stage will be heard of again in so many seconds at the latest."""
        self._due_s = time.monotonic() + seconds

    def rest(self) -> None:
        """The stage waits for the loop itself, or is over: nothing is to be heard of it."""
        self._due_s = math.inf

    @property
    def missed(self) -> bool:
        """Whether the stage should have been heard of by now."""
        return time.monotonic() > self._due_s
