"""Every problem that `health` can tell of: what it means, how bad it is, what to do. docs/problems.md is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgefer.messages import Part, ProblemCode

HOT_C = 80.0
"""A Raspberry Pi's firmware slows it down from here on (its soft limit)."""
LEAST_MEMORY_MB, LEAST_DISK_MB = 48.0, 100.0
"""Below, the system may end us before we could say more; and there is room for days of what we write, no more."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem. `status` is what health's own status becomes by it."""

    part: Part
    code: ProblemCode
    status: Literal["ok", "degraded", "failed"]
    meaning: str
    fix: str


KINDS = (
    Kind(
        "camera",
        "lost",
        "failed",
        "The camera isn't there, can't be opened, or gives no pictures.",
        "The message says which. Plug it in; `edgefer doctor` while the service is stopped says more. Nothing needs to "
        "be restarted: it is opened again by itself.",
    ),
    Kind(
        "camera",
        "frozen",
        "failed",
        "The camera gives the same picture, to the last bit, again and again.",
        "It is opened again by itself. If that doesn't help, unplug it and plug it in, into the machine rather than a "
        "hub. A camera that shows a screen or a test pattern is taken for frozen while nothing moves.",
    ),
    Kind(
        "camera",
        "dark",
        "degraded",
        "The camera's picture is black.",
        "Take the cover off the lens, or switch on a light. It is well again by itself.",
    ),
    Kind(
        "camera",
        "slow",
        "degraded",
        "The camera gives fewer frames a second than it takes to follow a face.",
        "Try another cable, port or network, and a smaller EDGEFER_FRAME__WIDTH and __HEIGHT. Where few frames are "
        "meant, say so with EDGEFER_FRAME__FPS.",
    ),
    Kind(
        "broker",
        "undelivered",
        "degraded",
        "The broker can't be reached, refuses us, or doesn't acknowledge.",
        "The message says which. Events wait meanwhile and are sent by themselves.",
    ),
    Kind(
        "stdout",
        "undelivered",
        "degraded",
        "Nobody reads standard output, or it can't be written.",
        "Let the reader go on, or make room on the disk that it goes to.",
    ),
    Kind(
        "gallery",
        "unreadable",
        "degraded",
        "The file of the people we know can't be read: only those who were loaded before, if any, are told by name.",
        "The message says why. Make room on the disk, or end what holds the file: the daemon takes it up by itself. "
        "Where it is damaged, enrol again; or stop edgefer, move gallery.sqlite3, its -wal and its -shm out of "
        "EDGEFER_STATE_DIR, put a copy of gallery.sqlite3 there that belongs to the folder's owner, and start it.",
    ),
    Kind(
        "machine",
        "hot",
        "degraded",
        f"The processor has {HOT_C:.0f} °C or more: fewer frames are looked at until it has cooled down.",
        "Give it a heat sink, a fan or a place in the shade.",
    ),
    Kind(
        "machine",
        "throttled",
        "degraded",
        "A Raspberry Pi slows itself down, for heat or a weak power supply: fewer frames are looked at.",
        "Use the power supply that is made for it, with a short cable; then look at the cooling. `vcgencmd "
        "get_throttled` tells which: bit 0 is the power supply.",
    ),
    Kind(
        "machine",
        "memory",
        "degraded",
        f"Less than {LEAST_MEMORY_MB:.0f} MB of memory are left, of the machine or of the service's own limit.",
        "Stop what else runs there, or raise the service's MemoryMax=.",
    ),
    Kind(
        "machine",
        "disk",
        "degraded",
        f"Less than {LEAST_DISK_MB:.0f} MB are left on the disk of EDGEFER_STATE_DIR.",
        "Make room: `sudo journalctl --vacuum-size=100M` and `sudo apt-get clean` often do.",
    ),
    Kind(
        "machine",
        "unstored",
        "degraded",
        "Events that wait for the broker can't be kept for the next start: the disk is full or read-only, or the file "
        "was damaged and has been set aside.",
        "The message names the file. EDGEFER_STATE_DIR must be a folder we may write to, with room. Meanwhile events "
        "wait in memory, and are sent all the same.",
    ),
    Kind(
        "machine",
        "clock",
        "ok",
        "The clock isn't set by a time server: events carry `clock_synced` false, and their times may be wrong.",
        "`timedatectl` says why. Without internet, name a time server of your network in /etc/systemd/timesyncd.conf, "
        "or live with it.",
    ),
)


def kind(part: Part, code: ProblemCode) -> Kind:
    """What there is to know of a problem."""
    return next(known for known in KINDS if (known.part, known.code) == (part, code))
