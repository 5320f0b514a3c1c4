"""What the machine says of itself: heat, memory, disk, clock. A value that it doesn't tell is None.

`root` is where /proc and /sys are, for tests.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_THROTTLED_NOW = 0xF
"""Under-voltage, capped frequency, throttled, soft temperature limit: the Pi's flags for what is so now."""
_TIME_ERROR = 5
"""What adjtimex returns while the clock isn't synchronised (timex.h)."""
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd makes this file once the clock is set."""
_TIMEX_BYTES = 256
"""struct timex has 208 bytes on 64-bit Linux, 128 on 32-bit."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """How the machine does; MB are 10^6 bytes."""

    temperature_c: float | None
    throttled: bool | None
    memory_mb: float
    free_memory_mb: float | None
    """What can still be used before the system, or the service's own limit, ends somebody."""
    free_disk_mb: float | None
    """Where the state is kept."""
    clock_synced: bool


def read_state(state_dir: Path, root: Path = ROOT) -> MachineState:
    """How the machine does now."""
    return MachineState(
        temperature_c(root),
        is_throttled(root),
        memory_mb(),
        free_memory_mb(root),
        free_disk_mb(state_dir),
        is_clock_synced(),
    )


def temperature_c(root: Path = ROOT) -> float | None:
    """The processor's temperature in degrees Celsius."""
    text = _read(root / "sys/class/thermal/thermal_zone0/temp")
    return None if text is None else int(text) / 1000


def is_throttled(root: Path = ROOT) -> bool | None:
    """Whether a Raspberry Pi runs slower now, for heat or a weak power supply."""
    text = _read(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    return None if text is None else bool(int(text, 16) & _THROTTLED_NOW)


def memory_mb() -> float:
    """The resident memory of this process, and what the processes that it started (the camera's) don't share."""
    children = [number for path in Path("/proc/self/task").glob("*/children") for number in (_read(path) or "").split()]
    own, _ = _resident_and_shared("self")
    pages = own + sum(resident - shared for resident, shared in map(_resident_and_shared, children))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_memory_mb(root: Path = ROOT) -> float | None:
    """The memory that is still to be had: of the machine, or of the service's control group where that is less."""
    free = [line.split()[1] for line in (_read(root / "proc/meminfo") or "").splitlines() if "MemAvailable:" in line]
    amounts = [int(kilobytes) * 1024 / 1e6 for kilobytes in free]
    group = (_read(root / "proc/self/cgroup") or "").removeprefix("0::/").splitlines()[:1]
    for folder in [root / "sys/fs/cgroup" / name for name in group]:
        limits = [
            int(text) for name in ("memory.high", "memory.max") if (text := _read(folder / name) or "").isdecimal()
        ]
        used, cached = _read(folder / "memory.current"), _read(folder / "memory.stat") or ""
        # The system takes back what it cached, before it ends anybody.
        reclaimable = sum(int(line.split()[1]) for line in cached.splitlines() if line.startswith("inactive_file "))
        if limits and used:
            amounts.append((min(limits) - int(used) + reclaimable) / 1e6)
    return min(amounts, default=None)


def free_disk_mb(folder: Path) -> float | None:
    """The space that is left for us on the disk of a folder."""
    for existing in (folder, *folder.absolute().parents):
        try:
            disk = os.statvfs(existing)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize / 1e6
    return None


def is_clock_synced() -> bool:
    """Whether the clock is set by a time server; a Pi has no clock that runs while it is off."""
    request = ctypes.create_string_buffer(_TIMEX_BYTES)  # zeros: only asks
    state: int = _libc().adjtimex(request)
    if state == -1:  # the unit's ProtectClock= forbids to ask the kernel
        return _TIMESYNCD.exists()
    return state != _TIME_ERROR


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # each would be a class of its own, and this is asked for every event


def _resident_and_shared(process: str) -> tuple[int, int]:
    """In pages; none of a process that has just ended."""
    fields = (_read(Path("/proc") / process / "statm") or "0 0 0").split()
    return int(fields[1]), int(fields[2])


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
