"""What the machine says of itself: heat, memory, clock. A value that it doesn't tell is None."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_THERMAL = Path("/sys/class/thermal/thermal_zone0/temp")
_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_THROTTLED_NOW = 0xF
"""Under-voltage, capped frequency, throttled, soft temperature limit: the Pi's flags for what is so now."""
_TIME_ERROR = 5
"""What adjtimex returns while the clock isn't synchronised (timex.h)."""
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd makes this file once the clock is set."""
_TIMEX_BYTES = 256
"""struct timex has 208 bytes on 64-bit Linux, 128 on 32-bit."""


def temperature_c() -> float | None:
    """The processor's temperature in degrees Celsius."""
    text = _read(_THERMAL)
    return None if text is None else int(text) / 1000


def is_throttled() -> bool | None:
    """Whether a Raspberry Pi runs slower now, for heat or a weak power supply."""
    text = _read(_THROTTLED)
    return None if text is None else bool(int(text, 16) & _THROTTLED_NOW)


def memory_mb() -> float:
    """This process's resident memory in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def is_clock_synced() -> bool:
    """Whether the clock is set by a time server; a Pi has no clock that runs while it is off."""
    request = ctypes.create_string_buffer(_TIMEX_BYTES)  # zeros: only asks
    state = ctypes.CDLL(None).adjtimex(request)
    if state == -1:  # the unit's ProtectClock= forbids to ask the kernel
        return _TIMESYNCD.exists()
    return bool(state != _TIME_ERROR)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
