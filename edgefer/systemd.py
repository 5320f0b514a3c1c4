"""What systemd is told of the service: ready, how it goes, alive, stopping (sd_notify's protocol, in a few lines)."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence

from edgefer.escape import escape

log = logging.getLogger(__name__)

STATUS_EVERY_S = 1.0
"""A status line is for people, and the rate in it changes all the time."""
LONGEST_STATUS = 1000
"""Characters: systemd ignores a whole message, READY=1 and all, of more than 4096 bytes."""


class ServiceManager:
    """Speaks to the socket that systemd names in NOTIFY_SOCKET; does nothing where there is none.

    It has no timer of its own: the watchdog is fed by the loop that takes frames through the pipeline, and only while
    no other stage hangs.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte of an abstract socket.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._feed_every_s = _watchdog_s(environment) / 4
        self._fed_s = self._told_s = 0.0
        self._status = ""
        self._ready = False
        self._hung: list[str] = []

    def tell(self, status: str, *, ready: bool, hung: Sequence[str] = ()) -> None:
        """How it goes, in words; whether the service does its work now; the names of the stages that hang.

        To be called often: it sends what has changed, and feeds the watchdog where no stage hangs.
        """
        now_s = time.monotonic()
        if list(hung) != self._hung:
            self._note_hung(list(hung))
        if hung:
            status = f"the {' and the '.join(hung)} hangs; {status}"
        # A line end in it, from a camera's name perhaps, would begin another assignment.
        status = escape(status)[:LONGEST_STATUS]
        newly_ready = ready and not self._ready
        changed = status != self._status and now_s - self._told_s >= STATUS_EVERY_S
        if (newly_ready or changed) and self._send("READY=1\n" * newly_ready + f"STATUS={status}"):
            self._ready, self._status, self._told_s = ready or self._ready, status, now_s
        if not hung and now_s - self._fed_s >= self._feed_every_s and self._send("WATCHDOG=1"):
            self._fed_s = now_s

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _note_hung(self, hung: list[str]) -> None:
        self._hung = hung
        if hung:
            log.error(
                "the %s hangs: it neither goes on nor recovers%s",
                " and the ".join(hung),
                "; systemd will restart the service" if self._feed_every_s < math.inf else "; restart edgefer",
                extra={"EDGEFER_CODE": "hung"},
            )

    def _send(self, message: str) -> bool:
        # What isn't taken now is sent again at the next call: systemd itself may be starting anew.
        with contextlib.suppress(OSError):
            if self._address:
                self._socket.sendto(message.encode(), self._address)
            return True
        return False


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """How long systemd waits for a sign of life; infinity where it doesn't."""
    period_us, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not period_us.isdecimal() or (process and process != str(os.getpid())):
        return math.inf
    return int(period_us) / 1e6
