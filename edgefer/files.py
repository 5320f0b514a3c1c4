"""Files from outside, read whole, but never more than they may sensibly hold."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file; OSError where it can't be read, or holds more than `limit` bytes."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it holds more than {_readable(limit)}", os.fspath(path))
    return content


def _readable(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
