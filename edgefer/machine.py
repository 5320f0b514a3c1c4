"""What the machine says of itself: heat, memory, disk, clock. A value that it doesn't tell is None.

`root` is where /proc and /sys are, for tests.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from glob import iglob
from pathlib import Path

ROOT = Path("/")

_FIRMWARE = "sys/devices/platform/soc*/soc*:firmware/get_throttled"
"""soc/soc:firmware on a Raspberry Pi up to 4, soc@107c000000/soc@107c000000:firmware on a 5."""
_FIXED_ZONE = "PMIC-Die"
"""A zone of some Jetsons that always says 100 degrees."""
_PLAUSIBLE_C = range(-50, 151)
"""A zone whose sensor is switched off tells nonsense."""
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
    """The temperature of the hottest thermal zone, in degrees Celsius."""
    zones = (path for path in _files(root, "sys/class/thermal/thermal_zone*") if _read(path / "type") != _FIXED_ZONE)
    told = (degrees / 1000 for zone in zones if (degrees := _number(zone / "temp")) is not None)
    return max((degrees for degrees in told if round(degrees) in _PLAUSIBLE_C), default=None)


def is_throttled(root: Path = ROOT) -> bool | None:
    """Whether a Raspberry Pi runs slower now, for heat or a weak power supply.

    Where the kernel doesn't hand on the firmware's flags, it tells of the power supply alone.
    """
    flags = [flags for path in _files(root, _FIRMWARE) if (flags := _number(path, 16)) is not None]
    supplies = [path for path in _files(root, "sys/class/hwmon/hwmon*") if _read(path / "name") == "rpi_volt"]
    alarms = [alarm for path in supplies if (alarm := _number(path / "in0_lcrit_alarm")) is not None]
    told = [bool(each & _THROTTLED_NOW) for each in flags] + [bool(alarm) for alarm in alarms]
    return any(told) if told else None


def memory_mb() -> float:
    """The resident memory of this process, and what the processes that it started (the camera's) don't share."""
    tasks = _files(ROOT, "proc/self/task/*/children")
    children = [number for path in tasks for number in (_read(path) or "").split()]
    own, _ = _resident_and_shared("self")
    pages = own + sum(resident - shared for resident, shared in map(_resident_and_shared, children))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_memory_mb(root: Path = ROOT) -> float | None:
    """The memory that is still to be had: of the machine, or of the service's control group where that is less."""
    kilobytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    amounts = [] if kilobytes is None else [kilobytes * 1024 / 1e6]
    group = (_read(root / "proc/self/cgroup") or "").removeprefix("0::/").splitlines()[:1]
    for folder in [root / "sys/fs/cgroup" / name for name in group]:
        limits = [limit for name in ("memory.high", "memory.max") if (limit := _number(folder / name)) is not None]
        used = _number(folder / "memory.current")
        # The system takes back what it cached, before it ends anybody.
        reclaimable = _numbers(folder / "memory.stat").get("inactive_file", 0)
        if limits and used is not None:
            amounts.append((min(limits) - used + reclaimable) / 1e6)
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


def _files(root: Path, pattern: str) -> Iterator[Path]:
    """What matches now; it may be gone in a moment."""
    names = iglob(pattern, root_dir=root)  # noqa: PTH207  # pathlib's fails where a folder goes meanwhile
    return (root / name for name in names)


def _numbers(path: Path) -> dict[str, int]:
    """What stands behind each name in a file of lines; lines without a whole number are left out."""
    pairs = [line.split()[:2] for line in (_read(path) or "").splitlines()]
    return {pair[0]: value for pair in pairs if (value := _whole(pair[-1] if pair else "")) is not None}


def _number(path: Path, base: int = 10) -> int | None:
    """A file's whole number; None where it isn't there, or holds something else ("max")."""
    return _whole(_read(path) or "", base)


def _whole(text: str, base: int = 10) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    """A file's text; None where there is none, for the moment perhaps."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None
