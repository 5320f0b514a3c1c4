"""Closing a camera from any thread, whatever its driver does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from edgefer.cameras import EndOfStream

log = logging.getLogger(__name__)

RELEASE_S = 2.0
"""A driver that takes longer to stop is left behind: some never return. A Pi camera takes 0.2 to 0.4 s."""


class Guard:
    """Keeps a camera from being released under a read: then the reading thread does it, once its read is over.

    Drivers crash when they are released in the middle of a read. Reads stand in `with guard:`.
    """

    def __init__(self, name: str, release: Callable[[], object]) -> None:
        self.closed = threading.Event()
        self._name = name
        self._release = release
        self._lock = threading.Lock()
        self._released = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self.closed.is_set():
            self._lock.release()
            raise EndOfStream(f"{self._name} was closed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        if self.closed.is_set():
            self.close()

    def close(self) -> None:
        """Release the camera, or have the thread that reads it do so."""
        self.closed.set()
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._released:
                self._released = True
                release_in_time(self._name, self._release)
        finally:
            self._lock.release()


def release_in_time(name: str, release: Callable[[], object]) -> None:
    """Call `release`, and go on without it when it takes longer than RELEASE_S."""

    def run() -> None:
        try:
            release()
        except Exception as error:  # a thread's edge; there is nothing left to save
            log.warning("%s: closing it failed: %s", name, error)

    if not in_time(run, RELEASE_S):
        log.warning("%s doesn't stop; leaving it. If it can't be opened again, restart edgefer or the machine", name)


def in_time(action: Callable[[], object], seconds: float) -> bool:
    """Whether `action` was done in so many seconds; if not, it is left behind in a thread of its own."""
    thread = threading.Thread(target=action, name="camera driver", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
