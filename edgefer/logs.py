"""Where log lines go: to the journal with fields when systemd runs us, else to standard error as readable lines."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from edgefer.escape import SafeFormatter, escape

JOURNAL = Path("/run/systemd/journal/socket")
"""Where the journal takes entries (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
BURST, BURST_S = 20, 60.0
"""So many lines from one place in the code are written in so many seconds; then one says how many were left out."""
LONGEST = 8000
"""Characters of a field: a journal's entry fits one datagram."""
FIELDS = ("EDGEFER_TRACK", "EDGEFER_PEOPLE", "EDGEFER_CAMERA", "EDGEFER_CODE")
"""What a log line may carry besides its words, as `extra`: `journalctl EDGEFER_CODE=frozen` finds them."""
_Place = tuple[str, int]
"""A file of the code, and a line in it."""


def set_up(environment: Mapping[str, str] = os.environ, journal: Path = JOURNAL) -> None:
    """Send what is logged to the journal or to standard error."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    if is_journal(environment, 2):
        try:
            handler = JournalHandler(journal)
            handler.setFormatter(SafeFormatter())
        except OSError:  # none there: systemd understands a priority before a line, too
            handler.setFormatter(_PriorityFormatter("%(name)s: %(message)s"))
    handler.addFilter(RateLimit())
    logging.basicConfig(handlers=[handler])


def is_journal(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether a file is the one that systemd says is connected to the journal."""
    try:
        file = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


class RateLimit(logging.Filter):
    """Leaves out lines that come too often from one place in the code, and says how many, once the burst is over."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._places: dict[_Place, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        place = record.pathname, record.lineno
        with self._lock:
            since_s, count = self._places.get(place, (record.created, 0))
            # A clock that is set back ends a burst, too: the lines after it would be left out until it has caught up.
            if not 0 <= record.created - since_s <= BURST_S:
                if count > BURST:
                    record.msg, record.args = _summed_up(record, count), ()
                since_s, count = record.created, 0
            self._places[place] = since_s, count + 1
        if count == BURST:  # perhaps no other follows the burst
            timer = threading.Timer(BURST_S - (record.created - since_s), self._sum_up, (place, since_s, record))
            timer.daemon = True
            with contextlib.suppress(RuntimeError):  # short of memory or of threads: a later line sums up
                timer.start()
        return count < BURST

    def _sum_up(self, place: _Place, since_s: float, record: logging.LogRecord) -> None:
        """Say how many lines of a burst were left out, where no later line has."""
        with self._lock:
            begun_s, count = self._places.get(place, (None, 0))
            if begun_s != since_s:
                return
            del self._places[place]
        logging.getLogger(record.name).log(record.levelno, "%s", _summed_up(record, count))


def _summed_up(record: logging.LogRecord, count: int) -> str:
    return f"{record.getMessage()} ({count - BURST} more like this were left out)"


class JournalHandler(logging.Handler):
    """Writes entries with fields; OSError where there is no journal."""

    def __init__(self, journal: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(str(journal))
        except OSError:
            self.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Write an entry; one that the journal doesn't take is left out, as a log must not stop the camera."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_priority(record)),
            "SYSLOG_IDENTIFIER": "edgefer",
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
        } | {name: str(getattr(record, name)) for name in FIELDS if getattr(record, name, None) is not None}
        try:
            self._socket.send(b"".join(_entry(name, value[:LONGEST]) for name, value in fields.items()))
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Say it on standard error, which goes to the journal too."""
        sys.stderr.write(f"{record.levelname} {record.name}: {escape(record.getMessage())}\n")

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        super().close()


class _PriorityFormatter(SafeFormatter):
    def format(self, record: logging.LogRecord) -> str:
        # Each line is an entry of its own.
        return "\n".join(f"<{_priority(record)}>{line}" for line in super().format(record).splitlines())


def _entry(name: str, value: str) -> bytes:
    # With its length before it, a value may hold whatever it likes, line ends too.
    data = value.encode(errors="backslashreplace")
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _priority(record: logging.LogRecord) -> int:
    """syslog's: 3 error, 4 warning, 6 info, 7 debug."""
    levels = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((priority for level, priority in levels if record.levelno >= level), 7)
